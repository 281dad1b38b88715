"""Optimiser regimes: curves against numbers worked out by hand, accumulation, reset, and mistakes in one line."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from reprise import backbone
from reprise.runtime.errors import UserError
from reprise.train.regime import Regime

SGD = {"epoch": 0, "optimizer": "SGD", "lr_factor": 1.0}


def regime_of(
    phases: list[dict], *, lr: float = 0.1, batches: int = 1, samples: int = 64, warmup: float = 0, epochs: int = 30
) -> Regime:
    """batches, samples: those of a step, over all ranks."""
    return Regime(
        phases, lr=lr, batches_per_step=batches, samples_per_step=samples, warmup_epochs=warmup, epochs=epochs
    )


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]


def step(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], gradient: float) -> None:
    for parameter in params:
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0.0, 0.0125),  # warm-up starts at the rate of one rank
        (1.0, 0.0125 * (1 + 1 * 7 / 5)),
        (2.5, 0.0125 * 4.5),
        (4.999, 0.0125 * (1 + 4.999 * 7 / 5)),
        (5.0, 0.1),
        (20.99, 0.1),
        (21.0, 0.05),
        (25.9, 0.05),
        (26.0, 0.005),
        (28.0, 0.001),
        (29.99, 0.001),
    ],
)
def test_resnet18_follows_the_published_schedule(epoch: float, expected: float) -> None:
    """Goyal et al. 2017 for the warm-up; rehearsal.md 3 for milestones 21, 26, 28 of 30 epochs."""
    regime = regime_of(backbone.default_regime("resnet18", 30, {}), lr=0.0125, batches=8, warmup=5)
    assert regime.learning_rate(epoch, 0) == pytest.approx(expected)


def test_short_trainings_decay_too() -> None:
    """rehearsal.md 6.1-7: decay epochs hard-coded at 21, 26, 28 whatever --epochs says."""
    regime = regime_of(backbone.default_regime("resnet18", 10, {}), lr=1.0, epochs=10)
    rates = [regime.learning_rate(epoch, 0) for epoch in (6.9, 7.0, 8.6, 8.7, 9.3, 9.34)]
    assert rates == pytest.approx([1.0, 0.5, 0.5, 0.05, 0.05, 0.01])


def test_warm_up_counts_in_epochs_of_its_own_task() -> None:
    """rehearsal.md 6.1-7: four times the steps per epoch must not mean a warm-up four times as fast."""
    regime = regime_of([SGD], lr=0.1, batches=4, warmup=2, epochs=4)
    for steps_per_epoch in (10, 40):
        rates = [regime.learning_rate(step / steps_per_epoch, 0) for step in range(4 * steps_per_epoch)]
        assert rates[steps_per_epoch] == pytest.approx(0.1 * 2.5)
        assert rates[2 * steps_per_epoch :] == pytest.approx([0.4] * (2 * steps_per_epoch))
        assert all(a < b for a, b in pairwise(rates[: 2 * steps_per_epoch]))


def test_a_milestone_inside_the_warm_up_counts() -> None:
    regime = regime_of([SGD, {"epoch": 1, "lr_factor": 0.5}], lr=0.1, batches=3, warmup=2, epochs=4)
    assert regime.learning_rate(1.0, 0) == pytest.approx(0.1 * 2 * 0.5)
    assert regime.learning_rate(2.0, 0) == pytest.approx(0.1 * 3 * 0.5)


def test_a_literal_rate_is_absolute_and_unscaled() -> None:
    phases = [{"epoch": 0, "optimizer": "SGD", "lr": 0.3}, {"epoch": 1.5, "lr": 0}, {"epoch": 2, "lr_factor": 0.5}]
    regime = regime_of(phases, lr=0.1, batches=8, warmup=1, epochs=4)
    assert [regime.learning_rate(e, 0) for e in (0.0, 0.5, 1.4, 1.5, 2.0)] == pytest.approx([0.3, 0.3, 0.3, 0.0, 0.4])


def test_phases_accumulate_and_apply_to_every_group() -> None:
    phases = [
        {"optimizer": "SGD", "lr": 0.3, "momentum": 0.9},
        {"epoch": 1, "weight_decay": 0.01},
        {"epoch": 2, "momentum": 0.5, "lr": 0.1},
    ]
    regime = regime_of(phases)
    params = parameters()
    optimizer = regime.build_optimizer(iter(params))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    seen = []
    for epoch in (0.0, 0.99, 1.0, 2.5):
        returned = regime.apply(optimizer, epoch, 0)
        for group in optimizer.param_groups:
            assert group["lr"] == returned
        seen.append([(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups])
    first, second, third = (0.3, 0.9, 0), (0.3, 0.9, 0.01), (0.1, 0.5, 0.01)
    assert seen == [[first] * 2, [first] * 2, [second] * 2, [third] * 2]


def test_the_first_phase_of_the_next_task_undoes_the_last_of_this_one() -> None:
    regime = regime_of([{"optimizer": "SGD", "lr": 0.3}, {"epoch": 5, "momentum": 0.9, "weight_decay": 0.1}])
    optimizer = regime.build_optimizer(parameters())
    regime.apply(optimizer, 6.0, 0)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    regime.apply(optimizer, 0.0, 0)
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["weight_decay"]) == (0, 0)


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ({"optimizer": "SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        ({"optimizer": "Adam", "lr": 0.1, "betas": [0.8, 0.9], "eps": 1e-5}, {"betas": (0.8, 0.9), "eps": 1e-5}),
        ({"optimizer": "AdamW", "lr": 0.1}, {"weight_decay": 0.01}),
        ({"optimizer": "RMSprop", "lr": 0.1, "alpha": 0.9, "momentum": 0.9}, {"alpha": 0.9, "momentum": 0.9}),
    ],
)
def test_each_optimizer_is_built_with_its_settings_and_steps(phase: dict, expected: dict) -> None:
    params = parameters()
    optimizer = regime_of([phase]).build_optimizer(params)
    assert type(optimizer).__name__ == phase["optimizer"]
    settings = {key: optimizer.param_groups[0][key] for key in expected}
    assert settings == expected
    step(optimizer, params, 1.0)
    assert all((parameter < 1).all() for parameter in params)


def wrapped_like_horovod(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Horovod's DistributedOptimizer is an object of a class derived on the fly, made of the groups alone."""

    def __init__(self: torch.optim.Optimizer, groups: list[dict]) -> None:  # noqa: N807
        super(type(self), self).__init__(groups)

    return type(type(optimizer).__name__, (type(optimizer),), {"__init__": __init__})(optimizer.param_groups)


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, wrapped_like_horovod])
@pytest.mark.parametrize(
    "phase",
    [
        {"optimizer": "SGD", "lr": 0.1, "momentum": 0.9},
        {"optimizer": "Adam", "lr": 0.1},
        {"optimizer": "AdamW", "lr": 0.1},
        {"optimizer": "RMSprop", "lr": 0.1, "momentum": 0.9},
    ],
)
def test_reset_leaves_no_trace_of_earlier_steps(phase: dict, wrap: object) -> None:
    """rehearsal.md 6.1-9: the reference's reset loads an aliased state, so that momentum survives."""
    regime = regime_of([phase])
    used_params, fresh_params = parameters(), parameters()
    used, fresh = (wrap(regime.build_optimizer(params)) for params in (used_params, fresh_params))
    for optimizer in (used, fresh):
        regime.apply(optimizer, 0.0, 0)
    for _ in range(3):
        step(used, used_params, 1.0)
    state = used.state
    Regime.reset(used)
    assert used.state is state
    assert not state
    for parameter in used_params:
        parameter.data.fill_(1.0)
    for optimizer, params in ((used, used_params), (fresh, fresh_params)):
        step(optimizer, params, -2.0)
    for a, b in zip(used_params, fresh_params, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_reset_starts_the_bias_correction_of_adam_anew(name: str) -> None:
    regime = regime_of([{"optimizer": name, "lr": 0.1}])
    params = parameters()
    optimizer = regime.build_optimizer(params)
    for gradient in (1.0, 1.0, 1.0):
        step(optimizer, params, gradient)
    assert [int(optimizer.state[parameter]["step"]) for parameter in params] == [3, 3]
    Regime.reset(optimizer)
    step(optimizer, params, 1.0)
    assert [int(optimizer.state[parameter]["step"]) for parameter in params] == [1, 1]


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([], ["no phases"]),
        ([{"epoch": 0, "lr": 0.1}], ["phase 0", "no optimizer", "SGD, Adam, AdamW, RMSprop"]),
        ([{"optimizer": "Adan"}], ["'Adan'", "did you mean 'Adam'"]),
        ([{"optimizer": ["SGD"]}], ["SGD", "choose one of"]),
        ([{**SGD, "momentun": 0.9}], ["'momentun'", "did you mean 'momentum'"]),
        ([{"optimizer": "Adam", "momentum": 0.9}], ["Adam", "'momentum'", "betas"]),
        ([SGD, {"epoch": 3, "optimizer": "Adam"}], ["phase 1", "from SGD to Adam"]),
        ([SGD, {"lr_factor": 0.5}], ["phase 1", "no epoch"]),
        ([{**SGD, "epoch": 2}], ["starts at epoch 2", "epoch 0"]),
        ([SGD, {"epoch": 5}, {"epoch": 4}], ["phase 2", "epoch 4", "sort"]),
        ([{**SGD, "lr": 0.1}], ["lr and lr_factor"]),
        ([{"optimizer": "SGD", "lr": "0.1"}], ["lr '0.1'"]),
        ([{"optimizer": "SGD", "lr": -0.1}], ["lr -0.1"]),
        ([{"optimizer": "SGD", "lr": float("nan")}], ["lr nan"]),
        ([{"optimizer": "SGD", "lr": True}], ["lr True"]),
        ([{**SGD, "momentum": -1}], ["phase 0", "SGD", "momentum"]),
        ([{**SGD, "momentum": "much"}], ["phase 0", "SGD"]),
        ([SGD, {"epoch": 1, "nesterov": True}], ["phase 1", "Nesterov"]),
        ([{"optimizer": "Adam", "betas": [0.9]}], ["betas [0.9]"]),
        ([{"optimizer": "Adam", "betas": 0.9}], ["betas 0.9"]),
        ([{"optimizer": "Adam", "betas": [0.9, 1.5]}], ["Adam", "1.5"]),
        ([{**SGD, "scaling": "liner"}], ["scaling 'liner'", "did you mean 'linear'", "capped, linear, none"]),
        ([{**SGD, "scaling": None}], ["scaling 'None'", "capped, linear, none"]),
        ([{**SGD, "warmup_from": 0}], ["warmup_from '0'", "lr, zero"]),
        ([{**SGD, "schedule": "cosin"}], ["schedule 'cosin'", "did you mean 'cosine'"]),
        ([{**SGD, "schedule": ["cosine"]}], ["schedule", "choose one of"]),
        ([{**SGD, "lr_min": 0.1}], ["lr_min", "'constant'", "it is for: cosine, triangular"]),
        ([{**SGD, "schedule": "cosine", "gamma": 0.1}], ["gamma", "'cosine'", "it is for: exp_range"]),
        ([{**SGD, "schedule": "cosine", "lr_min": "0"}], ["lr_min '0'", "number"]),
        ([{**SGD, "schedule": "cosine", "lr_min": 0.2}], ["lr_min 0.2", "'cosine'", "rate 0.1", "raise lr"]),
        ([{"optimizer": "SGD", "lr": 1e-5, "schedule": "cosine", "lr_min": 1e-4}], ["lr_min 0.0001", "rate 1e-05"]),
        ([{**SGD, "schedule": "triangular"}], ["'triangular' needs step_cycle_size above 0", "missing"]),
        ([{**SGD, "schedule": "triangular", "step_cycle_size": 0}], ["'triangular'", "step_cycle_size", "above 0"]),
        ([{**SGD, "schedule": "exp_range", "step_cycle_size": 9}], ["step_cycle_size and gamma", "gamma is missing"]),
        ([{"optimizer": "SGD", "lr": 0.1, "scaling": "none"}], ["lr and scaling", "absolute"]),
        ([{"optimizer": "SGD", "lr": 0.1, "warmup_from": "zero"}], ["lr and warmup_from", "absolute"]),
        # the reference's keys
        ([SGD, {"step": 100, "lr": 0.1}], ["phase 1", "'step'", "'epoch'", "fractional"]),
        ([{**SGD, "step_lambda": "lambda t: {'lr': 0.1 * t}"}], ["'step_lambda'", "name a 'schedule'"]),
        ([{**SGD, "execute": "print"}], ["'execute'", "not data"]),
        ([{**SGD, "lr_decay": 0.1}], ["'lr_decay'", "'lr_factor'", "'schedule'"]),
        ([{**SGD, "lr_decay_steps": 10}], ["'lr_decay_steps'", "'schedule'"]),
    ],
)
def test_mistakes_are_refused_in_one_line_before_any_training(phases: list[dict], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        regime_of(phases)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    with pytest.raises(UserError, match="warmup_epochs 5 is more than the 3 epochs"):
        regime_of([SGD], warmup=5, epochs=3)
    assert regime_of([SGD], warmup=3, epochs=3, batches=2).learning_rate(1.5, 0) == pytest.approx(0.15)
