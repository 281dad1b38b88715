"""The published settings in presets/peft.yaml: every section is accepted, and each second stage fits its first one."""

from pathlib import Path

import pytest
import yaml

from reprise.train.options import parse

PRESETS = Path(__file__).parents[2] / "presets" / "peft.yaml"
SECTIONS = yaml.safe_load(PRESETS.read_text("utf-8"))
SECOND = sorted(name for name, keys in SECTIONS.items() if keys.get("model") in ("Hide", "L2c"))


def options(name: str):
    return parse(["--yaml-config", str(PRESETS), "--config", name])


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_every_section_is_accepted(name: str) -> None:
    resolved = options(name)
    assert resolved.warnings == []
    assert resolved.options.save_dir == (None if name == "imagenet-r" else name)


@pytest.mark.parametrize("name", SECOND)
def test_a_second_stage_has_the_data_and_the_backbone_of_its_first_one(name: str) -> None:
    second = options(name).options
    assert second.peft_config.selector is not None
    first = options(Path(second.peft_config.selector).name).options
    assert first.model == "Selector"
    for key in ("dataset", "tasksets_config", "transform_config", "backbone", "backbone_config"):
        assert getattr(first, key) == getattr(second, key), key


@pytest.mark.parametrize(
    ("name", "lr", "rate"),
    [
        ("imr_continual_lora", 0.03, 0.0028125),
        ("imr_hidelora", 0.01, 0.0009375),
        ("imr_hideprompt_5e", 0.05, 0.0046875),
    ],
)
def test_rates_are_the_published_ones_by_the_batch_of_a_process(name: str, lr: float, rate: float) -> None:
    assert options(name).options.lr == pytest.approx(lr * 24 / 256) == rate
