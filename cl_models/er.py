"""Er: experience replay. Every step trains on the new samples together with representatives of everything stored.

Chaudhry et al. 2019, "On tiny episodic memories in continual learning" (arXiv 1902.10486), algorithm 1, with the memory
spread over all ranks (design of Bouvier et al. 2024, arXiv 2406.03285).
"""

from functools import partial

from torch import Tensor

from reprise.cl_models.base import REPLAY, STRATEGIES, Metrics
from reprise.cl_models.rehearsal import Rehearsal


@STRATEGIES.register("Er")
class Er(Rehearsal):
    """L = mean loss over the b new samples and the n <= r representatives."""

    draws = (REPLAY,)

    def rows(self, b: int) -> dict[str, Tensor] | None:
        # On a GPU the rows lie there, where no loader gathers to; views are made from the loaded samples.
        in_place = self.buffer.device.type == "cpu" and self.parts.stored == "raw" and not self.memorises
        return self.buffer.rows(b) if in_place else None

    def observe(self, x: Tensor, y: Tensor, task: int | None) -> Metrics:
        kept = self.keep(x)
        with self.parts.span("rehearsal"):
            batch = self.join(kept, y, task)
        with self.parts.span("transform"):
            inputs = self.inputs(batch.x)
        return self.parts.stepper.minimise(partial(self.mean_loss, rows=len(batch.y)), inputs, batch.y)
