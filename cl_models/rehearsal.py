"""What strategies with a memory share: which form of a sample is kept, what comes back, from which task on.

No strategy itself. The buffer's fields are "x"; "target" where samples are reconstructed instead of classified (all
their labels are 0); "logits", the network's outputs, for strategies that store them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reprise.buffer import RehearsalBuffer
from reprise.cl_models.base import Parts
from reprise.cl_models.vanilla import Vanilla


class Rows(NamedTuple):
    """n samples: x as kept, y labels (n,) or targets (n, *target_shape), outputs as stored, None where they are not."""

    x: Tensor
    y: Tensor
    outputs: Tensor | None = None


class Rehearsal(Vanilla):
    """A strategy with a rehearsal buffer. "Kept" is the form in which a sample is stored (Parts.stored)."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        assert parts.buffer is not None, f"{type(self).__name__} needs a rehearsal buffer"
        self.buffer: RehearsalBuffer = parts.buffer
        self._reconstructs = "target" in self.buffer.fields

    def keep(self, x: Tensor) -> Tensor:
        """Raw samples in the form that is stored; on the device, unless they stay raw."""
        if self.parts.stored == "raw":
            return x
        view = self.parts.augment(x.to(self.parts.device, non_blocking=True), self.parts.augment_rng)
        return view if self.parts.stored == "views" else self.parts.normalise(view).to(self.buffer.fields["x"].dtype)

    def inputs(self, kept: Tensor) -> Any:
        """Kept samples as float32 network inputs on the device; raw ones are augmented here."""
        kept = kept.to(self.parts.device, non_blocking=True)
        if self.parts.stored == "raw":
            return self.training_inputs(kept)
        return self.parts.normalise(kept) if self.parts.stored == "views" else kept.float()

    def rehearses(self, kind: str, task: int | None) -> bool:
        """Whether draws of a kind are trained on by now, on all ranks alike; in a task-free stream from the start."""
        return task is None or task >= self.parts.first_task.get(kind, 0)

    def recall(self, task: int | None) -> list[Rows]:
        """One draw of each kind, prepared during the last step; 0 rows of a kind whose time has not come."""
        drawn = self.buffer.wait()
        recalled = []
        for kind, draw in zip(self.draws, drawn, strict=True):
            n = len(draw) if self.rehearses(kind, task) else 0
            outputs = draw["logits"][:n] if self.stores_outputs else None
            recalled.append(Rows(draw["x"][:n], draw[self.label][:n], outputs))
        return recalled

    def submit(self, kept: Tensor, y: Tensor, task: int | None, outputs: Tensor | None = None) -> None:
        """Ask for the next draws; offer new samples, with outputs where these are stored, if it is time for it."""
        if self.memorises:
            kept, y, outputs = kept[:0], y[:0], None if outputs is None else outputs[:0]
        self._offer(kept, y, task, outputs)

    @property
    def memorises(self) -> bool:
        return self.parts.insertion == "task"

    @torch.no_grad()
    def memorise(self, x: Tensor, y: Tensor, task: int) -> None:
        kept = self.keep(x)
        outputs = self.parts.stepper.forward(self.inputs(kept)) if self.stores_outputs else None
        self.buffer.wait()
        self._offer(kept, y, task, outputs)

    def _offer(self, kept: Tensor, y: Tensor, task: int | None, outputs: Tensor | None) -> None:
        columns = self._columns(kept, y)
        if outputs is not None:
            columns["logits"] = outputs.to(self.buffer.fields["logits"].dtype)
        self.buffer.submit(y=columns.pop("y"), task=task, copy=False, **columns)

    def join(self, kept: Tensor, y: Tensor, task: int | None) -> Rows:
        """recall() and submit() in one, for strategies with one draw: the new samples, then those recalled."""
        if self.memorises:
            (old,) = self.recall(task)
            joined = Rows(torch.cat([kept.to(old.x.device), old.x]), torch.cat([y.to(old.y.device), old.y]))
            self.submit(kept, y, task)
            return joined
        batch = self.buffer.augment(**self._columns(kept, y), task=task)
        # Before replay is wanted the samples are stored all the same, and the draw is left unused.
        n = len(batch) if self.rehearses(self.draws[0], task) else len(y)
        return Rows(batch["x"][:n], batch[self.label][:n])

    def forward_together(self, *kept: Tensor) -> tuple[Tensor, ...]:
        """Outputs for several sets of kept samples from one forward pass: batch statistics are those of all rows."""
        outputs: Tensor = self.parts.stepper.forward(self.inputs(torch.cat(kept)))
        return outputs.split([len(rows) for rows in kept])

    def storing(self, kept: Tensor, y: Tensor, task: int | None) -> Callable[[Tensor], None]:
        """A function that takes the outputs for `kept`, pass by pass, and submits once it has them all.

        Outputs exist only after the forward pass; called there, the engine's work hides behind backward and update.
        """
        passes: list[Tensor] = []

        def store(outputs: Tensor) -> None:
            passes.append(outputs.detach())
            if sum(map(len, passes)) == len(y):
                self.submit(kept, y, task, torch.cat(passes))

        return store

    @property
    def label(self) -> str:
        return "target" if self._reconstructs else "y"

    def _columns(self, kept: Tensor, y: Tensor) -> dict[str, Tensor]:
        if self._reconstructs:
            return {"x": kept, "target": y, "y": torch.zeros(len(y), dtype=torch.int64)}
        return {"x": kept, "y": y}
