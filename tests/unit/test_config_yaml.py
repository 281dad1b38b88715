"""The config.yaml that ships: its documented defaults agree with the models, its sections are the published commands.

The commands are those of the reference's README (rehearsal.md 9), none of which completed there (rehearsal.md 1.6).
"""

import shlex
import textwrap
from typing import Any

import pytest
import yaml

from reprise.runtime.config import Section, expected, groups, keys, section_of
from reprise.runtime.config_text import yaml_value
from reprise.train.options import DEFAULT_YAML, Options, parse

EXAMPLES = {
    "mnist": "--backbone mnistnet --dataset mnist",
    "cifar100": "--backbone resnet18 --dataset cifar100",
    "tinyimagenet": "--backbone resnet50 --dataset tinyimagenet",
    "imagenet-blurred": "--backbone efficientnetv2 --dataset imagenet_blurred",
    "mnist-class": "--backbone mnistnet --dataset mnist "
    "--tasksets-config \"{'scenario': 'class', 'initial_increment': 5, 'increment': 5}\"",
    "cifar10-class": "--backbone resnet18 --dataset cifar10 "
    "--tasksets-config \"{'scenario': 'class', 'initial_increment': 4, 'increment': 3}\"",
    "er-cifar100-instance": "--backbone resnet18 --model Er --dataset cifar100 "
    "--tasksets-config \"{'scenario': 'instance', 'num_tasks': 5}\"",
    "der-cifar10-class": "--backbone resnet18 --model Der --buffer-config \"{'rehearsal_ratio': 20}\" "
    "--dataset cifar10 --tasksets-config \"{'scenario': 'class', 'initial_increment': 4, 'increment': 3}\"",
    "derpp-imagenet100small-class": "--backbone resnet18 --model Derpp --buffer-config \"{'rehearsal_ratio': 20}\" "
    "--dataset imagenet100small "
    "--tasksets-config \"{'scenario': 'class', 'initial_increment': 40, 'increment': 30}\"",
    "agem-tinyimagenet-instance": "--backbone resnet50 --model Agem --dataset tinyimagenet "
    "--tasksets-config \"{'scenario': 'instance', 'num_tasks': 5}\"",
}


def comment(text: str, indent: str) -> list[str]:
    """A description as comment lines of at most 120 columns."""
    margin = f"{indent}# {' ' * (len(text) - len(text.lstrip()))}"
    return textwrap.wrap(text.lstrip(), 120, initial_indent=margin, subsequent_indent=margin + "  ")


def documented(model: type[Section]) -> str:
    """The `defaults` section as it must stand in config.yaml: every option, its unit, its choices, its default."""
    lines = ["defaults:"]
    for group in groups(model):
        lines.append(f"  # ---- {group.__doc__.rstrip('.')} ----")
        for key, attribute in keys(group).items():
            field, section = model.model_fields[attribute], section_of(model, key)
            wanted = expected(field.annotation, field.metadata)
            lines += comment(f"{field.description} [{wanted}]", "  ")
            lines.append(f"  {key}: {yaml_value(field.default) if section is None else '{}'}")
            for name, inner in section.model_fields.items() if section else ():
                lines.append(f"    # {name}: {yaml_value(inner.default)}")
                lines += comment(f"  {inner.description} [{expected(inner.annotation, inner.metadata)}]", "    ")
    return "\n".join(lines) + "\n"


def all_sections() -> dict[str, Any]:
    return yaml.safe_load(DEFAULT_YAML.read_text("utf-8"))


def test_every_option_is_documented_as_the_models_have_it() -> None:
    wanted = documented(Options)
    assert wanted in DEFAULT_YAML.read_text("utf-8"), (
        f"config.yaml's defaults are out of date, they should be:\n{wanted}"
    )


def test_the_defaults_section_changes_nothing() -> None:
    assert parse(["--config", "defaults"]).options == parse([]).options


@pytest.mark.parametrize("name", sorted(all_sections()))
def test_every_section_is_accepted(name: str) -> None:
    resolved = parse(["--config", name])
    assert resolved.warnings == []
    assert f"config.yaml [{name}]" in resolved.origin.values()


@pytest.mark.parametrize("name", EXAMPLES)
def test_section_gives_what_the_published_command_gives(name: str) -> None:
    """rehearsal.md 9: every example command of the reference's README runs; here as a section of the same options."""
    command = parse(shlex.split(EXAMPLES[name]))
    assert parse(["--config", name]).options == command.options
    assert command.warnings == []


def test_demo_sections_differ_in_the_strategy_only() -> None:
    vanilla = parse(["--config", "demo-vanilla"]).options
    er = parse(["--config", "demo-er"]).options
    assert (vanilla.model, er.model) == ("Vanilla", "Er")
    assert (vanilla.run_name, er.run_name) == ("demo-vanilla", "demo-er")
    assert er.buffer_config.implementation == "standard"
    assert er.buffer_config.deterministic is True
    allowed = {"model", "save_dir", "buffer_config"}
    assert vanilla.model_dump(exclude=allowed) == er.model_dump(exclude=allowed)


def test_baselines_leave_data_and_network_to_the_command_line() -> None:
    """rehearsal.md 9: from scratch is Vanilla with reset_state_dict and concatenate_tasksets; incremental is plain."""
    given = ["--dataset", "cifar10", "--tasksets-config", "increment=2"]
    scratch = parse([*given, "--config", "scratch"]).options
    incremental = parse([*given, "--config", "incremental"]).options
    for options in (scratch, incremental):
        assert (options.model, options.dataset, options.tasksets_config.increment) == ("Vanilla", "cifar10", 2)
    assert scratch.tasksets_config.concatenate_tasksets is True
    assert scratch.strategy_config.reset_state_dict is True
    assert incremental.tasksets_config.concatenate_tasksets is False
    assert incremental.strategy_config.reset_state_dict is False
