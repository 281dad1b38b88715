"""Torch's DataLoader over the samples of a task: whole batches in one gather, in this process or in workers.

Samples leave it raw; strategies transform them on their device. Which samples a batch holds is the sampler's business.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reprise.runtime.errors import UserError
from reprise.runtime.seeds import torch_generator
from reprise.runtime.stop import signals_ignored
from reprise.scenarios.sampler import EvalSampler, TrainSampler
from reprise.scenarios.task import Batch, Indices, Samples

Rows = Callable[[int], "dict[str, Tensor] | None"]


class Batches(DataLoader[Batch]):
    """A DataLoader whose workers report a file that cannot be read in one line, as this process does."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def train_loader(dataset: Samples, sampler: TrainSampler, workers: int = 0, rows: Rows | None = None) -> Batches:
    """Batches x (b, *sample_shape), y (b, ...) of this rank; `workers` processes load ahead and live across epochs.

    Call sampler.set_epoch before each iteration. Random numbers of workers differ by rank and task, and repeat from
    run to run. rows: b -> the tensors "x" and "y" to put the next batch into, or "x" and "target" where y are targets,
    or None for new ones; asked for every batch where this process loads, as workers have memory of their own.
    """
    arguments: dict[str, Any] = {}
    samples: Dataset[Any] = dataset
    if rows is not None and not workers:
        samples = _GatheredInto(dataset, rows)
    if workers:
        samples = _Reporting(dataset)
        # Not fork: threads of Horovod, MPI and CUDA do not survive it. The server imports torch once for all workers.
        context = multiprocessing.get_context("forkserver")
        with signals_ignored():
            resource_tracker.ensure_running()  # inherits that; workers and their server see to themselves
        context.set_forkserver_preload(["torch", "reprise.scenarios.loading_process"])
        arguments = {
            "multiprocessing_context": context,
            "persistent_workers": True,
        }
    return Batches(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_gathered,
        pin_memory=torch.cuda.is_available() and not isinstance(samples, _GatheredInto),
        generator=torch_generator(sampler.seed, "loader", sampler.task, sampler.rank),
        **arguments,
    )


def eval_loader(dataset: Samples, sampler: EvalSampler) -> Batches:
    """Batches of this rank's share, loaded in this process; draws no random numbers of the training."""
    return Batches(
        dataset,
        batch_sampler=sampler,
        collate_fn=_gathered,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


class _Reporting(Dataset[Any]):
    """A data set that hands a user's mistake over like a batch: what a worker raises arrives with its traceback."""

    def __init__(self, dataset: Samples) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: Indices) -> "Batch | UserError":
        try:
            return self._dataset.__getitems__(indices)
        except UserError as error:
            return error.with_traceback(None)


class _GatheredInto(Dataset[Batch]):
    """A data set whose batches go straight to where they are wanted."""

    def __init__(self, dataset: Samples, rows: Rows) -> None:
        self._dataset = dataset
        self._rows = rows

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: Indices) -> Batch:
        target = self._rows(len(indices))
        if target is None:
            return self._dataset.gather(indices)
        y = target["y"] if self._dataset.target_shape is None else target["target"]
        return self._dataset.gather(indices, (target["x"], y))


def _gathered(batch: Any) -> Any:
    """Leave the batch as it is: the data set has gathered it already."""
    return batch
