"""What is drawn: r different samples of all ranks, each equally likely. Knows fill counts, never payloads or policies.

The stored samples of all ranks are numbered rank after rank, slot after slot; a draw is a choice of such numbers. All
it needs is how many samples each rank holds, so its cost does not depend on the capacity.
"""

from dataclasses import dataclass

import numpy as np

from reprise.buffer.policies.random_words import DRAW, Int64s, RandomWords, choose


@dataclass(frozen=True)
class Plan:
    """Where the rows of all draws of one step lie: `ranks[i]`, `slots[i]`; `sizes[d]` rows belong to draw d."""

    ranks: Int64s
    slots: Int64s
    sizes: tuple[int, ...]


def plan_draws(fill: Int64s, draws: tuple[int, ...], step: int, words: RandomWords) -> Plan:
    """Plan this rank's draws. fill: (ranks,) samples that each rank holds (0 for ranks to leave out).

    A draw larger than what is stored gets everything once, in random order. Draws are independent of each other.
    """
    edges = np.cumsum(fill)
    total = int(edges[-1])
    chosen = [
        choose(lambda count, round_, d=d: words(DRAW + d, step, count, round_), total, size)  # type: ignore[misc]
        for d, size in enumerate(draws)
    ]
    numbers = np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)
    ranks = np.searchsorted(edges, numbers, side="right").astype(np.int64)
    slots = numbers - (edges - fill)[ranks]
    return Plan(ranks, slots, tuple(len(part) for part in chosen))
