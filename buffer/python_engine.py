"""The rehearsal engine in plain Python and torch: readable, portable, and what the C++ engine is checked against.

Everything happens inside `submit`, on the caller's thread: the insertion, then the draw for the next step. Its
behaviour therefore never depends on timing, with or without `deterministic`.
"""

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprise.buffer.exchange import fetch
from reprise.buffer.plan import plan_draws
from reprise.buffer.policies.random_words import Int64s
from reprise.buffer.schema import Columns, Empty, Estate, Prepared, Spec
from reprise.buffer.shard import Shard
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import PeerLost
from reprise.runtime.spans import KEPT, Spans

logger = logging.getLogger(__name__)


class PythonEngine:
    """One rank's engine. Not thread-safe: one caller. With scope global, `submit` is a collective."""

    name = "python"

    def __init__(self, spec: Spec, comm: Communicator) -> None:
        self.spec = spec
        self.shard = Shard(spec)
        self.step = 0
        self._comm = comm
        self._spans = Spans(kept=KEPT)
        self._alone = not spec.exchanges
        # (ranks, 2): samples stored and seen samples they stand for, as of the last submit.
        self._fill = np.zeros((spec.world_size, 2), dtype=np.int64)
        # A draw is delivered by the second wait() after its submit() was called, hence up to two at a time. A caller
        # that submits more often than it waits gets the latest ones.
        self._prepared: deque[Prepared] = deque(maxlen=2)
        self._started = False
        self._held: np.ndarray[Any, np.dtype[np.int64]] | None = None  # _fill, before another rank was lost

    @property
    def transport(self) -> str:
        """How samples of other ranks are read."""
        return "none" if self._alone else f"collectives ({self._comm.name}, {self._comm.backend})"

    @property
    def global_stored(self) -> int:
        """Samples on all ranks as of the last submit; scope local: a collective, as nothing else exchanges counts."""
        if self._alone and self.spec.world_size > 1 and self.spec.scope == "local":
            counts = self._comm.allgather(torch.tensor([self.shard.stored]), name="rehearsal.stored")
            return int(counts.sum())
        return int(self._fill[:, 0].sum())

    @property
    def stored(self) -> int:
        return self.shard.stored

    @property
    def submitted(self) -> int:
        return self.shard.submitted

    def class_counts(self) -> dict[int, int]:
        return self.shard.class_counts()

    def timings(self) -> dict[str, dict[str, float]]:
        return self._spans.stats()

    def recent_timings(self) -> dict[str, list[tuple[int, int]]]:
        return self._spans.recent()

    def submit(self, fields: Mapping[str, Tensor], y: Tensor, task: int | Tensor, copy: bool) -> None:
        """Insert a checked batch, then prepare the draws of the next step. Has read everything when it returns."""
        with self._spans.span("submit"):
            self.step += 1
            batch = {name: fields[name].detach().cpu().resolve_conj().resolve_neg() for name in self.spec.fields}
            batch["y"] = y.detach().cpu()
            batch["task"] = task if isinstance(task, Tensor) else torch.full((len(y),), task, dtype=torch.int64)
            with self._spans.span("insert"):
                self.shard.insert(batch, self.step)
            self.prepare()

    def drain(self) -> None:
        """Nothing to wait for: submit() has done it all."""

    def close(self) -> None:
        self.shard.columns.clear()

    def prepare(self) -> None:
        """Draw from the present contents. Collective with scope global."""
        try:
            self._prepared.append(self._draw())
        except PeerLost as error:
            # Collectives do not survive the loss of a rank, so all other ranks are out of reach, not only the dead.
            logger.error("rehearsal: %s; drawing from this rank's own %d samples now", error, self.shard.stored)
            self._alone, self._held = True, self._fill.copy()
            self._prepared.append(self._draw())

    def wait(self) -> Prepared:
        """The draws prepared one step ago; 0 rows at the first call, when there was no step yet."""
        with self._spans.span("wait"):
            pass  # everything has been done in submit()
        if not self._started:
            self._started = True
            return self._prepare(self.shard.gather(_NO_SLOTS), _NO_SLOTS, 0.0, (0,) * len(self.spec.draws))
        if not self._prepared:
            raise RuntimeError("wait() called twice without a submit() in between: no draw was asked for")
        return self._prepared.popleft()

    def versions(self) -> Int64s:
        """Per slot that holds a sample a number that changes whenever it is written."""
        return self.shard.versions[: self.shard.stored].astype(np.int64)

    def estates(self) -> list[Estate]:
        """What other ranks held before one was lost. Their samples are nowhere but in their processes."""
        return [
            Estate(rank, int(stored), int(mass), None, _NO_SLOTS, _NO_SLOTS.astype(np.float64))
            for rank, (stored, mass) in enumerate(self._fill if self._held is None else self._held)
            if rank != self.spec.rank
        ]

    def state_dict(self, slots: Int64s | None = None, empty: Empty | None = None) -> dict[str, Any]:
        """Everything that the next step depends on; of the samples only those in `slots`, if given, copied to `empty`
        columns.
        """
        return {
            "step": self.step,
            "started": self._started,
            "fill": torch.from_numpy(self._fill.copy()),
            "prepared": [
                {"sizes": list(draw.sizes), "columns": {name: value.clone() for name, value in draw.columns.items()}}
                for draw in self._prepared
            ],
            "shard": self.shard.state_dict(slots, empty),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])
        self._started = bool(state["started"])
        self._fill = state["fill"].numpy().copy()
        self._prepared.clear()
        for entry in state["prepared"]:
            columns = {name: value.clone() for name, value in entry["columns"].items()}
            self._prepared.append(Prepared(columns, 0, tuple(entry["sizes"])))
        self.shard.load_state_dict(state["shard"])

    def continue_from(self, shard_state: dict[str, Any], step: int) -> None:
        """Go on from resharded contents: a draw of the step before is made up, as none can be carried over."""
        self.step, self._started = step, True
        self.shard.load_state_dict(shard_state)
        self._prepared.clear()
        self.prepare()

    def _draw(self) -> Prepared:
        with torch.inference_mode(False), self._spans.span("plan"):  # draws are to be trained on
            own = torch.tensor([self.shard.stored, self.shard.policy.mass()])
            if self._alone:
                self._fill[:] = 0
                self._fill[self.spec.rank] = own.numpy()
            else:
                self._fill = self._comm.allgather(own, name="rehearsal.fill").numpy().copy()
            plan = plan_draws(self._fill[:, 0], self.spec.draws, self.step, self.shard.words)
        stored, mass = self._fill.sum(axis=0)
        with torch.inference_mode(False), self._spans.span("fetch"):
            rows = self.shard.gather(plan.slots) if self._alone else fetch(plan, self.shard, self._comm)
        return self._prepare(rows, plan.ranks, stored / max(mass, 1), plan.sizes)

    def _prepare(self, rows: Columns, ranks: Int64s, scale: float, sizes: tuple[int, ...]) -> Prepared:
        """Gathered rows as they are delivered: the weight is 1 on average over everything stored."""
        with torch.inference_mode(False):
            rows["weight"] = (rows.pop("inverse_inclusion") * scale).to(torch.float32)
        rows["rank"] = torch.from_numpy(ranks)
        return Prepared(rows, 0, sizes)


_NO_SLOTS = np.empty(0, dtype=np.int64)
