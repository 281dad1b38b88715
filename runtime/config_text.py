"""How configuration is spelled: dictionary strings on the command line, and YAML files with one section per run.

Safe by construction: only literals are read, nothing is evaluated. YAML follows the 1.2 core schema (`1e-3` is a
number, `yes` is text) and refuses duplicate keys. Knows no option by name; called by runtime.config_flags and
train.options.
"""

import ast
import re
from pathlib import Path
from typing import Any

import yaml

from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest

JSON_NAMES = {"true": True, "false": False, "null": None}
SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
BARE_WORD = re.compile(r"[\w./:+-]+")
PAIR_KEY = re.compile(r"(?:^|[\s,])([A-Za-z_][\w-]*)\s*=\s*")
YAML_FLOAT = re.compile(
    r"^[-+]?(?:(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)


class _NotLiteralError(ValueError):
    """Part of a text is not a literal; `column` (from 0) is where it begins."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


def _value(node: ast.expr) -> Any:
    """Return the value of a literal expression; tuples become lists, so that values look as if read from YAML."""
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in JSON_NAMES:
            return JSON_NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            result: dict[str, Any] = {}
            for key, item in zip(keys, values, strict=True):
                if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                    raise _NotLiteralError("a key must be text in quotes", (key or item).col_offset)
                if key.value in result:
                    raise _NotLiteralError(f"key '{key.value}' is given twice", key.col_offset)
                result[key.value] = _value(item)
            return result
    raise _NotLiteralError("not a literal (text needs quotes)", node.col_offset)


def read_literal(text: str, what: str, example: str) -> Any:
    """Return the value of a Python or JSON literal; UserError shows `what`, the text, where it breaks, `example`."""
    text = " ".join(text.splitlines()).strip()
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, _NotLiteralError) as error:
        column = error.column if isinstance(error, _NotLiteralError) else max(0, (error.offset or 1) - 1)
        reason = str(error) if isinstance(error, _NotLiteralError) else error.msg
        raise _unreadable(what, text, column, reason, example) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(what, text, 0, "too deeply nested or not text", example) from error


def read_dictionary(text: str, what: str, example: str) -> dict[str, Any]:
    """Return the dictionary that `text` spells: `{'key': value}` or `key=value` pairs, apart by commas or spaces."""
    text = " ".join(text.splitlines()).strip()
    if text.startswith("{"):
        value = read_literal(text, what, example)
        if not isinstance(value, dict):
            raise _unreadable(what, text, 0, "not one dictionary", example)
        return value
    start, *pieces = PAIR_KEY.split(text)
    if start.strip(" ,"):
        raise _unreadable(what, text, 0, "expected key=value", example)
    result: dict[str, Any] = {}
    for key, piece in zip(pieces[::2], pieces[1::2], strict=True):
        piece = piece.strip(" ,\t")
        if not piece or key in result:
            reason = f"key '{key}' is given twice" if key in result else f"key '{key}' has no value"
            raise _unreadable(what, text, text.rindex(key), reason, example)
        try:
            result[key] = read_literal(piece, what, example)
        except UserError:
            if not BARE_WORD.fullmatch(piece):
                reason = f"the value of '{key}' is neither a literal nor one word"
                raise _unreadable(what, text, text.index(piece), reason, example) from None
            result[key] = piece
    return result


def _unreadable(what: str, text: str, column: int, reason: str, example: str) -> UserError:
    text = "".join(character if character.isprintable() else " " for character in text)
    shown = text if len(text) <= 120 else text[:117] + "..."
    near = text[column : column + 20]
    return UserError(
        f'{what}: cannot read "{shown}" at column {column + 1}, "{near}": {reason}; write it like {example}'
    )


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core schema, and a key given twice in one mapping is an error (merge keys may still be overridden)."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way to drop the YAML 1.1 schema)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked while composing: when values are built, merge keys have already been expanded into the mapping.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node

    def construct_scalar(self, node: Any) -> Any:
        """JSON writes characters beyond the first 65,536 as two escapes: they are one character."""
        value = super().construct_scalar(node)
        pairs = isinstance(value, str) and not value.isascii() and SURROGATES.search(value)
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") if pairs else value


for tag, pattern, first in (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?(?:0|[1-9]\d*)$"), list("-+0123456789")),
    ("float", YAML_FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"^<<$"), ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, first)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either schema would take for a number, true, false or null."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", YAML_FLOAT, list("-+.0123456789"))


def yaml_value(value: Any) -> str:
    """Return `value` (numbers, text, lists, dictionaries, None) as one line of YAML for any YAML reader."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, default_style=style, width=2**31, allow_unicode=True
    )
    return text.removesuffix("...\n").rstrip("\n")


def read_section(path: Path, name: str) -> dict[Any, Any]:
    """Return the top-level section `name` of a YAML file, as written; every mistake is one line naming the file."""
    content = read_yaml(path, "--yaml-config names the file --config looks in")
    if content is not None and not isinstance(content, dict):
        raise UserError(f"'{path}' holds {_kind(content)}, expected sections: a name, a colon, indented options below")
    sections = {str(key): value for key, value in (content or {}).items()}
    if name not in sections:
        listed = ", ".join(sections) or "none"
        raise UserError(f"--config {name!r}: no such section in '{path}'{nearest(name, sections)}; sections: {listed}")
    if sections[name] is not None and not isinstance(sections[name], dict):
        raise UserError(
            f"'{path}' [{name}] is {_kind(sections[name])}, expected a mapping: 'option: value' on each line"
        )
    return sections[name] or {}


def read_yaml(path: Path, remedy: str) -> Any:
    """Return what a YAML file holds. A mistake is one line naming the file; where it cannot be read, with `remedy`."""
    try:
        return yaml.load(path.read_text("utf-8"), Loader=_Loader)  # _Loader is a SafeLoader
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read '{path}': byte {error.start} is not UTF-8; save the file as UTF-8 text"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"'{path}'{place} is not YAML: {error.problem or error.context}; mend that line") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' is not YAML: {reason}; mend it") from error


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the single value {value!r}"
