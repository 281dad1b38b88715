"""Dealing the samples of some shards out to another number of ranks, so that the policies' probabilities go on.

Which sample goes where and how counters are split; nothing is copied here. For shards in files see snapshot.py, for
those of a job whose ranks change while it runs regroup.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reprise.buffer.policies import POLICIES
from reprise.buffer.policies.base import split_counts
from reprise.buffer.policies.random_words import Int64s
from reprise.buffer.shard import policy_arrays


@dataclass(frozen=True)
class Counted:
    """A shard without its samples. policy: its policy's state. labels: (stored,), by slot. submitted: to its rank."""

    share: int
    policy: dict[str, Any]
    labels: Int64s
    submitted: int

    @classmethod
    def of(cls, shard: dict[str, Any], share: int) -> "Counted":
        """Of a shard's state."""
        return cls(share, policy_arrays(shard), shard["columns"]["y"].numpy(), int(shard["submitted"]))


@dataclass(frozen=True)
class Deal:
    """edges: (shards + 1,) where each shard's samples begin if all are numbered one after the other. numbers: per new
    rank those it gets, in the order of its slots. policies, submitted: per new rank.
    """

    edges: Int64s
    numbers: list[Int64s]
    policies: list[dict[str, Any]]
    submitted: Int64s

    def slots(self, rank: int, shard: int) -> Int64s:
        """Of a shard those slots whose samples go to a rank, in the order in which it stores them."""
        numbers = self.numbers[rank]
        first, end = self.edges[shard], self.edges[shard + 1]
        return np.asarray(numbers[(numbers >= first) & (numbers < end)] - first)

    def places(self, rank: int) -> Int64s:
        """The slots of a rank in the order in which its samples come shard after shard."""
        return np.argsort(np.searchsorted(self.edges, self.numbers[rank], side="right"), kind="stable")


def deal(policy: str, shards: Sequence[Counted], num_ranks: int) -> Deal:
    """Samples are dealt out in turn, class by class (oldest first where the policy orders by age), so that every rank
    gets its even share of every class. Nothing is lost: shares differ by at most one, as the deal does.
    """
    policies = []
    for shard in shards:
        policies.append(POLICIES[policy](shard.share))
        policies[-1].load_state_dict(shard.policy)
    labels = np.concatenate([shard.labels for shard in shards])
    ages = np.concatenate([one.ages() for one in policies])
    order = np.lexsort((labels, -ages))
    owners = np.arange(len(order))[::-1] % num_ranks
    merged = POLICIES[policy].merge([one.state_dict() for one in policies], labels[order], owners, num_ranks)
    submitted = split_counts(sum(shard.submitted for shard in shards), np.bincount(owners, minlength=num_ranks))
    numbers = [order[owners == rank] for rank in range(num_ranks)]
    return Deal(np.cumsum([0, *(one.stored for one in policies)]), numbers, merged, submitted)
