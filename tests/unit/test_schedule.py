"""Learning-rate curves: against numbers worked out by hand and against torch's own schedulers, alone and in regimes."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LRScheduler

from reprise import backbone
from reprise.train.regime import Regime


def regime_of(
    phases: list[dict], *, lr: float = 1.0, batches: int = 1, samples: int = 64, warmup: float = 0, epochs: int = 10
) -> Regime:
    """batches, samples: those of a step, over all ranks."""
    return Regime(
        phases, lr=lr, batches_per_step=batches, samples_per_step=samples, warmup_epochs=warmup, epochs=epochs
    )


def rates_of_torch(scheduler_for: type[LRScheduler], steps: int, lr: float, **settings: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = scheduler_for(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it misses the optimiser's steps
            scheduler.step()
    return rates


# ---- cosine ----


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0.0, 0.0),  # warm-up from 0
        (0.5, 0.25),
        (1.9, 0.95),
        (2.0, 1.0),
        (4.0, 0.8828427),  # 0.2 + 0.8 (1 + cos 45 deg) / 2
        (6.0, 0.6),
        (8.0, 0.3171573),
        (10.0, 0.2),
    ],
)
def test_cosine_falls_from_the_end_of_the_warm_up_to_lr_min_at_the_last_epoch(epoch: float, expected: float) -> None:
    phase = {"optimizer": "SGD", "warmup_from": "zero", "schedule": "cosine", "lr_min": 0.2}
    assert regime_of([phase], warmup=2).learning_rate(epoch, 999) == pytest.approx(expected)


def test_cosine_agrees_with_torch() -> None:
    regime = regime_of([{"optimizer": "SGD", "lr": 0.3, "schedule": "cosine", "lr_min": 0.01}], epochs=50)
    expected = rates_of_torch(CosineAnnealingLR, 50, 0.3, T_max=50, eta_min=0.01)
    assert [regime.learning_rate(epoch, 0) for epoch in range(50)] == pytest.approx(expected)


def test_a_cosine_named_by_a_later_phase_falls_from_there_whatever_phases_follow() -> None:
    phases = [
        {"optimizer": "SGD", "lr": 0.4},
        {"epoch": 2, "schedule": "cosine"},
        {"epoch": 6, "momentum": 0.9},
    ]
    regime = regime_of(phases)
    rates = [regime.learning_rate(epoch, 0) for epoch in (1.9, 2.0, 6.0, 10.0)]
    assert rates == pytest.approx([0.4, 0.4, 0.2, 0.0])


def test_cosine_of_a_task_without_epochs_or_all_warm_up_is_a_number() -> None:
    phase = {"optimizer": "SGD", "schedule": "cosine", "lr_min": 0.1}
    assert regime_of([phase], epochs=0).learning_rate(0.0, 0) == 1.0
    regime = regime_of([{**phase, "warmup_from": "zero"}], warmup=4, epochs=4)
    assert [regime.learning_rate(epoch, 0) for epoch in (0, 1, 3)] == pytest.approx([0.0, 0.25, 0.75])


# ---- cyclical ----


@pytest.mark.parametrize("name", ["triangular", "triangular2", "exp_range"])
def test_cyclical_rates_agree_with_torch(name: str) -> None:
    gamma = {"gamma": 0.99} if name == "exp_range" else {}
    phase = {"optimizer": "SGD", "schedule": name, "lr_min": 0.1, "step_cycle_size": 70, **gamma}
    regime = regime_of([phase], samples=10)
    expected = rates_of_torch(
        CyclicLR, 60, 1.0, base_lr=0.1, max_lr=1.0, step_size_up=7, mode=name, cycle_momentum=False, **gamma
    )
    assert [regime.learning_rate(0.0, step) for step in range(60)] == pytest.approx(expected)


def test_half_a_cycle_need_not_be_a_whole_number_of_steps() -> None:
    """5 samples in half a cycle at 2 in a step: it rises over 2.5 steps and falls over as many."""
    phase = {"optimizer": "SGD", "schedule": "triangular", "step_cycle_size": 5}
    regime = regime_of([phase], samples=2)
    rates = [regime.learning_rate(0.0, step) for step in range(7)]
    assert rates == pytest.approx([0.0, 0.4, 0.8, 0.8, 0.4, 0.0, 0.4])


def test_a_cycle_runs_on_into_the_next_task() -> None:
    """A task of ptychography is one epoch of some steps, shorter than a cycle."""
    phase = {"optimizer": "SGD", "schedule": "triangular", "step_cycle_size": 4}
    first, second = (regime_of([phase], samples=1, epochs=epochs) for epochs in (1, 3))
    rates = [first.learning_rate(step / 3, step) for step in range(3)]
    rates += [second.learning_rate(step, 3 + step) for step in range(3)]
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 0.75])


# ---- scaling and warm-up ----


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [("capped", [1, 8, 64, 64]), ("linear", [1, 8, 64, 128]), ("none", [1, 1, 1, 1])],
)
def test_scaling_rules(scaling: str, expected: list[float]) -> None:
    """rehearsal.md 3: most networks stop at 64, some go on, one is not scaled."""
    phase = {"optimizer": "SGD", "scaling": scaling}
    rates = [regime_of([phase], batches=batches).learning_rate(0.0, 0) for batches in (1, 8, 64, 128)]
    assert rates == expected


@pytest.mark.parametrize(
    ("warmup_from", "expected"), [("lr", [0.1, 0.2, 0.3, 0.4, 0.4]), ("zero", [0.0, 0.4 / 3, 0.8 / 3, 0.4, 0.4])]
)
def test_warm_up_starts_at_the_rate_of_one_rank_or_at_zero(warmup_from: str, expected: list[float]) -> None:
    regime = regime_of([{"optimizer": "SGD", "warmup_from": warmup_from}], lr=0.1, batches=4, warmup=3)
    assert [regime.learning_rate(epoch, 0) for epoch in range(5)] == pytest.approx(expected)


# ---- what the networks are trained with, rehearsal.md 3 ----


def default_of(name: str, config: dict | None = None, *, epochs: int = 30, **settings: float) -> Regime:
    lr = backbone.default_lr(name)
    return regime_of(backbone.default_regime(name, epochs, config or {}), lr=lr, epochs=epochs, **settings)


def test_mobilenetv3_loses_a_sixth_at_every_milestone_and_is_scaled_without_a_cap() -> None:
    regime = default_of("mobilenetv3", batches=128, warmup=5)
    expected = [(0.000375 - count * 6.25e-5) * 128 for count in range(6)]
    assert [regime.learning_rate(epoch, 0) for epoch in (7, 8, 12, 16, 22, 26)] == pytest.approx(expected)
    assert regime.learning_rate(2.5, 0) == pytest.approx(0.000375 * (1 + 2.5 * 127 / 5))


def test_ghostnet_decays_at_15_21_and_28() -> None:
    regime = default_of("ghostnet", batches=16, warmup=5)
    rates = [regime.learning_rate(epoch, 0) for epoch in (14.9, 15, 20.9, 21, 27.9, 28)]
    assert rates == pytest.approx([0.16, 0.08, 0.08, 0.008, 0.008, 0.0016])


def test_efficientnetv2_is_not_scaled_and_ends_at_lr_min() -> None:
    """The reference raises KeyError where lr_min is not given."""
    regime = default_of("efficientnetv2", batches=16, warmup=5)
    rates = [regime.learning_rate(epoch, 0) for epoch in (0, 2.5, 5, 17.5, 30)]
    assert rates == pytest.approx([0, 1.25e-5, 2.5e-5, 1.3e-5, 1e-6])
    other = default_of("efficientnetv2", {"lr_min": 5e-6}, batches=16, warmup=5)
    assert [other.learning_rate(epoch, 0) for epoch in (17.5, 30)] == pytest.approx([1.5e-5, 5e-6])


def test_convnext_has_the_published_rate_at_a_batch_of_4096() -> None:
    """Liu et al. 2022, table 5: 4e-3 for 4096, warm-up over 20 of 300 epochs; here 64 ranks with 64 each, then 128."""
    for ranks, peak in ((64, 4e-3), (128, 8e-3)):
        regime = default_of("convnext", batches=ranks, warmup=20, epochs=300)
        rates = [regime.learning_rate(epoch, 0) for epoch in (0, 10, 20, 160, 300)]
        assert rates == pytest.approx([0, peak / 2, peak, (peak + 1e-6) / 2, 1e-6])


def test_ptychonn_swings_by_2944_samples() -> None:
    """16 samples on each of 8 ranks: 23 steps up, 23 down; the peaks shrink by 0.99985 a step."""
    regime = default_of("ptychonn", batches=8, samples=128, epochs=1)
    rates = [regime.learning_rate(0.0, step) for step in (0, 23, 46, 69)]
    assert rates == pytest.approx([1e-4, 1e-4 + 7.8e-4 * 0.99985**23, 1e-4, 1e-4 + 7.8e-4 * 0.99985**69])
    assert all(math.isclose(regime.learning_rate(epoch, 23), rates[1]) for epoch in (0.3, 0.9))


@pytest.mark.parametrize(
    ("name", "second_peak"),
    [
        ("triangular", 8.8e-4),
        ("triangular_cyclic_lr", 8.8e-4),  # the reference's spelling
        ("triangular2", 4.9e-4),
        ("exp_range", 1e-4 + 7.8e-4 * 0.9**6),
        ("exp_range_cyclic_lr", 1e-4 + 7.8e-4 * 0.9**6),
        ("constant", 8.8e-4),
    ],
)
def test_ptychonn_takes_the_schedules_of_the_reference(name: str, second_peak: float) -> None:
    config = {"lr_schedule": name, "step_cycle_size": 128, "gamma": 0.9}
    regime = default_of("ptychonn", config, samples=64, epochs=1)
    assert regime.learning_rate(0.0, 6) == pytest.approx(second_peak)
