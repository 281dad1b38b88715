"""Vanilla: stochastic gradient descent on each task's own data, no rehearsal. The baselines are made of it.

Incremental: as it is. From scratch: reset_state_dict with concatenated tasksets. Transfer: concatenated tasksets alone.
"""

import copy
from functools import partial
from typing import Any

from torch import Tensor

from reprise.cl_models.base import STRATEGIES, ContinualModel, Metrics, Parts, TaskLike


@STRATEGIES.register("Vanilla")
class Vanilla(ContinualModel):
    """L = mean loss of the batch. Option reset_state_dict: every task starts from the initial weights."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._reset = bool(parts.options.get("reset_state_dict", False))
        # Taken after rank 0's weights reached all ranks, so that they still agree after a reset.
        self._initial = copy.deepcopy(self.network.state_dict()) if self._reset else {}

    def begin_task(self, task: TaskLike | None) -> None:
        super().begin_task(task)
        if self._reset:
            self.network.load_state_dict(self._initial)

    def observe(self, x: Any, y: Tensor, task: int | None) -> Metrics:
        with self.parts.span("transform"):
            x = self.training_inputs(x.to(self.parts.device, non_blocking=True))
            y = y.to(self.parts.device, non_blocking=True)
        return self.parts.stepper.minimise(partial(self.mean_loss, rows=len(y)), x, y)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "initial": self._initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._initial = state["initial"]
