"""A task of a scenario: its classes, its training samples and its test samples, un-augmented.

scenarios/scenario.py makes tasks; the loop, the evaluation and the strategies read them. Which rank trains on which
sample is not decided here but by scenarios/sampler.py. Samples that lie in files: scenarios/image_files.py, ptycho.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

Indices: TypeAlias = Sequence[int] | Tensor
Batch: TypeAlias = tuple[Tensor, Tensor]
Rows: TypeAlias = Batch | tuple[None, None]


class Samples(Dataset[Batch], ABC):
    """Part of a data set: raw samples x with what is to be learnt of them, y. The same on every rank.

    x: (n, *sample_shape) of sample_dtype, the dtype of raw samples (uint8 or float32). y: class labels (n,), int64; or,
    where there is a target_shape, targets (n, *target_shape), float32. labels: the classes (n,), int64, known without
    reading a sample; all 0 where there are targets.
    """

    sample_shape: tuple[int, ...]
    sample_dtype: torch.dtype
    target_shape: tuple[int, ...] | None
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        x, y = self.gather([index])
        return x[0], y[0]

    def __getitems__(self, indices: Indices) -> Batch:
        """A whole batch, x (b, *sample_shape) and y (b, ...): what DataLoader asks for."""
        return self.gather(indices)

    @abstractmethod
    def gather(self, indices: Indices, out: Rows = (None, None)) -> Batch:
        """A whole batch, put into `out` (of its very shape and dtype) where it is given."""

    def room(self, num: int, out: Rows) -> Batch:
        """`out`, or new memory for a batch of `num` samples."""
        if out[0] is not None:
            return out
        x = torch.empty((num, *self.sample_shape), dtype=self.sample_dtype)
        if self.target_shape is None:
            return x, torch.empty(num, dtype=torch.int64)
        return x, torch.empty((num, *self.target_shape), dtype=torch.float32)


class Divisible(Samples):
    """Samples that tasks can be cut out of: those of one data set, before any task looks at them its own way."""

    @abstractmethod
    def take(self, rows: Tensor, labels: Tensor) -> "Divisible":
        """The samples `rows` (m,), in that order, with labels (m,) in place of their own; targets stay as they are."""

    @abstractmethod
    def part(self, start: int, end: int) -> "Divisible":
        """The neighbouring samples start .. end - 1, sharing this part's memory."""


class ArrayDataset(Divisible):
    """Samples in memory, x (n, *sample_shape), uint8 or float32, with labels y (n,) or targets y (n, *target_shape)."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        assert len(x) == len(y), f"{len(x)} samples, {len(y)} labels"
        assert y.dtype == (torch.int64 if y.ndim == 1 else torch.float32), f"labels are int64, got {y.dtype}"
        self.x = x
        self.y = y
        self.sample_shape, self.sample_dtype = tuple(x.shape[1:]), x.dtype
        self.target_shape = None if y.ndim == 1 else tuple(y.shape[1:])
        self.labels = y if y.ndim == 1 else torch.zeros(len(y), dtype=torch.int64)

    def gather(self, indices: Indices, out: Rows = (None, None)) -> Batch:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return torch.index_select(self.x, 0, rows, out=out[0]), torch.index_select(self.y, 0, rows, out=out[1])

    def take(self, rows: Tensor, labels: Tensor) -> "ArrayDataset":
        return ArrayDataset(self.x[rows], labels if self.target_shape is None else self.y[rows])

    def part(self, start: int, end: int) -> "ArrayDataset":
        return ArrayDataset(self.x[start:end], self.y[start:end])


@dataclass(frozen=True)
class Task:
    """One task. classes: sorted labels of the task's own training data, also where `train` holds earlier tasks too."""

    index: int
    classes: tuple[int, ...]
    train: Samples
    test: Samples
