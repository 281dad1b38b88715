"""What a policy is: it decides which slot of this rank's share a candidate goes to. Pure: no payload, no collectives.

A policy sees labels and slots only. The same class serves every implementation as the reference of its behaviour.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reprise.buffer.policies.random_words import Int64s, RandomWords

Float64s = npt.NDArray[np.float64]


class Policy(Protocol):
    """State of one rank's share. Slots are 0 .. share-1; the stored ones are always 0 .. stored-1."""

    share: int
    stored: int

    def __init__(self, share: int) -> None: ...

    def insert(self, labels: Int64s, batch_size: int, step: int, words: RandomWords) -> tuple[Int64s, Int64s]:
        """Decide on the candidates of one batch, in order.

        labels: (m,) labels of the candidates, m <= batch_size; batch_size: samples submitted, of which the candidates
        are a uniform choice. Returns (rows, slots), both (k,): candidate rows[i] goes to slots[i]; slots are distinct.
        """

    def inverse_inclusion(self, slots: Int64s) -> Float64s:
        """(n,) samples seen per sample stored, for the stratum (rank or class) each slot belongs to."""

    def mass(self) -> int:
        """Sum of `inverse_inclusion` over all stored slots: how many seen samples they stand for."""

    def ages(self) -> Int64s:
        """(stored,) rank of each slot from the newest (0); zeros where the policy does not order by age."""

    def state_dict(self) -> dict[str, Any]:
        """Counters as arrays and numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back `state_dict`."""

    @staticmethod
    def merge(states: list[dict[str, Any]], labels: Int64s, owners: Int64s, num_ranks: int) -> list[dict[str, Any]]:
        """States of `num_ranks` shares that together continue the shares of `states`.

        labels, owners: (total stored,) label and new rank of every stored sample, in the order in which it is put into
        the new rank's slots. Sums of counters are kept exactly.
        """

    @staticmethod
    def recover(labels: Int64s, writes: Int64s, inverse_inclusion: Float64s, mass: int) -> dict[str, Any]:
        """State of a share of which only the samples are left: of each stored one, by slot, its label, how often its
        slot was written and its inverse inclusion; and the sum of these before any were lost.
        """


def split_counts(total: int, parts: Int64s) -> Int64s:
    """Split an integer in proportion to `parts`: the result sums to `total`; entries >= parts if total >= their sum."""
    if parts.sum() == 0:
        parts = np.ones_like(parts)
    # Python integers: total * cumulative may pass 2**63.
    cumulative = [int(part) for part in np.cumsum(parts)]
    edges = [0, *(total * value // cumulative[-1] for value in cumulative)]
    return np.diff(np.array(edges, dtype=np.int64)).astype(np.int64)


def last_writes(rows: Int64s, slots: Int64s) -> tuple[Int64s, Int64s]:
    """Of several candidates for one slot keep the last, as if they had been written one after the other."""
    kept = len(slots) - 1 - np.unique(slots[::-1], return_index=True)[1]
    kept.sort()
    return rows[kept], slots[kept]
