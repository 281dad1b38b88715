"""Agem: averaged gradient episodic memory. A step may not increase the loss on what the memory holds.

Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM" (arXiv 1812.00420), equation 11. Over several ranks both
gradients are averaged first, so that every rank projects the same vectors: the update is that of one process with the
joined batches.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reprise.cl_models.base import REPLAY, STRATEGIES, Metrics
from reprise.cl_models.rehearsal import Rehearsal


@STRATEGIES.register("Agem")
class Agem(Rehearsal):
    """g: gradient of the mean loss on the new samples, r: on the representatives. Where g.r < 0, g -= (g.r / r.r) r.

    Two forward and two backward passes per step. Metric "projected": the share of steps in which g was changed.
    """

    draws = (REPLAY,)
    changes_gradients = True

    def observe(self, x: Tensor, y: Tensor, task: int | None) -> Metrics:
        kept, stepper = self.keep(x), self.parts.stepper
        with self.parts.span("rehearsal"):
            (old,) = self.recall(task)
            self.submit(kept, y, task)
        y = y.to(self.parts.device, non_blocking=True)
        own_loss = partial(self.mean_loss, rows=len(y))
        if not self.rehearses(REPLAY, task):
            return stepper.minimise(own_loss, self._transformed(kept), y)
        # Ranks need not have drawn equally much, but must average equally often: a rank without a draw gives zeros.
        old_rows = len(old.y) or math.inf
        old_x, old_y = (old.x, old.y) if len(old.y) else (kept, y)
        with stepper.averaged(partial(self.mean_loss, rows=old_rows), self._transformed(old_x), old_y):
            reference = self._gradients()
        with stepper.averaged(own_loss, self._transformed(kept), y) as metrics:
            projected = project(self._gradients(), reference)
            stepper.update()
        return {**metrics, "projected": projected}

    def _transformed(self, kept: Tensor) -> Any:
        with self.parts.span("transform"):
            return self.inputs(kept)

    def _gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.network.parameters()]


@torch.no_grad()
def project(gradients: Sequence[Tensor | None], reference: Sequence[Tensor | None]) -> Tensor:
    """Take from the gradients, in place, what opposes the reference; returns 1.0 where something was taken, else 0.0.

    Decided on the device, so that no GPU is waited for. The result is the same however the reference is scaled, and
    scales with the gradients: under float16 both may still carry the loss scale, and an overflow in either one reaches
    the check that skips the step.
    """
    pairs = [(g, r) for g, r in zip(gradients, reference, strict=True) if r is not None]
    nothing = torch.zeros((), device=pairs[0][1].device)
    dot = _total([nothing if g is None else _dot(g, r) for g, r in pairs])
    # Where asking costs nothing: two thirds of the arithmetic are for the steps that project.
    if dot.device.type == "cpu" and 0 <= dot < math.inf:
        return nothing
    square = _total([_dot(r, r) for _, r in pairs])
    # No reference yet: 0 / tiny instead of 0 / 0.
    factor = dot.clamp(max=0) / square.clamp(min=torch.finfo(square.dtype).tiny)
    for g, r in pairs:
        if g is not None:
            g.addcmul_(r, factor, value=-1)
    return (dot < 0).float()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # A product that is summed up at once: one as large as the gradients takes longer to fill than to compute.
    return torch.dot(a.flatten(), b.flatten())


def _total(products: list[Tensor]) -> Tensor:
    return torch.stack(products).sum()
