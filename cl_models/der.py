"""Der: dark experience replay. The network shall answer stored samples as it did when they were stored.

Buzzega et al. 2020, "Dark experience for general continual learning" (arXiv 2004.07211), equation 5, with the mean over
the logits' elements that their code computes.
"""

import torch
from torch import Tensor

from reprise.cl_models.base import DISTILLATION, STRATEGIES, Metrics, Parts
from reprise.cl_models.rehearsal import Rehearsal


@STRATEGIES.register("Der")
class Der(Rehearsal):
    """L = mean loss(new samples) + alpha * mean squared error(outputs for the draw, outputs stored with it)."""

    draws = (DISTILLATION,)
    stores_outputs = True
    hyperparameters = ("reset_state_dict", "alpha")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.alpha = float(parts.options["alpha"])

    def observe(self, x: Tensor, y: Tensor, task: int | None) -> Metrics:
        kept = self.keep(x)
        with self.parts.span("rehearsal"):
            (past,) = self.recall(task)
        assert past.outputs is not None
        store, rows, stored = self.storing(kept, y, task), len(y), past.outputs.numel()

        def loss(x: Tensor, y: Tensor, past_x: Tensor, past_outputs: Tensor) -> tuple[Tensor, Metrics]:
            outputs, again = self.forward_together(x, past_x)
            store(outputs)
            value, metrics = self.share_of_mean(outputs, y, rows)
            value = value + self.alpha * squared_error(again, past_outputs, stored)
            return value, {**metrics, "loss": value.detach()}

        y = y.to(self.parts.device, non_blocking=True)
        return self.parts.stepper.minimise(loss, kept, y, past.x, past.outputs)


def squared_error(outputs: Tensor, stored: Tensor, elements: int) -> Tensor:
    """What these outputs contribute to a mean over `elements` elements: 0, and never NaN, for an empty draw."""
    error: Tensor = torch.nn.functional.mse_loss(outputs, stored.float(), reduction="sum") / max(elements, 1)
    return error
