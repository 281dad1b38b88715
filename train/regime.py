"""Optimiser regimes: which optimiser, which learning rate and which hyper-parameters at which point of a task.

A regime is data: a list of phases such as backbone/ has as defaults and --optimizer-regime gives literally. main.py
makes one Regime per task, the loop applies it before every step. Knows nothing of networks, ranks or data.

A phase is a dictionary: `epoch` (of this task, may be fractional) where it starts, `optimizer`, `lr` (absolute and
unscaled) or `lr_factor` (multiple of the scaled base rate, with warm-up), and hyper-parameters of the optimiser under
torch's names. Phases accumulate: a key holds until a later phase gives it anew; lr and lr_factor replace each other.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest

# The keys of a phase that are handed to the optimiser, by its name.
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "SGD": ("momentum", "dampening", "weight_decay", "nesterov"),
    "Adam": ("betas", "eps", "weight_decay", "amsgrad"),
    "AdamW": ("betas", "eps", "weight_decay", "amsgrad"),
    "RMSprop": ("alpha", "eps", "momentum", "weight_decay", "centered"),
}
OWN_KEYS = ("epoch", "optimizer", "lr", "lr_factor")


@dataclass(frozen=True)
class _Phase:
    """One phase with all that it takes over from those before it. Exactly one of lr and lr_factor is set."""

    epoch: float
    optimizer: str
    lr: float | None
    lr_factor: float | None
    hyperparameters: dict[str, Any]


class Regime:
    """The phases of one task with `epochs` epochs.

    lr: base rate of one rank. scale: s = min(batches per allreduce * ranks, 64); rates given as lr_factor are
    multiples of lr * s. warmup_epochs: over these the rate rises from lr to lr * s (Goyal et al. 2017, arXiv
    1706.02677, section 2.2), counted in epochs of this very task. Raises UserError for phases that cannot work, before
    any training.
    """

    def __init__(
        self,
        phases: Sequence[dict[str, Any]],
        *,
        lr: float,
        scale: float,
        warmup_epochs: float,
        epochs: int,
    ) -> None:
        if warmup_epochs > epochs:
            raise UserError(f"warmup_epochs {warmup_epochs} is more than the {epochs} epochs of a task; lower it")
        self._lr = _number("lr", lr, "the learning rate")
        self._scale = scale
        self._warmup_epochs = warmup_epochs
        self._phases = _accumulate(phases)
        for index, phase in enumerate(self._phases):
            _try_out(phase, f"phase {index}")

    def build_optimizer(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of the first phase, with that phase's rate at epoch 0."""
        first = self._phases[0]
        return _optimizer(first, list(params), self.learning_rate(0.0))

    def apply(self, optimizer: torch.optim.Optimizer, epoch: float) -> float:
        """Set rate and hyper-parameters of every parameter group for this point of the task; returns the rate.

        epoch: fractional, epochs finished plus the part of the current one that is done. Touches no tensor.
        """
        lr = self.learning_rate(epoch)
        settings = {**self._at(epoch).hyperparameters, "lr": lr}
        for group in optimizer.param_groups:
            group.update(settings)
        return lr

    def learning_rate(self, epoch: float) -> float:
        """The rate at a fractional epoch of the task."""
        phase = self._at(epoch)
        if phase.lr is not None:
            return phase.lr
        assert phase.lr_factor is not None
        if epoch < self._warmup_epochs:
            # Goyal et al. 2017: from lr to lr * s, by a constant amount per step.
            peak = self._lr * (1 + epoch * (self._scale - 1) / self._warmup_epochs)
        else:
            peak = self._lr * self._scale
        return peak * phase.lr_factor

    @staticmethod
    def reset(optimizer: torch.optim.Optimizer) -> None:
        """Forget momentum and other running averages. In place: an engine's wrapper may hold the same dictionary."""
        optimizer.state.clear()

    def _at(self, epoch: float) -> _Phase:
        return [phase for phase in self._phases if phase.epoch <= epoch][-1]


def _accumulate(phases: Sequence[dict[str, Any]]) -> list[_Phase]:
    if not phases:
        raise UserError("optimizer_regime has no phases; give at least one, e.g. [{'optimizer': 'SGD', 'lr': 0.1}]")
    merged: dict[str, Any] = {"epoch": 0, "lr_factor": 1.0}
    result: list[_Phase] = []
    for index, phase in enumerate(phases):
        where = f"optimizer_regime phase {index}"
        _check_keys(phase, merged.get("optimizer"), where, first=index == 0)
        if "lr" in phase:
            merged.pop("lr_factor", None)
        if "lr_factor" in phase:
            merged.pop("lr", None)
        merged = {**merged, **phase}
        numbers = {key: _number(key, merged[key], where) for key in ("epoch", "lr", "lr_factor") if key in merged}
        if index == 0 and numbers["epoch"] != 0:
            raise UserError(f"{where} starts at epoch {merged['epoch']}; the first phase must start at epoch 0")
        if result and numbers["epoch"] < result[-1].epoch:
            raise UserError(f"{where} starts at epoch {merged['epoch']}, before phase {index - 1}; sort them by epoch")
        # Complete, torch's defaults included: applying a phase must leave nothing of the one applied before, which may
        # be the last of the task before.
        defaults = _defaults(merged["optimizer"])
        hyperparameters = {key: merged.get(key, value) for key, value in defaults.items()}
        result.append(
            _Phase(numbers["epoch"], merged["optimizer"], numbers.get("lr"), numbers.get("lr_factor"), hyperparameters)
        )
    return result


def _check_keys(phase: dict[str, Any], optimizer: str | None, where: str, *, first: bool) -> None:
    """Raise UserError unless the phase names a known optimiser, the one so far, and only keys that this one takes."""
    name = phase.get("optimizer", optimizer)
    if name is None:
        raise UserError(f"{where} names no optimizer; choose one of: {', '.join(HYPERPARAMETERS)}")
    if name not in tuple(HYPERPARAMETERS):  # not only text may stand here
        hint = nearest(str(name), HYPERPARAMETERS)
        raise UserError(f"{where}: unknown optimizer '{name}'{hint}; choose one of: {', '.join(HYPERPARAMETERS)}")
    if optimizer is not None and name != optimizer:
        raise UserError(
            f"{where} changes the optimizer from {optimizer} to {name}; a run keeps one (its gradient averaging is "
            "set up once), only its settings may change"
        )
    known = (*OWN_KEYS, *HYPERPARAMETERS[name])
    for key in phase:
        if key not in known:
            raise UserError(f"{where}: {name} has no key '{key}'{nearest(key, known)}; it takes: {', '.join(known)}")
    if "lr" in phase and "lr_factor" in phase:
        raise UserError(f"{where} has lr and lr_factor; keep one (lr is absolute, lr_factor of the scaled base rate)")
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
