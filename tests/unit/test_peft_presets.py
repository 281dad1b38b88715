"""presets/peft.yaml: every section is accepted, second stages fit their first ones, published numbers are theirs."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from reprise.train.options import Resolved, parse

PRESETS = Path(__file__).parents[2] / "presets" / "peft.yaml"
SECTIONS = yaml.safe_load(PRESETS.read_text("utf-8"))
RUNS = sorted(name for name in SECTIONS if "-" not in name)  # the others are parts of these
SECOND = [name for name in RUNS if SECTIONS[name]["model"] in ("Hide", "L2c")]
ABLATIONS = [name for name in RUNS if name.startswith("imr_hidelora_")]


@cache
def options(name: str) -> Resolved:
    return parse(["--yaml-config", str(PRESETS), "--config", name])


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_every_section_is_accepted(name: str) -> None:
    resolved = options(name)
    assert resolved.warnings == []
    assert resolved.options.save_dir == (name if name in RUNS else None)


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
        ("cl_lora_cifar10_5t_vitb_in21k", 0.03, 0.0028125),
        ("imr_hideprompt_5e", 0.05, 0.0046875),
    ],
)
def test_rates_are_the_published_ones_by_the_batch_of_a_process(name: str, lr: float, rate: float) -> None:
    assert options(name).options.lr == pytest.approx(lr * 24 / 256) == rate


@pytest.mark.parametrize("weights", ["vitb_in21k", "vitb_mocov3", "deits_in611"])
@pytest.mark.parametrize("data", ["cifar10_5t", "cifar100_10t", "imr_10t", "cub_10t", "cars_10t"])
def test_there_is_a_pair_of_l2c_for_every_data_set_and_backbone(data: str, weights: str) -> None:
    second = options(f"l2c_lora_{data}_{weights}").options
    assert second.model == "L2c"
    assert second.peft_config.topk == 5
    assert second.peft_config.selector == f"results/cl_lora_{data}_{weights}"


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_from_hidelora_in_one_thing(name: str) -> None:
    plain, changed = options("imr_hidelora").options, options(name).options
    kept = {"save_dir": plain.save_dir, "peft_config": plain.peft_config}
    assert changed.model_copy(update=kept) == plain
    before, after = plain.peft_config.model_dump(), changed.peft_config.model_dump()
    assert sum(before[key] != after[key] for key in before) == 1


@pytest.mark.parametrize(
    ("data", "epochs", "milestone", "temperature"),
    [("cifar100", 20, 18, 0.1), ("imr", 50, 40, 0.1), ("cub", 50, 40, 0.1), ("cars", 50, 40, 0.05)],
)
def test_slca_has_its_published_numbers(data: str, epochs: int, milestone: int, temperature: float) -> None:
    run = options(f"slca_{data}").options
    assert (run.model, run.batch_size, run.epochs, run.weight_decay) == ("Slca", 128, epochs, 5e-4)
    assert run.optimizer_regime is not None
    first, second = run.optimizer_regime
    assert (first["optimizer"], first["momentum"], first["scaling"]) == ("SGD", 0.9, "none")
    assert (second["epoch"], second["lr_factor"]) == (milestone, 0.1)
    peft = run.peft_config
    assert peft.backbone_lr is not None
    assert (run.lr, run.lr * peft.backbone_lr) == (0.01, pytest.approx(1e-4))
    assert (peft.statistics, peft.ca_epochs, peft.ca_lr, peft.ca_batch) == ("covariance", 5, 0.01, 256)
    assert peft.logit_norm == temperature


@pytest.mark.parametrize(
    ("data", "epochs", "symmetric", "decay"),
    [
        ("cifar100", 20, [1.0, 0.1], 5e-4),
        ("imr", 50, [0.5, 0.5], 0.0),
        ("cub", 50, [1.0, 0.1], 5e-4),
        ("cars", 50, [0.5, 0.5], 0.0),
    ],
)
def test_slcapp_has_its_published_numbers(data: str, epochs: int, symmetric: list[float], decay: float) -> None:
    run, plain = options(f"slcapp_{data}").options, options(f"slca_{data}").options
    for key in ("dataset", "tasksets_config", "transform_config", "backbone", "backbone_config", "batch_size", "lr"):
        assert getattr(run, key) == getattr(plain, key), key
    assert (run.model, run.epochs, run.weight_decay) == ("Slcapp", epochs, decay)
    assert run.optimizer_regime is not None
    assert [phase["schedule"] for phase in run.optimizer_regime] == ["cosine"]
    peft = run.peft_config
    assert peft.alpha is not None
    assert (peft.rank, peft.alpha / 4) == (4, pytest.approx(0.8))
    assert (peft.technique, peft.init, peft.blocks) == ("lora", "svd", "all")
    assert peft.targets == ["q", "k", "v", "fc1", "fc2"]
    assert (peft.symmetric, peft.backbone_lr, peft.feature_scale) == (symmetric, 0.1, 0.02)
    assert (peft.statistics, peft.ca_epochs, peft.ca_lr, peft.ca_batch) == ("covariance", 5, 0.01, 256)
