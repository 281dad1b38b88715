"""From several sources of values to one checked, frozen set of options that knows where every value came from.

Generic: the options themselves are pydantic models (train/options.py), their spelling is in runtime/config_text.py,
the flags in runtime/config_flags.py. Later sources win; dictionary options are merged key by key. Every mistake is a
UserError of one line with the key, the value, what was expected, and where it was written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from reprise.runtime.config_text import yaml_value
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest

Choices = Mapping[str, Sequence[str]]  # option -> the names that exist, where a registry decides
COMMAND_LINE = "command line"
DEFAULT = "default"
TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a dictionary",
}
BOUND_WORDS = ((Ge, "ge", "from"), (Gt, "gt", "above"), (Le, "le", "up to"), (Lt, "lt", "below"))


class Section(BaseModel):
    """A group of options, its docstring its title in --help: unknown keys are errors, types strict, values frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    ignored: ClassVar[tuple[str, ...]] = ()  # names accepted, with a warning, because other systems' commands have them
    example: ClassVar[str] = ""  # of the whole dictionary, for --help and for errors

    @property
    def given(self) -> dict[str, Any]:
        """The keys that a source set, with their values; empty when everything is a default."""
        return self.model_dump(exclude_unset=True, by_alias=True)


class ConflictError(ValueError):
    """Two or more options contradict each other; raised by a model's validator, `keys` are the options concerned."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Source:
    """Values from one place: `name` is the command line or a section of a file ("config.yaml [demo-er]")."""

    name: str
    values: Mapping[Any, Any]

    def spell(self, key: str, inner: str = "") -> str:
        """How the user wrote an option: "--buffer-config policy" or "config.yaml [demo-er]: buffer_config.policy"."""
        if self.name == COMMAND_LINE:
            return " ".join(filter(None, (f"--{key.replace('_', '-')}", inner)))
        return f"{self.name}: " + ".".join(filter(None, (key, inner)))


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """The options of a run, where each came from (by dotted key), and what the user should be warned of (on rank 0)."""

    options: S
    origin: dict[str, str]
    warnings: list[str]
    print_config: bool = False

    def to_yaml(self, name: str = "run") -> str:
        """A YAML file of one section that gives the same options again; dictionary keys nobody set are comments."""
        lines = [
            f"# The resolved options of a run. To use them again: --yaml-config THIS_FILE --config {name}",
            f"{name}:",
        ]
        for key, attribute in keys(type(self.options)).items():
            value = getattr(self.options, attribute)
            if not isinstance(value, Section):
                lines.append(f"  {key}: {yaml_value(value)}  # {self.origin[key]}")
                continue
            empty = all(self.origin[f"{key}.{inner}"].startswith(DEFAULT) for inner in value.model_dump())
            lines.append(f"  {key}:{' {}' if empty else ''}")
            for inner, inner_value in value.model_dump().items():
                origin = self.origin[f"{key}.{inner}"]
                lines.append(
                    f"    {'# ' if origin.startswith(DEFAULT) else ''}{inner}: {yaml_value(inner_value)}  # {origin}"
                )
        return "\n".join(lines) + "\n"

    def describe(self) -> str:
        """A table of every option, its value and where it came from."""
        rows = [("option", "value", "from")]
        for key, attribute in keys(type(self.options)).items():
            value = getattr(self.options, attribute)
            inner = (
                {f"{key}.{k}": v for k, v in value.model_dump().items()} if isinstance(value, Section) else {key: value}
            )
            rows += [(dotted, yaml_value(v), self.origin[dotted]) for dotted, v in inner.items()]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows)


def groups(model: type[Section]) -> list[type[Section]]:
    """The sections a model is put together from by inheritance, in order; itself when there are none."""
    bases = [base for base in model.__mro__[1:] if issubclass(base, Section) and base.model_fields]
    return bases or [model]


def keys(model: type[Section]) -> dict[str, str]:
    """Key -> attribute of a model, group by group. They differ where pydantic needs the name for itself."""
    return {field.alias or name: name for group in groups(model) for name, field in group.model_fields.items()}


def field_of(model: type[Section], key: str) -> FieldInfo:
    """The field behind a key."""
    return model.model_fields[keys(model)[key]]


def section_of(model: type[Section], key: str) -> type[Section] | None:
    """The model of a dictionary option; None for a plain one and for an unknown key."""
    annotation = field_of(model, key).annotation if key in keys(model) else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def expected(annotation: Any, metadata: Sequence[Any] = (), names: Sequence[str] = ()) -> str:
    """What a value must be, in words: "a whole number from 1", "one of a, b". That null may do goes without saying."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if names or origin is Literal:
        return "one of " + ", ".join(names or map(str, arguments))
    if origin is Annotated:
        return expected(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(expected(argument, metadata) for argument in arguments if argument is not NoneType)
    if origin is list:
        empty = "non-empty " if any(isinstance(m, MinLen) for m in metadata) else ""
        return f"a {empty}list, each {expected(arguments[0])}"
    words = [TYPE_WORDS.get(origin or annotation, "a dictionary")]
    words += [f"{word} {getattr(m, name)}" for kind, name, word in BOUND_WORDS for m in metadata if isinstance(m, kind)]
    return " ".join(words)


def resolve(model: type[S], sources: Sequence[Source], choices: Choices) -> Resolved[S]:
    """Check every source by itself, merge them (later wins), check the result. Raises UserError at the first mistake.

    Each source is checked on its own first, so that a mistake is reported even where another source overrides it.
    """
    merged: dict[str, Any] = {}
    writer: dict[str, Source] = {}  # dotted key -> the source whose value counts
    ignored: list[str] = []
    warnings: list[str] = []
    for source in sources:
        _check_text(source.values, source.name, set())
        values = _normalised(model, source, ignored)
        own = dict.fromkeys([*values, *_flat(values)], source)
        _checked(model, values, choices, own, alone=True)
        before = _flat(merged)
        changed = [dotted for dotted, value in _flat(values).items() if dotted in before and before[dotted] != value]
        if changed:
            spelled = ", ".join(writer[dotted].spell(*dotted.split(".", 1)) for dotted in changed)
            warnings.append(f"{source.name} overrides {spelled}")
        writer |= own
        for key, value in values.items():
            merged[key] = merged.get(key, {}) | value if section_of(model, key) else value
    options = _checked(model, merged, choices, writer)
    origin = {}
    for key, attribute in keys(model).items():
        value = getattr(options, attribute)
        for dotted in [f"{key}.{inner}" for inner in value.model_dump()] if isinstance(value, Section) else [key]:
            origin[dotted] = writer[dotted].name if dotted in writer else _default_origin(model, dotted)
    if ignored:
        warnings.append(f"accepted but without meaning here: {', '.join(ignored)}")
    return Resolved(options, origin, warnings)


def _check_text(value: Any, where: str, seen: set[int]) -> None:
    """Refuse halves of characters, as bytes that are no UTF-8 and some escapes leave them: nothing can print them.

    seen: what need not be looked at again. YAML's aliases make one value stand in many places, even in itself.
    """
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}: {ascii(value)[:80]} is not text; write it as UTF-8, without escapes")
        return
    if id(value) in seen:
        return
    inside = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    if isinstance(inside, list | tuple):
        seen.add(id(value))
        for inner in inside:
            _check_text(inner, where, seen)


def _default_origin(model: type[Section], dotted: str) -> str:
    """DEFAULT, followed by who says so where the field's `origin` tells ("default, published with DER++")."""
    key, _, inner = dotted.partition(".")
    section = section_of(model, key)
    extra = (field_of(section, inner) if section else field_of(model, key)).json_schema_extra
    return f"{DEFAULT}, {extra['origin']}" if isinstance(extra, dict) and "origin" in extra else DEFAULT


def _normalised(model: type[Section], source: Source, ignored: list[str]) -> dict[str, Any]:
    """The values of a source with '-' as '_' in keys, and without the ignored keys, which are added to `ignored`."""

    def clean(section: type[Section], values: Mapping[Any, Any], outer: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for written, value in values.items():
            key = str(written).replace("-", "_")
            if key in result:
                place = source.spell(outer) if outer else source.name
                raise UserError(f"{place}: key {key!r} is given twice, with '-' and with '_'; keep one of them")
            if key in section.ignored:
                ignored.append(source.spell(outer, key) if outer else source.spell(key))
            else:
                result[key] = value
        return result

    values = clean(model, source.values, "")
    for key, value in values.items():
        section = section_of(model, key)
        if section and (value is None or isinstance(value, dict)):
            values[key] = clean(section, value or {}, key)
    return values


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, with the keys of dictionary options instead of the dictionaries."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _checked(
    model: type[S], values: Mapping[str, Any], choices: Choices, writer: Mapping[str, Source], alone: bool = False
) -> S:
    """Return the model of `values` or raise UserError. `alone`: one source by itself, conflicts do not count yet."""
    for key, names in choices.items():
        if isinstance(values.get(key), str) and values[key] not in names:
            raise UserError(_wrong_value(model, key, "", values[key], names, writer))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        details = [detail for detail in error.errors() if not (alone and detail["type"] == "value_error")]
        if not details:
            return model.model_construct()
        raise UserError(_message(model, values, choices, writer, details[0])) from error


def _message(
    model: type[Section], values: Mapping[str, Any], choices: Choices, writer: Mapping[str, Source], detail: Any
) -> str:
    """One line for one of pydantic's errors."""
    key, inner = (*map(str, detail["loc"]), "", "")[:2]
    section = section_of(model, key)
    reason = detail.get("ctx", {}).get("error")
    if isinstance(reason, ConflictError):
        dotted = [f"{key}.{name}" if key else name for name in reason.keys]
        places = {name: writer[name].name if name in writer else DEFAULT for name in dotted}
        where = ", ".join(f"{name}: {place}" for name, place in places.items())
        prefix = f"--{key.replace('_', '-')}: " if key else ""
        return f"{prefix}{reason}" + ("" if set(places.values()) == {COMMAND_LINE} else f" ({where})")
    if detail["type"] == "extra_forbidden":
        known = list(keys(section if section else model))
        name, place = (inner, writer[key].spell(key)) if section else (key, writer[key].name)
        listed = f"keys: {', '.join(known)}" if section else "--help lists all options"
        return f"{place}: unknown key {name!r}{nearest(name, known)}; {listed}"
    if not section:
        inner = ""
    value = values[key][inner] if inner else values[key]
    if isinstance(reason, ValueError):
        return f"{writer[key].spell(key, inner)} {_shown(value)}: {reason}"
    return _wrong_value(model, key, inner, value, choices.get(key, ()), writer)


def _wrong_value(
    model: type[Section], key: str, inner: str, value: Any, names: Sequence[str], writer: Mapping[str, Source]
) -> str:
    section = section_of(model, key)
    if section and inner and inner not in keys(section):  # a free key, as backbones have
        wanted = "a number, text, true, false, null, a list or a dictionary of these"
    else:
        field = field_of(section, inner) if section and inner else field_of(model, key)
        wanted = expected(field.annotation, field.metadata, names)
        wanted += f" like {section.example}" if section and not inner else ""
        names = names or _literal_names(field.annotation)
    hint = nearest(value, names) if isinstance(value, str) and names else ""
    source = writer[f"{key}.{inner}" if inner else key]
    return f"{source.spell(key, inner)} {_shown(value)}: expected {wanted}{hint}"


def _literal_names(annotation: Any) -> list[str]:
    parts = [annotation, *get_args(annotation)]
    return [str(name) for part in parts if get_origin(part) is Literal for name in get_args(part)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
