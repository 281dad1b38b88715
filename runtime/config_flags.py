"""The command line made from option models: one flag per field, in groups, --help says type, unit and default.

Which options there are is in train/options.py; what a value must be is checked in runtime/config.py. Flags that were
not given leave no trace, so that a default is never taken for the user's wish.
"""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from reprise.runtime.config import Choices, Section, expected, field_of, groups, keys, section_of
from reprise.runtime.config_text import read_dictionary, read_literal, yaml_value
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest


class _Formatter(argparse.HelpFormatter):
    """Keeps the line breaks of a help text and indents what follows a long key."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=6)

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines: list[str] = []
        for line in text.splitlines():
            indent = " " * (len(line) - len(line.lstrip()) + 4 if line.startswith(" ") else 0)
            lines += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
        return lines


class FlagParser(argparse.ArgumentParser):
    """argparse with whole flag names only and every mistake a UserError, unknown flags with the nearest name."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        usage = f"{prog} [--option VALUE ...]"
        super().__init__(
            prog, usage, description=description, epilog=epilog, allow_abbrev=False, formatter_class=_Formatter
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse; `message` begins with "argument --flag: "."""
        flag = message.removeprefix("argument ").partition(":")[0]
        remedy = f"write {flag} VALUE, or {flag}=VALUE where VALUE begins with '-' (see --help)"
        raise UserError(f"{message.removeprefix('argument ')}; {remedy}")

    def parse_flags(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return {key: text or list of texts} of the flags given."""
        namespace, unknown = self.parse_known_args(list(argv))
        if unknown:
            word = unknown[0].partition("=")[0]
            if not word.startswith("-"):
                raise UserError(f"unexpected argument {word!r}: every option begins with '--'; see --help")
            raise UserError(
                f"unknown option {word!r}{nearest(word, self._option_string_actions)}; --help lists all options"
            )
        return vars(namespace)


def add_flags(parser: argparse.ArgumentParser, model: type[Section], choices: Choices) -> None:
    """Add one flag per field of `model`, a help group per group of options; ignored options are accepted silently."""
    for group in groups(model):
        arguments = parser.add_argument_group((group.__doc__ or "").partition("\n")[0].rstrip("."))
        for key in keys(group):
            _add_flag(arguments, model, key, choices.get(key, ()))
    for key in model.ignored:
        flag = f"--{key.replace('_', '-')}"
        parser.add_argument(flag, dest=key, nargs="?", const="true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def flag_values(given: dict[str, Any], model: type[Section]) -> dict[str, Any]:
    """Pick the flags of `model` from what `parse_flags` returned and turn texts into values; checking comes later."""
    values: dict[str, Any] = {}
    for key in [*keys(model), *model.ignored]:
        if key not in given:
            continue
        section, flag = section_of(model, key), f"--{key.replace('_', '-')}"
        if section:
            values[key] = {}
            for words in given[key]:
                values[key] |= read_dictionary(" ".join(words), flag, f'{flag} "{section.example}"')
        else:
            values[key] = _from_text(given[key], field_of(model, key), flag) if key in keys(model) else given[key]
    return values


def _add_flag(group: Any, model: type[Section], key: str, names: Sequence[str]) -> None:
    field, section, flag = field_of(model, key), section_of(model, key), f"--{key.replace('_', '-')}"
    common: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS}
    if section:
        lines = [f'{field.description}, like "{section.example}" or key=value pairs; keys:']
        lines += [f"  {inner}: {_explained(section.model_fields[inner])}" for inner in section.model_fields]
        text = "\n".join(lines)
        common |= {"nargs": "+", "action": "append", "metavar": ("DICT", "KEY=VALUE")}
    elif field.annotation is bool:
        text = _explained(field)
        common |= {"nargs": "?", "const": "true", "metavar": "true|false"}
    else:
        text = _explained(field, names)
        kinds = set(_plain_types(field.annotation))
        common |= {"metavar": "LIST" if list in kinds else "NUMBER" if kinds & {int, float} else "TEXT"}
    group.add_argument(flag, help=text.replace("%", "%%"), **common)


def _explained(field: FieldInfo, names: Sequence[str] = ()) -> str:
    default = "" if field.default is None else f"; default {yaml_value(field.default)}"
    return f"{field.description} [{expected(field.annotation, field.metadata, names)}{default}]"


def _from_text(text: str, field: FieldInfo, flag: str) -> Any:
    """The value a flag's text stands for; a text that does not fit is returned as it is and refused by the check."""
    kinds = set(_plain_types(field.annotation))
    if NoneType in kinds and not text:
        return None
    if list in kinds:
        return read_literal(text, flag, "\"[{'epoch': 0, 'optimizer': 'SGD', 'lr': 0.1}]\"")
    if bool in kinds:
        return {"true": True, "false": False}.get(text.lower(), text)
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                return text
    return text


def _plain_types(annotation: Any) -> Iterable[type]:
    """bool, int, float, str, list, NoneType: what an annotation is made of, at its first level."""
    origin = get_origin(annotation)
    if isinstance(origin or annotation, type) and get_origin(annotation) in (None, list):
        yield origin or annotation
    else:
        for argument in get_args(annotation):
            yield from _plain_types(argument)
