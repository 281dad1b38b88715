"""The baselines of parameter-efficient continual learning: the head alone, one module for all tasks, one per task."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from reprise.cl_models.base import STRATEGIES, TaskLike
from reprise.cl_models.peft.tuned import Tuned

_SLOW = 1  # the module of Lae that follows


@STRATEGIES.register("HeadOnly")
class HeadOnly(Tuned):
    """The frozen backbone's features and a head per task."""

    def modules_of(self, task: int) -> int | None:
        return None


@STRATEGIES.register("SeqPeft")
class SeqPeft(Tuned):
    """One module that all tasks train in turn, at one learning rate, and nothing that keeps it from forgetting."""

    def modules_of(self, task: int) -> int | None:
        return 0


@STRATEGIES.register("Lae")
class Lae(SeqPeft):
    """SeqPeft and a copy of its module that follows it slowly, once per task; each class has the greater logit of both.

    Learning, accumulation, ensemble: Gao et al. 2023, arXiv 2303.10070, with any technique; the form is HiDe-PET's
    baseline of the type "momentum" (arXiv 2407.05229), whose copy moves after a task and not in every step.
    """

    def consolidate(self, task: TaskLike, samples: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        super().consolidate(task, samples)
        if _SLOW not in self.bank.tasks:
            self.bank.add(_SLOW, like=0)
        self.bank.average(_SLOW, 1 - self.options["ema"])

    def answers(self, x: Tensor) -> Tensor:
        logits = super().answers(x)
        if _SLOW not in self.bank.tasks:
            return logits
        self.bank.activate(_SLOW)
        return torch.maximum(logits, self.heads(self.features(x)))


@STRATEGIES.register("OraclePeft")
class OraclePeft(Tuned):
    """A module per task, and at evaluation the module of the sample's own task: what routing without a mistake gives.

    The class is still one of all that were seen.
    """

    told_task = True

    def modules_of(self, task: int) -> int | None:
        return task

    @torch.no_grad()
    def predict(self, x: Any, task: TaskLike | None = None) -> Tensor:
        with self.answering():
            known = task is not None and task.index in self.bank.tasks
            self.bank.activate(task.index if task is not None and known else None)
            return self.heads(self.features(self.parts.normalise(self.parts.view(x))))
