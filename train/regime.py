"""Optimiser regimes: which optimiser, which learning rate and which hyper-parameters at which point of a task.

A regime is data: a list of phases such as backbone/ has as defaults and --optimizer-regime gives literally. main.py
makes one Regime per task, the loop applies it before every step. Knows nothing of networks or data.

A phase is a dictionary: `epoch` (of this task, may be fractional) where it starts, `optimizer`, `lr` (absolute and
unscaled) or `lr_factor` (multiple of the scaled base rate, with warm-up), hyper-parameters of the optimiser under
torch's names, and
  scaling      by what the base rate of one rank grows: "capped" (the default), "linear", "none"; see SCALING
  warmup_from  where the warm-up starts: "lr", the rate of one rank (the default), or "zero"
  schedule     the curve below that rate: "constant" (the default), "cosine", "triangular", "triangular2", "exp_range",
               with lr_min, step_cycle_size (samples over all ranks in half a cycle) and gamma; see train/schedule.py
Phases accumulate: a key holds until a later phase gives it anew; lr and lr_factor replace each other.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest
from reprise.train.schedule import SCHEDULES, Schedule

# The keys of a phase that are handed to the optimiser, by its name.
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "SGD": ("momentum", "dampening", "weight_decay", "nesterov"),
    "Adam": ("betas", "eps", "weight_decay", "amsgrad"),
    "AdamW": ("betas", "eps", "weight_decay", "amsgrad"),
    "RMSprop": ("alpha", "eps", "momentum", "weight_decay", "centered"),
}
# Rule -> the most that the base rate of one rank grows by. It grows with the batches whose mean gradient makes a step,
# over ranks and passes; Goyal et al. 2017 saw that hold up to 64 or so.
SCALING: dict[str, float] = {"capped": 64, "linear": math.inf, "none": 1}
WARMUP_FROM = ("lr", "zero")
SCHEDULE_KEYS = ("lr_min", "step_cycle_size", "gamma")
OWN_KEYS = ("epoch", "optimizer", "lr", "lr_factor", "scaling", "warmup_from", "schedule", *SCHEDULE_KEYS)

# Keys of the reference's phases, and of those it took them from, with what to write instead.
FOREIGN_KEYS = {
    "step": "phases start at an 'epoch', which may be fractional",
    "step_lambda": "functions are not data; name a 'schedule'",
    "execute": "functions are not data; set the keys themselves",
    "lr_decay": "give each rate as a phase with 'lr' or 'lr_factor', or name a 'schedule'",
    "lr_decay_rate": "give each rate as a phase with 'lr' or 'lr_factor', or name a 'schedule'",
    "lr_decay_steps": "give each rate as a phase with 'lr' or 'lr_factor', or name a 'schedule'",
}


@dataclass(frozen=True)
class _Phase:
    """One phase with all that it takes over from those before it. Exactly one of lr and lr_factor is set."""

    epoch: float
    optimizer: str
    lr: float | None
    lr_factor: float | None
    scaling: str
    warmup_from: str
    schedule: Schedule
    hyperparameters: dict[str, Any]


class Regime:
    """The phases of one task with `epochs` epochs.

    lr: base rate of one rank. batches_per_step: batches over all ranks whose mean gradient makes a step (batches per
    allreduce * ranks), which scales rates given as lr_factor. samples_per_step: samples over all ranks in a step; a
    cyclical rate goes by them. warmup_epochs: over these the rate rises to its scaled value by the same amount per step
    (Goyal et al. 2017, arXiv 1706.02677, section 2.2), counted in epochs of this very task. Raises UserError for phases
    that cannot work, before any training.
    """

    def __init__(
        self,
        phases: Sequence[Mapping[str, Any]],
        *,
        lr: float,
        batches_per_step: int,
        samples_per_step: int,
        warmup_epochs: float,
        epochs: int,
    ) -> None:
        if warmup_epochs > epochs:
            raise UserError(f"warmup_epochs {warmup_epochs} is more than the {epochs} epochs of a task; lower it")
        self._lr = _number("lr", lr, "the learning rate")
        self._batches_per_step = batches_per_step
        self._warmup_epochs = warmup_epochs
        self._phases = _accumulate(phases, warmup_epochs, epochs, samples_per_step)
        for index, phase in enumerate(self._phases):
            _try_out(phase, f"phase {index}")
            if phase.schedule.lr_min > (highest := self._peak(phase, epochs)):
                raise UserError(
                    f"lr_min {phase.schedule.lr_min:g} of the schedule '{phase.schedule.name}' is above the rate "
                    f"{highest:g} that it is the floor of; lower lr_min or raise lr"
                )

    def build_optimizer(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of the first phase, with that phase's rate at epoch 0."""
        first = self._phases[0]
        return _optimizer(first, list(params), self.learning_rate(0.0, 0))

    def apply(self, optimizer: torch.optim.Optimizer, epoch: float, step: int) -> float:
        """Set rate and hyper-parameters of every parameter group for this point of the task; returns the rate.

        A group's "lr_scale" multiplies its rate.

        epoch: fractional, epochs of the task finished plus the part of the current one that is done. step: steps of the
        whole run that are done, over all its tasks. Touches no tensor.
        """
        lr = self.learning_rate(epoch, step)
        settings = {**self._at(epoch).hyperparameters, "lr": lr}
        for group in optimizer.param_groups:
            group.update(settings)
            group["lr"] *= group.get("lr_scale", 1.0)
        return lr

    def learning_rate(self, epoch: float, step: int) -> float:
        """The rate at a fractional epoch of the task and a step of the whole run."""
        phase = self._at(epoch)
        return phase.schedule.rate(self._peak(phase, epoch), epoch, step)

    def _peak(self, phase: _Phase, epoch: float) -> float:
        """What the phase's schedule starts from or swings up to."""
        if phase.lr is not None:
            return phase.lr
        assert phase.lr_factor is not None
        scaled = self._lr * min(self._batches_per_step, SCALING[phase.scaling])
        if epoch < self._warmup_epochs:
            first = self._lr if phase.warmup_from == "lr" else 0.0
            scaled = first + (scaled - first) * epoch / self._warmup_epochs
        return scaled * phase.lr_factor

    @staticmethod
    def reset(optimizer: torch.optim.Optimizer) -> None:
        """Forget momentum and other running averages. In place: an engine's wrapper may hold the same dictionary."""
        optimizer.state.clear()

    def _at(self, epoch: float) -> _Phase:
        return [phase for phase in self._phases if phase.epoch <= epoch][-1]


def _accumulate(
    phases: Sequence[Mapping[str, Any]], warmup_epochs: float, epochs: int, samples_per_step: int
) -> list[_Phase]:
    if not phases:
        raise UserError("optimizer_regime has no phases; give at least one, e.g. [{'optimizer': 'SGD', 'lr': 0.1}]")
    merged: dict[str, Any] = {
        "epoch": 0,
        "lr_factor": 1.0,
        "scaling": "capped",
        "warmup_from": "lr",
        "schedule": "constant",
    }
    schedule_epoch = 0.0  # where the schedule that holds was named
    result: list[_Phase] = []
    for index, phase in enumerate(phases):
        where = f"optimizer_regime phase {index}"
        _check_keys(phase, merged, where, first=index == 0)
        if "lr" in phase:
            merged.pop("lr_factor", None)
        if "lr_factor" in phase:
            merged.pop("lr", None)
        merged = {**merged, **phase}
        numbers = {
            key: _number(key, merged[key], where)
            for key in ("epoch", "lr", "lr_factor", *SCHEDULE_KEYS)
            if key in merged
        }
        if index == 0 and numbers["epoch"] != 0:
            raise UserError(f"{where} starts at epoch {merged['epoch']}; the first phase must start at epoch 0")
        if result and numbers["epoch"] < result[-1].epoch:
            raise UserError(f"{where} starts at epoch {merged['epoch']}, before phase {index - 1}; sort them by epoch")
        if "schedule" in phase:
            schedule_epoch = numbers["epoch"]
        warm = 0.0 if "lr" in merged else warmup_epochs
        # Complete, torch's defaults included: applying a phase must leave nothing of the one applied before, which may
        # be the last of the task before.
        defaults = _defaults(merged["optimizer"])
        result.append(
            _Phase(
                numbers["epoch"],
                merged["optimizer"],
                numbers.get("lr"),
                numbers.get("lr_factor"),
                merged["scaling"],
                merged["warmup_from"],
                _schedule(merged["schedule"], numbers, max(schedule_epoch, warm), epochs, samples_per_step, where),
                {key: merged.get(key, value) for key, value in defaults.items()},
            )
        )
    return result


def _schedule(
    name: str, numbers: Mapping[str, float], start: float, epochs: int, samples_per_step: int, where: str
) -> Schedule:
    """The curve of a phase; `start`: the epoch from which a cosine falls."""
    needed = [key for key in SCHEDULES[name] if key != "lr_min"]
    for key in needed:
        if not numbers.get(key):
            raise UserError(f"{where}: schedule '{name}' needs {' and '.join(needed)} above 0; {key} is missing")
    return Schedule(
        name,
        lr_min=numbers.get("lr_min", 0.0) if "lr_min" in SCHEDULES[name] else 0.0,
        start=start,
        end=epochs,
        half_cycle=numbers.get("step_cycle_size", 0.0) / samples_per_step,
        gamma=numbers.get("gamma", 1.0),
    )


def _check_keys(phase: Mapping[str, Any], before: Mapping[str, Any], where: str, *, first: bool) -> None:
    """Raise UserError unless the phase names a known optimiser, the one so far, and only keys that have a meaning.

    before: what the phases before it have set.
    """
    settings = {**before, **phase}
    name, optimizer = settings.get("optimizer"), before.get("optimizer")
    if name is None:
        raise UserError(f"{where} names no optimizer; choose one of: {', '.join(HYPERPARAMETERS)}")
    choices: dict[str, Iterable[str]] = {
        "optimizer": HYPERPARAMETERS,
        "scaling": SCALING,
        "warmup_from": WARMUP_FROM,
        "schedule": SCHEDULES,
    }
    for key, names in choices.items():
        if settings[key] not in tuple(names):  # not only text may stand here
            hint = nearest(str(settings[key]), names)
            raise UserError(f"{where}: unknown {key} '{settings[key]}'{hint or ';'} choose one of: {', '.join(names)}")
    if optimizer is not None and name != optimizer:
        raise UserError(
            f"{where} changes the optimizer from {optimizer} to {name}; a run keeps one (its gradient averaging is "
            "set up once), only its settings may change"
        )
    known = (*OWN_KEYS, *HYPERPARAMETERS[name])
    for key in phase:
        if key in FOREIGN_KEYS:
            raise UserError(f"{where}: key '{key}' has no meaning here: {FOREIGN_KEYS[key]}")
        if key not in known:
            raise UserError(f"{where}: {name} has no key '{key}'{nearest(key, known)}; it takes: {', '.join(known)}")
        if key in SCHEDULE_KEYS and key not in SCHEDULES[settings["schedule"]]:
            users = ", ".join(schedule for schedule, keys in SCHEDULES.items() if key in keys)
            raise UserError(f"{where}: {key} has no meaning for schedule '{settings['schedule']}'; it is for: {users}")
    for key in ("lr_factor", "scaling", "warmup_from"):
        if "lr" in phase and key in phase:
            raise UserError(f"{where} has lr and {key}; keep one (lr is absolute, {key} is of the scaled base rate)")
    if not first and "epoch" not in phase:
        raise UserError(f"{where} has no epoch; say at which epoch of a task it starts")


def _number(key: str, value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"{where}: {key} {value!r} is not a number from 0; correct it")
    return float(value)


def _defaults(optimizer: str) -> dict[str, Any]:
    """Torch's values of the hyper-parameters that a phase may set."""
    defaults = getattr(torch.optim, optimizer)([nn.Parameter(torch.zeros(1))], lr=0.0).defaults
    return {key: defaults[key] for key in HYPERPARAMETERS[optimizer]}


def _try_out(phase: _Phase, where: str) -> None:
    """Let torch itself check types and ranges of the hyper-parameters."""
    betas = phase.hyperparameters.get("betas", (0.9, 0.999))
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise UserError(f"optimizer_regime {where}: betas {betas!r} is not a pair of numbers, e.g. [0.9, 0.999]")
    try:
        _optimizer(phase, [nn.Parameter(torch.zeros(1))], 0.0)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"optimizer_regime {where}: {phase.optimizer} refuses its settings ({error}); correct them"
        ) from error


def _optimizer(phase: _Phase, params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    constructor = getattr(torch.optim, phase.optimizer)
    optimizer: torch.optim.Optimizer = constructor(params, lr=lr, **phase.hyperparameters)
    return optimizer
