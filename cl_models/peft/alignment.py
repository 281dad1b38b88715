"""Classifier alignment: a head is trained anew on pseudo-features of all classes seen, old and new alike.

HiDe-PET's task-adaptive prediction (arXiv 2407.05229) and the second stage of SLCA (arXiv 2303.05118) and SLCA++. Not
here: features, statistics (statistics.py), and whether the next task goes on from the aligned head.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from reprise.cl_models.peft.statistics import ClassStatistics
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import SharedUserError

Rows = tuple[Tensor, Tensor]

_LOG_OF_ZERO = math.log(1e-4)  # what stands for log 0 in the reverse cross-entropy


@dataclass(frozen=True)
class Alignment:
    """How a head is aligned; the defaults are HiDe-PET's. The lr falls by cosine over epochs.

    optimizer: "sgd", with momentum, or "adamw", which HiDe-PET takes for MAE and BEiT. batch: pseudo-features per rank
    and step. steps_per_epoch: None for as many as there are classes. logit_norm: SLCA's temperature tau, see
    logit_normalised(). Raises UserError for a value out of range.
    """

    epochs: int = 30
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 5e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 120
    steps_per_epoch: int | None = None
    logit_norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "steps_per_epoch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SharedUserError(f"alignment: {name}={value}; it has to be 1 or more")
        for name in ("lr", "logit_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SharedUserError(f"alignment: {name}={value}; it has to be above 0")


def align(
    head: nn.Module,
    stats: ClassStatistics,
    classes: Sequence[int],
    settings: Alignment,
    *,
    comm: Communicator,
    generator: torch.Generator,
    task_of: Mapping[int, int] | None = None,
    mean_scale: Callable[[int], float] | None = None,
    feature_scale: Callable[[int], float] | None = None,
    extra: Rows | None = None,
) -> float:
    """Train `head`, (n, d) to logits (n, C), on what `stats` draws of `classes`; returns the last epoch's mean loss.

    A collective: gradients are means over all rows of all ranks, so a head that starts the same everywhere stays so.
    Trains what requires a gradient. generator: this rank's own, on the head's device; with the same one on all ranks
    they would all draw the same features. classes: those seen, the same on every rank.

    task_of: class to task, which the next three go by. mean_scale: task to the factor of a class's mean before drawing
    (slca_mean_scale). feature_scale: task to the factor of its classes' features (slca_feature_scale). logit_norm.
    extra: this rank's real features (m, d) and labels (m,) of `classes`, every one in one step of each epoch, beside
    the pseudo-features; m may differ between ranks.
    """
    device = generator.device
    columns = torch.tensor(classes, device=device)
    place = torch.full((max(classes) + 1,), -1, device=device)
    place[columns] = torch.arange(len(classes), device=device)
    tasks = [0 if task_of is None else task_of[label] for label in classes]
    assert task_of is not None or (mean_scale, feature_scale, settings.logit_norm) == (None, None, None)
    assert extra is None or torch.isin(extra[1].to(device), columns).all(), "extra: labels that are not in `classes`"
    groups = [
        torch.tensor([c for c, of in zip(classes, tasks, strict=True) if of == task], device=device)
        for task in sorted(set(tasks))
    ]
    factors = torch.tensor([1.0 if feature_scale is None else feature_scale(task) for task in tasks], device=device)
    shifts = None
    if mean_scale is not None:
        means = [(mean_scale(task) - 1) * stats.mean(label) for label, task in zip(classes, tasks, strict=True)]
        shifts = torch.stack(means).float().to(device)

    def losses(x: Tensor, y: Tensor) -> Tensor:
        logits = head(x * factors[place[y], None])
        if settings.logit_norm is not None:
            logits = logit_normalised(logits, groups, settings.logit_norm)
        return functional.cross_entropy(logits[:, columns], place[y], reduction="none")

    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    sizes = [parameter.numel() for parameter in parameters]
    optimizer = _optimizer(parameters, settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    for _ in range(settings.epochs):
        seen = torch.zeros(2, device=device)
        for x, y in _batches(stats, classes, settings, generator, shifts, extra):
            loss = losses(x, y).sum()
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            own = [
                *(gradient.flatten() for gradient in gradients),
                torch.stack([loss.detach(), loss.new_tensor(len(y))]),
            ]
            total = comm.allreduce(torch.cat(own), op="sum", name="alignment")
            *summed, sums = total.split([*sizes, 2])
            for parameter, gradient in zip(parameters, summed, strict=True):
                parameter.grad = gradient.view_as(parameter) / sums[1]
            optimizer.step()
            seen += sums
        schedule.step()
    stats.forget_copies()
    return float(seen[0] / seen[1])


def _optimizer(parameters: list[nn.Parameter], settings: Alignment) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def _batches(
    stats: ClassStatistics,
    classes: Sequence[int],
    settings: Alignment,
    generator: torch.Generator,
    shifts: Tensor | None,
    extra: Rows | None,
) -> Iterator[Rows]:
    """One epoch of this rank: rounds of all classes, cut into batches. Two classes differ by at most two in a batch.

    Drawn together: a class's covariance is then read once per epoch, and not once per step.
    """
    device = generator.device
    steps = settings.steps_per_epoch or len(classes)
    rounds = math.ceil(steps * settings.batch / len(classes))
    x, y = stats.sample(classes, rounds, generator)
    if shifts is not None:
        x += shifts.repeat_interleave(rounds, dim=0)
    # Each round is in an order of its own.
    order = torch.rand((rounds, len(classes)), generator=generator, device=device).argsort(dim=1) * rounds
    order += torch.arange(rounds, device=device)[:, None]
    drawn = order.flatten()[: steps * settings.batch].split(settings.batch)
    if extra is None:
        yield from ((x[rows], y[rows]) for rows in drawn)
        return
    real_x, real_y = extra[0].to(device, x.dtype), extra[1].to(device)
    shares = torch.randperm(len(real_y), generator=generator, device=device).tensor_split(steps)
    for rows, real in zip(drawn, shares, strict=True):
        yield torch.cat([x[rows], real_x[real]]), torch.cat([y[rows], real_y[real]])


def sce(logits: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    """Per-sample symmetric cross-entropy (n,): a CE(y, p) + b CE(p, y), with log 0 = log 1e-4 (Wang et al. 2019).

    SLCA++ takes (a, b) = (1, 0.1) or (0.5, 0.5). The reverse term is -log(1e-4) (1 - p_y): y is one-hot, log 1 = 0.
    """
    log_p = logits.log_softmax(dim=1).gather(1, y[:, None])[:, 0]
    return -a * log_p - b * _LOG_OF_ZERO * (1 - log_p.exp())


def logit_normalised(logits: Tensor, groups: Sequence[Tensor], tau: float) -> Tensor:
    """Logits z (n, C) as z / (tau * mean over tasks of ||z_task||_2), SLCA. groups: the columns of each task, int64."""
    norms = torch.stack([logits[:, columns].norm(dim=1) for columns in groups]) + 1e-7
    return logits / (norms.mean(dim=0)[:, None] * tau)


def slca_mean_scale(current: int) -> Callable[[int], float]:
    """SLCA's factor of a task's class means, when `current` is the newest: 0.9 + 0.1 (task + 1) / (current + 1)."""
    return lambda task: 0.9 + 0.1 * (task + 1) / (current + 1)


def slca_feature_scale(current: int, strength: float = 0.02) -> Callable[[int], float]:
    """SLCA++'s factor of a task's features, when `current` is the newest: 1 / (1 + strength * (current - task))."""
    return lambda task: 1 / (1 + strength * (current - task))
