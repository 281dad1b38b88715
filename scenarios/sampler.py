"""Which samples a rank trains on and evaluates on: batches of indices, cut out of an order that all ranks share.

Training gives every rank the same number of steps by construction; evaluation counts every sample exactly once. The
samplers only count: the samples themselves are in scenarios/task.py, loading is in scenarios/loader.py.
"""

from collections.abc import Iterator

import torch

from reprise.runtime.errors import SharedUserError
from reprise.runtime.seeds import torch_generator


class TrainSampler:
    """This rank's batches of one task: iterating gives lists of `batch_size` (per rank) indices.

    The order of an epoch comes from (seed, task, epoch) alone. Step t takes the next batch_size * world_size samples
    of it and rank r the r-th part of them, so that N ranks train on exactly what one rank with N times the batch would.
    The last step is smaller: the rest of the order, cut to a multiple of world_size. At most world_size - 1 samples
    are left out of an epoch, others in each; and a last step of one sample per rank is left out whole when there are
    others, because batch norm cannot train on one sample. Raises UserError when a rank cannot fill a batch.
    """

    def __init__(self, num_samples: int, batch_size: int, *, rank: int, world_size: int, seed: int, task: int) -> None:
        assert 0 <= rank < world_size
        assert batch_size >= 1
        if num_samples < world_size:
            raise SharedUserError(
                f"task {task} has {num_samples} training samples for {world_size} ranks; "
                f"start at most {max(1, num_samples)} ranks, or make fewer tasks"
            )
        if batch_size > num_samples // world_size:
            raise SharedUserError(
                f"batch of {batch_size} samples per rank is larger than the data set: task {task} has {num_samples} "
                f"training samples for {world_size} rank(s); lower --batch-size to at most {num_samples // world_size}"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.task = task
        self.set_epoch(0)
        self.steps = len(self)

    def set_epoch(self, epoch: int, samples: int = 0) -> None:
        """Choose the order of the next iteration. epoch: of this task, from 0. samples: of its order, how many are done
        already, on all ranks together. The same on every rank.
        """
        self._epoch = epoch
        self._done = samples
        self._full_steps, rest = divmod(max(0, self.num_samples - samples), self.batch_size * self.world_size)
        last = rest // self.world_size
        self._last_size = 0 if last == 1 and (self._full_steps or samples) else last

    def fraction(self, step: int) -> float:
        """How much of the epoch is done before step `step` of what is left of it."""
        before = self._done / (self.batch_size * self.world_size)
        return (before + step) / (before + len(self))

    def __len__(self) -> int:
        """Steps left of the epoch, the same on every rank. `steps`: of a whole one."""
        return self._full_steps + (self._last_size > 0)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch_generator(self.seed, "order of samples", self.task, self._epoch)
        order = torch.randperm(self.num_samples, generator=generator)
        for step in range(len(self)):
            size = self.batch_size if step < self._full_steps else self._last_size
            start = self._done + step * self.batch_size * self.world_size + self.rank * size
            yield order[start : start + size].tolist()


class EvalSampler:
    """This rank's share of an evaluation, in batches of at most `batch_size` indices: neighbouring samples, in order.

    Over all ranks every sample comes exactly once, at any number of ranks; shares differ by at most one sample, and a
    rank may get nothing. Ranks may therefore take different numbers of steps: no collectives in an evaluation's loop.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
        assert 0 <= rank < world_size
        assert batch_size >= 1
        self.batch_size = batch_size
        self._start = num_samples * rank // world_size
        self._end = num_samples * (rank + 1) // world_size

    def __len__(self) -> int:
        """Batches of this rank."""
        return -(-(self._end - self._start) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self._start, self._end, self.batch_size):
            yield list(range(start, min(start + self.batch_size, self._end)))
