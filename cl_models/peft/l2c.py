"""L2c: experts that cooperate, chosen and weighed by a Selector.

"Learning to cooperate" (L2C) has an abstract and three documented commands, and its code is unreleased. Its selector is
selector.py. The aggregation of the k best experts follows from those commands; how experts are made to cooperate is our
own design: every expert's features shall be classifiable for samples of other tasks too, which a wrong choice shows it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from reprise.cl_models.base import STRATEGIES, Metrics
from reprise.cl_models.peft.hide import Hide
from reprise.cl_models.peft.tuned import Group


@STRATEGIES.register("L2c")
class L2c(Hide):
    """Hide with p(c | x) = sum_t w_t softmax(z_t)_c over the k tasks of most weight.

    With a rehearsal buffer, replayed samples of other tasks go through the present task's expert, with their loss over
    all classes seen (weight: cooperation). Without one, a task's classes get statistics under the earlier experts as
    well, and the heads are aligned on features of them all (shared_statistics).
    """

    rehearses = True
    choices: ClassVar[Mapping[str, Any]] = {
        **Hide.choices,
        "inference": "topk",
        "topk_by": "task",
        "combine": "prob",
        "renormalise": True,
    }

    def groups(self, task: int) -> list[Group]:
        head, *module = super().groups(task)
        if self.replays and self.options["cooperation"]:
            head["params"] = self.heads.of([label for classes in self.classes for label in classes])
        return [head, *module]

    def joint_loss(
        self, x: Tensor, y: Tensor, old_x: Tensor, old_y: Tensor, old_task: Tensor, rows: tuple[int, int]
    ) -> tuple[Tensor, Metrics]:
        value, metrics = self.task_loss(x, y, rows[0])
        present = len(self.classes) - 1
        if not present:
            return value, metrics  # everything stored is of this task
        losses = self.per_sample(self.parts.stepper.forward(old_x), old_y) * (old_task != present)
        self.forget_features()
        value = value + self.options["cooperation"] * losses.sum() / rows[1]
        return value, {**metrics, "loss": value.detach()}

    def modules_seen(self, task: int) -> Sequence[int | None]:
        """Without replay, the earlier ones as well."""
        shared = self.options["shared_statistics"] and not self.replays
        return range(task + 1) if shared else super().modules_seen(task)
