"""What the contestants have to do: the workloads, their batches, and a trace of the copies that each step needs.

The trace comes from the reference policy and plan, so the memory limit copies exactly the rows that a buffer of the
same seed stores and draws. It is computed ahead; nothing of it is timed.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprise.buffer import Field
from reprise.buffer.plan import plan_draws
from reprise.buffer.policies import POLICIES
from reprise.buffer.policies.random_words import CANDIDATES, Int64s, RandomWords, choose

POLICY = "class_balanced"


@dataclass(frozen=True)
class Workload:
    """Sizes per step on one worker: b rows come in, c of them are offered to the policy, each draw has its own r."""

    name: str
    fields: tuple[tuple[str, Field], ...]
    batch_size: int
    candidates: int
    draws: tuple[int, ...]
    capacity: int
    num_classes: int
    pool_batches: int
    """Different batches that take turns: loaders do not hand out the same memory every time."""

    @property
    def field_map(self) -> dict[str, Field]:
        return dict(self.fields)

    @property
    def record_bytes(self) -> int:
        """A sample: its fields, label and task."""
        return sum(field.nbytes for _, field in self.fields) + 16

    def with_capacity(self, capacity: int) -> "Workload":
        return replace(self, capacity=capacity)


def _images(side: int, dtype: torch.dtype = torch.float32) -> tuple[str, Field]:
    return "x", Field((3, side, side), dtype)


_CIFAR = Workload("cifar", (_images(32),), 64, 64, (16,), 20_000, 10, 16)
_IMAGENET = Workload("imagenet", (_images(224),), 56, 14, (7,), 2_000, 100, 4)
_ALL = (
    _CIFAR,
    _IMAGENET,
    replace(_IMAGENET, name="imagenet-u8", fields=(_images(224, torch.uint8),)),
    replace(_CIFAR, name="derpp", fields=(_images(32), ("logits", Field((100,), torch.float32))), draws=(16, 16)),
    Workload("tiny", (_images(8), ("logits", Field((5,), torch.float32))), 8, 4, (3, 2), 40, 4, 3),
)
WORKLOADS = {workload.name: workload for workload in _ALL}
PUBLIC = tuple(name for name in WORKLOADS if name != "tiny")


@dataclass(frozen=True)
class Batch:
    """One step's input. `index` is its position in the trace, fill included, and its task; `tasks` has it per row."""

    index: int
    fields: dict[str, Tensor]
    y: Tensor
    tasks: Tensor
    arguments: dict[str, Any]
    """What submit() takes, put together ahead of the timed call."""


@dataclass(frozen=True)
class Copies:
    """Batch row rows[i] is stored in slots[i]; afterwards the rows of all draws are read from drawn[i]."""

    rows: Int64s
    slots: Int64s
    drawn: Int64s


def pool(workload: Workload) -> tuple[dict[str, Tensor], ...]:
    """The batches that take turns; made once per shape."""
    return _pool(workload.fields, workload.batch_size, workload.pool_batches)


@lru_cache(maxsize=4)
def _pool(fields: tuple[tuple[str, Field], ...], batch_size: int, count: int) -> tuple[dict[str, Tensor], ...]:
    generator = torch.Generator().manual_seed(7)

    def rows(field: Field) -> Tensor:
        shape = (batch_size, *field.shape)
        if field.dtype.is_floating_point:
            return torch.randn(shape, generator=generator, dtype=field.dtype)
        return torch.randint(0, 256, shape, generator=generator, dtype=field.dtype)

    return tuple({name: rows(field) for name, field in fields} for _ in range(count))


class Trace:
    """A stream that fills a buffer and goes on for `steps` steps: its batches, and what has to be copied for each."""

    def __init__(self, workload: Workload, seed: int, steps: int) -> None:
        self.workload = workload
        self.seed = seed
        self.fill_steps = -(-workload.capacity // workload.candidates)
        count = self.fill_steps + steps
        generator = torch.Generator().manual_seed(seed)
        self._labels = torch.randint(0, workload.num_classes, (count, workload.batch_size), generator=generator)
        self._tasks = torch.arange(count).repeat_interleave(workload.batch_size).view(count, -1)
        self.copies = self._follow_policy(count)

    def batch(self, index: int) -> Batch:
        fields = pool(self.workload)[index % self.workload.pool_batches]
        y = self._labels[index]
        return Batch(index, fields, y, self._tasks[index], {**fields, "y": y, "task": index})

    def bytes_at(self, index: int) -> tuple[int, int]:
        """Bytes stored and bytes drawn by a step, each counted once."""
        copies = self.copies[index]
        return len(copies.rows) * self.workload.record_bytes, len(copies.drawn) * self.workload.record_bytes

    def _follow_policy(self, count: int) -> list[Copies]:
        workload = self.workload
        words = RandomWords(self.seed, 0)
        policy = POLICIES[POLICY](workload.capacity)
        result = []
        for index, labels in enumerate(self._labels.numpy()):
            step = index + 1
            candidates = np.arange(workload.batch_size)
            if workload.candidates < workload.batch_size:
                picked = choose(
                    lambda n, round_, step=step: words(CANDIDATES, step, n, round_),  # type: ignore[misc]
                    workload.batch_size,
                    workload.candidates,
                )
                candidates = np.sort(picked)
            rows, slots = policy.insert(labels[candidates], workload.batch_size, step, words)
            drawn = plan_draws(np.array([policy.stored]), workload.draws, step, words).slots
            result.append(Copies(*(np.ascontiguousarray(a, dtype=np.int64) for a in (candidates[rows], slots, drawn))))
        return result


@lru_cache(maxsize=4)
def trace(workload: Workload, seed: int, steps: int) -> Trace:
    return Trace(workload, seed, steps)
