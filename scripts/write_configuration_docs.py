"""Writes docs/configuration.md from the option models, so that the page says what --help and the checks say.

`python scripts/write_configuration_docs.py` after a change of train/options.py; tests/unit/test_docs.py compares.
"""

from pathlib import Path

from pydantic.fields import FieldInfo

from reprise.runtime.config import Section, expected, groups, keys, section_of
from reprise.runtime.config_text import yaml_value
from reprise.train.options import BufferConfig, Invocation, Options

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

INTRODUCTION = """# Configuration

Every option of `python main.py`. This page is made from `train/options.py` by `scripts/write_configuration_docs.py`.

- An option stands on the command line (`--batch-size 32`) or in a section of a YAML file (`batch_size: 32`), which
  `--config` selects. The section wins over the command line. `config.yaml` has a section per example.
- Dictionary options (`--buffer-config` and the like) take `key=value` pairs or a dictionary in quotes:
  `--buffer-config capacity=2000 policy=fifo`, `--buffer-config "{{'capacity': 2000, 'policy': 'fifo'}}"`. They are
  merged key by key; for the same key the section wins.
- `0`, `false` and empty text are values. `none` below: not set.
- Sizes say whether they count per rank or over all ranks.
- An unknown option or key, a wrong type and a value out of range end the program before any work, with one line and
  exit code 2.
- `--help` lists the options, `--version` tells the version, `--print-config` shows what a run would use and where each
  value comes from.
- Accepted for other systems' commands, without a meaning here: {ignored};
  in `--buffer-config` {ignored_keys}.
"""

SEE = {
    "backbone": "backbones.md",
    "buffer_config": "buffer.md",
    "checkpoint_every": "reliability.md",
    "dataset": "data.md",
    "model": "strategies.md",
    "optimizer_regime": "backbones.md#writing-a-regime",
    "resume": "reliability.md",
    "tasksets_config": "data.md",
    "transform_config": "data.md#what-the-network-sees",
    "timeout": "reliability.md#exit-codes-and-a-batch-script-that-requeues",
}
"""Option -> where there is more about it."""


def page() -> str:
    """The whole page."""
    ignored, ignored_keys = (
        ", ".join(f"`{name}`" for name in names) for names in (Options.ignored, BufferConfig.ignored)
    )
    parts = [INTRODUCTION.format(ignored=ignored, ignored_keys=ignored_keys)]
    for model in (Invocation, Options):
        for group in groups(model):
            parts.append(f"## {(group.__doc__ or '').rstrip('.')}\n")
            parts.append(_table("option", [_option(group, key) for key in keys(group)]))
            for key in keys(group):
                section = section_of(group, key)
                if section:
                    parts.append(f"### Keys of {_flag(key)}\n")
                    inner = [_row(f"`{name}`", field) for name, field in section.model_fields.items()]
                    parts.append(_table("key", inner))
    return "\n".join(parts)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _option(group: type[Section], key: str) -> str:
    field = group.model_fields[keys(group)[key]]
    more = f" ([more]({SEE[key]}))" if key in SEE else ""
    return _row(f"`{_flag(key)}`", field, default="" if section_of(group, key) else None, more=more)


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _row(name: str, field: FieldInfo, default: str | None = None, more: str = "") -> str:
    if default is None:
        default = "none" if field.default is None else f"`{yaml_value(field.default)}`"
    cells = (name, expected(field.annotation, field.metadata), default, f"{field.description}{more}")
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _table(first: str, rows: list[str]) -> str:
    return "\n".join([f"| {first} | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
