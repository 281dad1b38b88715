"""The baselines of parameter-efficient continual learning: the head alone, one module for all tasks, one per task."""

from typing import Any

import torch
from torch import Tensor

from reprise.cl_models.base import STRATEGIES, TaskLike
from reprise.cl_models.peft.tuned import Tuned


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
