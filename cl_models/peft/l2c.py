"""L2c: experts that cooperate, chosen and weighed by a Selector.

"Learning to cooperate" (L2C) has an abstract and three documented commands, and its code is unreleased. Its selector is
selector.py. The aggregation of the k best experts follows from those commands; how experts are made to cooperate is our
own design: every expert's features shall be classifiable for samples of other tasks too, which a wrong choice shows it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from reprise.cl_models.base import STRATEGIES, Metrics
from reprise.cl_models.peft.hide import Hide
from reprise.cl_models.peft.tuned import Group


@STRATEGIES.register("L2c")
class L2c(Hide):
    """Hide with p(c | x) = sum_t w_t softmax(z_t)_c over the k tasks of most weight.

    With a rehearsal buffer, replayed samples go through the present task's expert, with their loss over all classes
    seen (weight: cooperation). Without one, a task's classes get statistics under the earlier experts as well, and the
    heads are aligned on features of them all (shared_statistics).
    """

    rehearses = True
    choices: ClassVar[Mapping[str, Any]] = {
        "inference": "topk",
        "topk_by": "task",
        "combine": "prob",
        "renormalise": True,
    }

    def groups(self, task: int) -> list[Group]:
        head, *module = super().groups(task)
        if self.buffer is not None and self.options["cooperation"]:
            head["params"] = self.heads.of([label for classes in self.classes for label in classes])
        return [head, *module]

    def joint_loss(
        self, x: Tensor, y: Tensor, old_x: Tensor, old_y: Tensor, rows: tuple[int, int]
    ) -> tuple[Tensor, Metrics]:
        value, metrics = self.task_loss(x, y, rows[0])
        replayed = self.parts.stepper.forward(old_x)
        value = value + self.options["cooperation"] * self.share_of_mean(replayed, old_y, max(rows[1], 1))[0]
        return value, {**metrics, "loss": value.detach()}

    def take_statistics(self, task: int, samples: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        super().take_statistics(task, samples)
        if self.buffer is None and self.options["shared_statistics"]:
            for expert in range(task):
                features, labels = self.features_of(samples(), expert)
                self.statistics.fit(features, labels, self.classes[task], expert=expert)
