"""A task of a scenario: its classes, its training samples and its test samples, all in memory and un-augmented.

scenarios/scenario.py makes tasks; the loop, the evaluation and the strategies read them. Which rank trains on which
sample is not decided here but by scenarios/sampler.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset


class ArrayDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples x (n, *sample_shape), uint8 or float32, with labels y (n,), int64. The same on every rank."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        assert len(x) == len(y), f"{len(x)} samples, {len(y)} labels"
        assert y.dtype == torch.int64, f"labels are int64, got {y.dtype}"
        self.x = x
        self.y = y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """A whole batch, x (b, *sample_shape) and y (b,): what DataLoader asks for."""
        return self.gather(indices)

    def gather(
        self, indices: Sequence[int] | Tensor, out: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
    ) -> tuple[Tensor, Tensor]:
        """A whole batch in one copy per column, into `out` (of its very shape and dtype) where it is given."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return torch.index_select(self.x, 0, rows, out=out[0]), torch.index_select(self.y, 0, rows, out=out[1])


@dataclass(frozen=True)
class Task:
    """One task. classes: sorted labels of the task's own training data, also where `train` holds earlier tasks too."""

    index: int
    classes: tuple[int, ...]
    train: ArrayDataset
    test: ArrayDataset
