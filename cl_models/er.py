"""Er: experience replay. Every step trains on the new samples together with representatives of everything stored.

Chaudhry et al. 2019, "On tiny episodic memories in continual learning" (arXiv 1902.10486), algorithm 1, with the memory
spread over all ranks (design of Bouvier et al. 2024, arXiv 2406.03285).
"""

from torch import Tensor

from reprise.buffer import RehearsalBuffer
from reprise.cl_models.base import STRATEGIES, Metrics, Parts
from reprise.cl_models.vanilla import Vanilla


@STRATEGIES.register("Er")
class Er(Vanilla):
    """L = mean cross-entropy over the b new samples and the n <= r representatives.

    Samples are stored raw and augmented anew at every replay, or as the network saw them (stored_augmented).
    """

    uses_buffer = True

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        assert parts.buffer is not None, "Er needs a rehearsal buffer"
        self._buffer: RehearsalBuffer = parts.buffer

    def rows(self, b: int) -> dict[str, Tensor] | None:
        # On a GPU the rows lie there, where no loader gathers to; augmented samples are made from the loaded ones.
        in_place = self._buffer.device.type == "cpu" and not self.parts.stored_augmented
        return self._buffer.rows(b) if in_place else None

    def observe(self, x: Tensor, y: Tensor, task: int) -> Metrics:
        if self.parts.stored_augmented:
            x = x.to(self.parts.device, non_blocking=True)
            x = self.training_inputs(x).to(self._buffer.fields["x"].dtype)
        with self.parts.span("rehearsal"):
            batch = self._buffer.augment(x=x, y=y, task=task)
        # Before replay is wanted the samples are stored all the same, and the draw is left unused.
        rows = len(batch) if task >= self.parts.replay_from_task else len(y)
        inputs = batch["x"][:rows]
        inputs = inputs.float() if self.parts.stored_augmented else self.training_inputs(inputs)
        return self.parts.stepper.minimise(self.mean_loss, inputs, batch["y"][:rows])
