"""What a sample is made of, what a draw looks like, and the checks of both. Shared by every implementation."""

from collections.abc import Callable, Iterator, KeysView, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from reprise.buffer.policies import POLICIES
from reprise.buffer.policies.base import Float64s
from reprise.buffer.policies.random_words import Int64s
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest

Columns = dict[str, Tensor]  # name -> (n, *shape): one row per sample

RESERVED = ("y", "task", "weight", "rank", "copy", "self")


@dataclass(frozen=True)
class Field:
    """Shape and dtype of one named part of a sample, without the batch dimension."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "shape", tuple(self.shape))
        except TypeError:
            raise UserError(f"a field's shape must be a tuple like (3, 32, 32), got {self.shape!r}") from None
        if not all(isinstance(size, int) and size > 0 for size in self.shape):
            raise UserError(f"a field's shape must hold positive integers, got {self.shape}")
        if not isinstance(self.dtype, torch.dtype):
            raise UserError(f"a field's dtype must be a torch.dtype, got {self.dtype!r}")

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Bytes per sample."""
        return self.numel * self.dtype.itemsize

    def empty(self, rows: int, device: torch.device) -> Tensor:
        return torch.empty((rows, *self.shape), dtype=self.dtype, device=device)


# A column of a stored sample (Spec.stored_columns) for so many of them, in host memory, whose values are of no use.
Empty = Callable[[str, int], Tensor]


class Prepared(NamedTuple):
    """What an engine delivers: columns in which the draws lie one after the other from row `start` on."""

    columns: Columns
    start: int
    sizes: tuple[int, ...]


class Estate(NamedTuple):
    """What another rank holds: samples, and seen samples they stand for, as far as is known here.

    columns: everything stored of the samples of a rank that is gone and that this one adopts; writes: by row, how often
    its slot was written.
    """

    rank: int
    held: int
    mass: int
    columns: Columns | None
    writes: Int64s
    inverse_inclusion: Float64s


class Draw:
    """Samples as columns: the fields, and "y" int64, "task" int64, "weight" float32, "rank" int64, each (n, ...).

    `len()` is n, the number of rows. `sizes` says how many of them belong together: one entry for a draw; for a batch
    of `augment` the new samples first, then one entry per draw. Rows are per-rank. The tensors belong to the buffer and
    stay valid until its next `wait()` or `augment()` returns.
    """

    __slots__ = ("_columns", "_rows", "sizes")

    def __init__(self, columns: Columns, sizes: tuple[int, ...], start: int = 0) -> None:
        """columns: of any length; the rows are those from `start` on, as many as `sizes` say."""
        self._columns = columns
        self._rows = slice(start, start + sum(sizes))
        self.sizes = sizes

    def __getitem__(self, name: str) -> Tensor:
        return self._columns[name][self._rows]

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __len__(self) -> int:
        return self._rows.stop - self._rows.start

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def keys(self) -> KeysView[str]:
        return self._columns.keys()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self[name]) for name in self._columns)

    def __repr__(self) -> str:
        return f"Draw({len(self)} rows: {', '.join(self._columns)})"


def draws_of(prepared: Prepared) -> tuple[Draw, ...]:
    """One Draw for each of the sizes."""
    starts = accumulate(prepared.sizes, initial=prepared.start)
    return tuple(Draw(prepared.columns, (size,), start) for size, start in zip(prepared.sizes, starts, strict=False))


@dataclass(frozen=True)
class Spec:
    """Everything that defines a buffer on one rank. Raises UserError (a ValueError) naming the argument."""

    fields: Mapping[str, Field]
    capacity: int
    """Samples, summed over all ranks."""
    draws: tuple[int, ...]
    candidates: int | None
    policy: str
    scope: str
    seed: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not self.fields:
            raise UserError("a buffer needs at least one field, e.g. fields={'x': Field((3, 32, 32), torch.uint8)}")
        for name, field in self.fields.items():
            if name in RESERVED:
                raise UserError(f"field name '{name}' is reserved ({', '.join(RESERVED)}); choose another")
            if not isinstance(field, Field):
                raise UserError(f"field '{name}' must be a Field(shape, dtype), got {type(field).__name__}")
        if not isinstance(self.draws, tuple | list):
            raise UserError(f"draws must be a tuple of numbers of samples like (16,), got {self.draws!r}")
        object.__setattr__(self, "draws", tuple(self.draws))
        if not all(_is_count(size) and size >= 0 for size in self.draws):
            raise UserError(f"draws must be a tuple of numbers of samples >= 0, got {self.draws}")
        if not _is_count(self.capacity) or not self.world_size <= self.capacity < 2**32:
            raise UserError(
                f"capacity {self.capacity} is out of range: samples over all ranks, at least one per rank "
                f"({self.world_size}) and below 2**32; raise capacity or rehearsal_ratio"
            )
        if self.candidates is not None and (not _is_count(self.candidates) or self.candidates < 1):
            raise UserError(f"candidates must be None (all) or a number of samples >= 1, got {self.candidates}")
        if self.policy not in POLICIES:
            hint = nearest(str(self.policy), POLICIES)
            raise UserError(f"unknown policy '{self.policy}'{hint or ';'} choose one of: {', '.join(POLICIES)}")
        if self.scope not in ("global", "local"):
            raise UserError(f"unknown scope '{self.scope}'; choose one of: global, local")
        if not _is_count(self.seed):
            raise UserError(f"seed must be an integer, got {self.seed!r}")

    @property
    def share(self) -> int:
        """Slots of this rank."""
        return share_of(self.capacity, self.rank, self.world_size)

    @property
    def stored_columns(self) -> dict[str, Field]:
        """Every column of a stored sample."""
        number = Field((), torch.int64)
        return {**self.fields, "y": number, "task": number}

    def empty(self, name: str, rows: int) -> Tensor:
        """That column for so many samples, in host memory, without values."""
        return self.stored_columns[name].empty(rows, torch.device("cpu"))

    @property
    def bytes_per_sample(self) -> int:
        return sum(field.nbytes for field in self.fields.values()) + 16  # label and task

    @property
    def exchanges(self) -> bool:
        """Whether draws reach over to other ranks."""
        return self.scope == "global" and self.world_size > 1

    def check_batch(self, fields: Mapping[str, Tensor], y: Tensor, device: torch.device) -> None:
        """Raise UserError naming the first wrong field of a batch, what was got and what was expected."""
        if not isinstance(y, Tensor) or y.ndim != 1 or y.dtype != torch.int64:
            raise UserError(f"'y' must be an int64 tensor (b,), got {_describe(y)}")
        missing = [name for name in self.fields if name not in fields]
        if missing:
            raise UserError(f"field '{missing[0]}' is missing: got {sorted(fields)}, expected {sorted(self.fields)}")
        for name, value in fields.items():
            if name not in self.fields:
                hint = nearest(name, self.fields)
                raise UserError(f"unknown field '{name}'{hint or ';'} this buffer stores {sorted(self.fields)}")
            field = self.fields[name]
            if (
                not isinstance(value, Tensor)
                or value.dtype != field.dtype
                or tuple(value.shape) != (len(y), *field.shape)
            ):
                expected = f"{field.dtype} {(len(y), *field.shape)}"
                raise UserError(f"field '{name}': got {_describe(value)}, expected {expected}")
        for name, value in (*fields.items(), ("y", y)):
            if value.device.type not in ("cpu", device.type):
                raise UserError(f"field '{name}': got a tensor on {value.device}, expected the cpu or {device}")

    def check_task(self, task: int | Tensor | None, rows: int, device: torch.device) -> int | Tensor:
        """The task of every row: an int (-1 for None), or int64 (rows,) on the CPU. Raises UserError for others."""
        if isinstance(task, Tensor):
            if task.shape != (rows,) or task.is_floating_point() or task.is_complex() or task.dtype == torch.bool:
                raise UserError(f"'task' must be an int, None or an integer tensor ({rows},), got {_describe(task)}")
            if task.device.type not in ("cpu", device.type):
                raise UserError(f"'task': got a tensor on {task.device}, expected the cpu or {device}")
            return task.to("cpu", torch.int64)
        if task is not None and not _is_count(task):
            raise UserError(f"'task' must be an int, None or an integer tensor ({rows},), got {task!r}")
        if task is not None and not -(2**63) <= task < 2**63:
            raise UserError(f"'task' must fit into int64, got {task}")
        return -1 if task is None else task


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def share_of(capacity: int, rank: int, world_size: int) -> int:
    """Slots of a rank: the capacity shared out evenly, the remainder to the first ranks."""
    return capacity // world_size + (rank < capacity % world_size)


def as_words(tensor: Tensor) -> Tensor:
    """The same memory as integers of the same width: torch cannot index every dtype (uint16, float8 and others)."""
    word = _WORDS.get(tensor.dtype.itemsize)
    return tensor if word is None else tensor.view(word)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _describe(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
