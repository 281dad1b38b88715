"""First in, first out: the newest samples of the rank. The slots form a ring."""

from typing import Any

import numpy as np

from reprise.buffer.policies.base import Float64s, last_writes
from reprise.buffer.policies.random_words import Int64s, RandomWords


class Fifo:
    """See Policy. `head` is the slot that the next sample takes."""

    def __init__(self, share: int) -> None:
        self.share = share
        self.stored = 0
        self.head = 0

    def insert(self, labels: Int64s, batch_size: int, step: int, words: RandomWords) -> tuple[Int64s, Int64s]:
        num_candidates = len(labels)
        rows = np.arange(num_candidates, dtype=np.int64)
        slots = (self.head + rows) % self.share
        self.head = (self.head + num_candidates) % self.share
        self.stored = min(self.stored + num_candidates, self.share)
        return last_writes(rows, slots)

    def inverse_inclusion(self, slots: Int64s) -> Float64s:
        return np.ones(len(slots))

    def mass(self) -> int:
        return self.stored

    def ages(self) -> Int64s:
        return (self.head - 1 - np.arange(self.stored, dtype=np.int64)) % self.share

    def state_dict(self) -> dict[str, Any]:
        return {"stored": self.stored, "head": self.head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stored, self.head = int(state["stored"]), int(state["head"]) % self.share

    @staticmethod
    def recover(labels: Int64s, writes: Int64s, inverse_inclusion: Float64s, mass: int) -> dict[str, Any]:
        # The ring has come as far as the slots that were written once more than the last one.
        behind = np.flatnonzero(writes < writes[0]) if len(writes) else writes
        return {"stored": len(labels), "head": int(behind[0]) if len(behind) else len(labels)}

    @staticmethod
    def merge(states: list[dict[str, Any]], labels: Int64s, owners: Int64s, num_ranks: int) -> list[dict[str, Any]]:
        # The samples come oldest first, so slot order is age order and the oldest one is the first to go.
        stored = np.bincount(owners, minlength=num_ranks)
        return [{"stored": int(count), "head": int(count)} for count in stored]
