"""Reservoir: after n samples submitted on a rank each of them is stored with probability share / n.

Algorithm R (Vitter 1985, "Random sampling with a reservoir"), extended to batches of which only m of b are offered:
such a candidate stands for b / m samples and is accepted with b / m times the probability, which keeps every submitted
sample equally likely. While the share still has room every candidate is stored, so a batch of another size that comes
then (with m < b) keeps its own m / b.
"""

from typing import Any

import numpy as np

from reprise.buffer.policies.base import Float64s, last_writes, split_counts
from reprise.buffer.policies.random_words import INSERT, Int64s, RandomWords, below


class Reservoir:
    """See Policy. `submitted` counts this rank's samples, candidates or not."""

    def __init__(self, share: int) -> None:
        self.share = share
        self.stored = 0
        self.submitted = 0

    def insert(self, labels: Int64s, batch_size: int, step: int, words: RandomWords) -> tuple[Int64s, Int64s]:
        num_candidates = len(labels)
        # Candidate j stands for the samples up to (j + 1) * b / m of this batch; times m to stay with integers.
        order = np.arange(1, num_candidates + 1, dtype=np.uint64)
        bounds = np.uint64(self.submitted * num_candidates) + order * np.uint64(batch_size)
        positions = below(words(INSERT, step, num_candidates), bounds)
        self.submitted += batch_size

        rows = np.flatnonzero(positions < batch_size * self.share)
        slots = positions[rows] // batch_size
        appended = min(self.share - self.stored, len(rows))
        slots[:appended] = np.arange(self.stored, self.stored + appended)
        self.stored += appended
        return last_writes(rows, slots)

    def inverse_inclusion(self, slots: Int64s) -> Float64s:
        return np.full(len(slots), self.submitted / max(self.stored, 1))

    def mass(self) -> int:
        return self.submitted

    def ages(self) -> Int64s:
        return np.zeros(self.stored, dtype=np.int64)

    def state_dict(self) -> dict[str, Any]:
        return {"stored": self.stored, "submitted": self.submitted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stored, self.submitted = int(state["stored"]), int(state["submitted"])

    @staticmethod
    def recover(labels: Int64s, writes: Int64s, inverse_inclusion: Float64s, mass: int) -> dict[str, Any]:
        return {"stored": len(labels), "submitted": mass}

    @staticmethod
    def merge(states: list[dict[str, Any]], labels: Int64s, owners: Int64s, num_ranks: int) -> list[dict[str, Any]]:
        stored = np.bincount(owners, minlength=num_ranks)
        submitted = split_counts(sum(int(state["submitted"]) for state in states), stored)
        return [{"stored": int(s), "submitted": int(n)} for s, n in zip(stored, submitted, strict=True)]
