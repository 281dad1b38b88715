"""Derpp: dark experience replay with labels, DER++. Der, and a second, independent draw that is replayed as in Er.

Buzzega et al. 2020, "Dark experience for general continual learning" (arXiv 2004.07211), equation 6. Option joint_mean:
the form of Bouvier et al. 2024 (arXiv 2406.03285), where new and replayed samples share one mean, whatever beta.
"""

from torch import Tensor

from reprise.cl_models.base import DISTILLATION, REPLAY, STRATEGIES, Metrics, Parts
from reprise.cl_models.der import squared_error
from reprise.cl_models.rehearsal import Rehearsal


@STRATEGIES.register("Derpp")
class Derpp(Rehearsal):
    """L = mean loss(new samples) + alpha * mean squared error(draw 1) + beta * mean loss(draw 2).

    joint_mean: L = mean loss(new samples and draw 2) + alpha * mean squared error(draw 1).
    """

    draws = (DISTILLATION, REPLAY)
    stores_outputs = True
    hyperparameters = ("reset_state_dict", "alpha", "beta", "joint_mean")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.alpha = float(parts.options["alpha"])
        self.beta = float(parts.options["beta"])
        self.joint_mean = bool(parts.options.get("joint_mean", False))

    def observe(self, x: Tensor, y: Tensor, task: int | None) -> Metrics:
        kept = self.keep(x)
        with self.parts.span("rehearsal"):
            past, old = self.recall(task)
        assert past.outputs is not None
        store, stored = self.storing(kept, y, task), past.outputs.numel()
        new_rows, old_rows, beta = len(y), max(len(old.y), 1), self.beta
        if self.joint_mean:
            new_rows = old_rows = len(y) + len(old.y)
            beta = 1.0

        def loss(
            x: Tensor, y: Tensor, past_x: Tensor, past_outputs: Tensor, old_x: Tensor, old_y: Tensor
        ) -> tuple[Tensor, Metrics]:
            outputs, again, replayed = self.forward_together(x, past_x, old_x)
            store(outputs)
            value, metrics = self.share_of_mean(outputs, y, new_rows)
            value = value + self.alpha * squared_error(again, past_outputs, stored)
            value = value + beta * self.share_of_mean(replayed, old_y, old_rows)[0]
            return value, {**metrics, "loss": value.detach()}

        y = y.to(self.parts.device, non_blocking=True)
        return self.parts.stepper.minimise(loss, kept, y, past.x, past.outputs, old.x, old.y)
