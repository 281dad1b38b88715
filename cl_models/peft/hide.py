"""Hide: HiDe-PET's second stage, a module per task and the Selector's word on which one a sample needs.

Wang et al. 2024, "HiDe-PET: continual learning via hierarchical decomposition of parameter-efficient tuning"
(arXiv 2407.05229), and HiDe-Prompt (arXiv 2310.07234) with the technique prefix.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reprise.cl_models.base import STRATEGIES, Metrics, Parts, TaskLike
from reprise.cl_models.peft.router import (
    aggregate,
    confidence_rematch,
    direct_rematch,
    predicted_task,
    task_weights,
    tii_plus_tap,
)
from reprise.cl_models.peft.selector import TrainedSelector
from reprise.cl_models.peft.tuned import Tuned
from reprise.runtime.errors import SharedUserError

_TEMPERATURE = 0.8  # of the contrastive term
_MOMENTUM = {"prefix": 0.01, "prompt": 0.01, "lora": 0.1, "adapter": 0.1}


@STRATEGIES.register("Hide")
class Hide(Tuned):
    """Within-task prediction: cross-entropy and a contrastive term against the prototypes of earlier classes; then the
    module is mixed with the earlier ones, statistics are taken under it, and the heads aligned.
    """

    keeps_statistics = True
    own_classes = True
    needs_selector = True
    rehearses = False

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.selector = TrainedSelector(parts)
        self._prototypes: list[Tensor] = []
        self._labels = torch.empty(0, dtype=torch.int32)  # of their rows
        self._features: Tensor | None = None
        self._mixed = 0  # tasks whose modules have been mixed with the earlier ones
        # The loss needs what the head sees, and the stepper gives what the head says.
        self.heads.register_forward_pre_hook(self._take_features)

    def modules_of(self, task: int) -> int | None:
        return task

    def train(self, task: int) -> None:
        super().train(task)
        self._prototypes = []
        if self.options["reg"]:
            means, labels = self.statistics.prototypes()
            self._prototypes = [some.to(self.parts.device) for some in means]
            self._labels = labels.to(self.parts.device)

    def task_loss(self, x: Tensor, y: Tensor, rows: float) -> tuple[Tensor, Metrics]:
        value, metrics = super().task_loss(x, y, rows)
        if not self.options["reg"]:
            return value, metrics
        features = self._features
        assert features is not None
        self.forget_features()
        # Joined in every step: kept, they would be as large as the statistics that they are of.
        means = torch.cat([features.new_empty((0, features.shape[1])), *self._prototypes])
        form = contrast_as_released if self.options["contrast"] == "code" else contrast
        term = form(features, y, means, self._labels) * (len(y) / rows)
        value = value + self.options["reg"] * term
        return value, {**metrics, "loss": value.detach()}

    def consolidate(self, task: TaskLike, samples: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        momentum = self.options["momentum"]
        if self._mixed == task.index:  # and not when a rank was lost during what follows, and it is done again
            self.bank.average(task.index, _MOMENTUM[self.options["technique"]] if momentum is None else momentum)
            self._mixed += 1
        super().consolidate(task, samples)

    def answers(self, x: Tensor) -> Tensor:
        self.bank.activate(None)
        if not self.classes:
            return self.heads(self.features(x))
        self.selector.as_after(len(self.classes) - 1, self.classes[-1])
        first = self.selector.logits(x)
        experts = partial(self._expert, x)
        self.routed = predicted_task(first, self.classes)
        rows = torch.arange(len(x), device=x.device)
        inference = self.options["inference"]
        if inference in ("topk", "topp"):
            weights = task_weights(
                first,
                self.classes,
                by=self.options["topk_by"],
                k=self.options["topk"],
                p=self.options["topp"] if inference == "topp" else None,
                temperature=self.options["temperature"],
                renormalise=self.options["renormalise"],
            )
            self.routed = weights.argmax(dim=1)
            return aggregate(weights, experts, combine=self.options["combine"])
        logits = experts(self.routed, rows)
        if inference == "tii+tap":
            return tii_plus_tap(first, logits)
        if inference == "rematch":
            self.routed, logits = direct_rematch(self.routed, logits, experts, self.classes)
            best = task_weights(first, self.classes, by="task").topk(min(2, len(self.classes)), dim=1).indices
            self.routed, logits = confidence_rematch(self.routed, logits, experts, best, self.classes)
        return logits

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "selector": self.selector.digest, "mixed": self._mixed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["selector"] != self.selector.digest:
            raise SharedUserError(
                "peft_config selector: the checkpoint was made with another run of Selector; name the folder of that "
                "one"
            )
        super().load_state_dict(state)
        self._mixed = state["mixed"]

    def _expert(self, x: Tensor, tasks: Tensor, rows: Tensor) -> Tensor:
        self.bank.activate(tasks)
        logits: Tensor = self.heads(self.features(x[rows]))
        return logits

    def forget_features(self) -> None:
        """Let go of what the head has seen, which has a graph with it."""
        self._features = None

    def _take_features(self, module: Any, inputs: tuple[Tensor]) -> None:
        self._features = inputs[0] if self.network.training and self.options["reg"] else None


def contrast(features: Tensor, y: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    """Features (n, d) of a batch pushed from those of its other classes and from prototypes (m, d) of earlier ones.

    mean_i -log( exp(h_i.h_i / tau) / sum_j exp(h_i.h_j / tau) ), j over the batch and the prototypes without those of
    i's own class but i itself; h of unit length, tau 0.8. Our form of HiDe-PET's term: the released one
    (contrast_as_released) pushes samples of a class from each other as well, at whatever length features have.
    """
    h = functional.normalize(features.float(), dim=1)
    others = torch.cat([h, functional.normalize(prototypes.float(), dim=1)])
    similar = h @ others.T / _TEMPERATURE
    same = y[:, None] == torch.cat([y, labels])
    same[:, : len(y)].fill_diagonal_(False)
    itself = torch.arange(len(y), device=y.device)
    return functional.cross_entropy(similar.masked_fill(same, -torch.inf), itself)


def contrast_as_released(features: Tensor, y: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    """Every prototype and feature must be like itself alone: cross-entropy of M M^T / tau against the identity."""
    m = torch.cat([prototypes.float(), features.float()])
    return functional.cross_entropy(m @ m.T / _TEMPERATURE, torch.arange(len(m), device=m.device))
