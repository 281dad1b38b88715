"""The streams of behaviour_vectors.json, and what the pure reference (policies and plan) makes of them.

Labels follow from (step, rank, row) by integer arithmetic, so that any language can submit the same batches.
"""

from typing import Any

import numpy as np

from reprise.buffer.plan import plan_draws
from reprise.buffer.policies import POLICIES
from reprise.buffer.policies.random_words import CANDIDATES, RandomWords, choose

SEED = 7
NUM_STEPS = 14
SCENARIOS: list[dict[str, Any]] = [
    {"policy": policy, "ranks": ranks, "capacity": 13, "candidates": candidates, "draws": [4, 2], "seed": SEED}
    for policy in POLICIES
    for ranks in (1, 2)
    for candidates in (None, 3)
]


def batch_size(step: int, rank: int) -> int:
    return (step + rank) % 5 + 2 if step != 6 else 0


def label(step: int, rank: int, row: int) -> int:
    """New classes keep appearing, also a negative one; later steps favour later classes."""
    return (step * 3 + rank * 5 + row * row) % (step // 3 + 2) - 1


def identity(step: int, rank: int, row: int) -> int:
    return rank * 10_000_000 + step * 100 + row


def record(scenario: dict[str, Any]) -> list[dict[str, Any]]:
    """Per step (from 1) and rank: the rows stored and their slots; then each draw as identities, in order."""
    ranks, capacity, limit = scenario["ranks"], scenario["capacity"], scenario["candidates"]
    shares = [capacity // ranks + (rank < capacity % ranks) for rank in range(ranks)]
    policies = [POLICIES[scenario["policy"]](share) for share in shares]
    words = [RandomWords(scenario["seed"], rank) for rank in range(ranks)]
    held: list[dict[int, int]] = [{} for _ in range(ranks)]
    steps = []
    for step in range(1, NUM_STEPS + 1):
        entry: dict[str, Any] = {"rows": [], "slots": [], "draws": []}
        for rank in range(ranks):
            size = batch_size(step, rank)
            rows = np.arange(size)
            if limit is not None and limit < size:
                rows = np.sort(choose(lambda n, k, r=rank, s=step: words[r](CANDIDATES, s, n, k), size, limit))
            labels = np.array([label(step, rank, row) for row in rows.tolist()], dtype=np.int64)
            accepted, slots = policies[rank].insert(labels, size, step, words[rank])
            entry["rows"].append(rows[accepted].tolist())
            entry["slots"].append(slots.tolist())
            for row, slot in zip(entry["rows"][-1], entry["slots"][-1], strict=True):
                held[rank][slot] = identity(step, rank, row)
        fill = np.array([policy.stored for policy in policies], dtype=np.int64)
        for rank in range(ranks):
            plan = plan_draws(fill, tuple(scenario["draws"]), step, words[rank])
            ids = [held[r][s] for r, s in zip(plan.ranks.tolist(), plan.slots.tolist(), strict=True)]
            entry["draws"].append([ids[: plan.sizes[0]], ids[plan.sizes[0] :]])
        steps.append(entry)
    return steps
