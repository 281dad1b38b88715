"""Torch's DataLoader over samples in memory: whole batches in one gather, in this process or in workers.

Samples leave it raw; strategies transform them on their device. Which samples a batch holds is the sampler's business.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reprise.runtime.seeds import torch_generator
from reprise.scenarios.sampler import EvalSampler, TrainSampler
from reprise.scenarios.task import ArrayDataset

Batches = DataLoader[tuple[Tensor, Tensor]]
Rows = Callable[[int], "dict[str, Tensor] | None"]


def train_loader(dataset: ArrayDataset, sampler: TrainSampler, workers: int = 0, rows: Rows | None = None) -> Batches:
    """Batches x (b, *sample_shape), y (b,) of this rank; `workers` processes load ahead and live across epochs.

    Call sampler.set_epoch before each iteration. Random numbers of workers differ by rank and task, and repeat from
    run to run. rows: b -> the tensors "x" and "y" to put the next batch into, or None for new ones; asked for every
    batch where this process loads, as workers have memory of their own.
    """
    arguments: dict[str, Any] = {}
    samples: Dataset[Any] = dataset
    if rows is not None and not workers:
        samples = _GatheredInto(dataset, rows)
    if workers:
        # Not fork: threads of Horovod, MPI and CUDA do not survive it. The server imports torch once for all workers.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        arguments = {"multiprocessing_context": context, "persistent_workers": True}
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_gathered,
        pin_memory=torch.cuda.is_available() and samples is dataset,
        generator=torch_generator(sampler.seed, "loader", sampler.task, sampler.rank),
        **arguments,
    )


def eval_loader(dataset: ArrayDataset, sampler: EvalSampler) -> Batches:
    """Batches of this rank's share, loaded in this process; draws no random numbers of the training."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_gathered,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


class _GatheredInto(Dataset[tuple[Tensor, Tensor]]):
    """A data set whose batches go straight to where they are wanted."""

    def __init__(self, dataset: ArrayDataset, rows: Rows) -> None:
        self._dataset = dataset
        self._rows = rows

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        target = self._rows(len(indices))
        if target is None:
            return self._dataset.gather(indices)
        return self._dataset.gather(indices, (target["x"], target["y"]))


def _gathered(batch: Any) -> Any:
    """Leave the batch as it is: the data set has gathered it already."""
    return batch
