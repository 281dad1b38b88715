"""Several ranks in one process, as threads: for tests that need more ranks than processes. Slow, simple, obvious.

Has the methods of runtime.dist.Communicator that the buffer uses. Folders are shared by nature.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from reprise.runtime.errors import UserError

T = TypeVar("T")
_PATIENCE_S = 60.0


class ThreadComm:
    """Rank `rank` of `size` threads that share `table` and `barrier`."""

    name = "threads"
    backend = "memory"
    launcher = "python"
    limit_s = _PATIENCE_S

    def __init__(self, rank: int, size: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank = self.local_rank = rank
        self.size = self.local_size = size
        self._table = table
        self._barrier = barrier

    def running_here(self) -> list[int]:
        return list(range(self.size))

    def allgather_object(self, value: Any, name: str | None = None) -> list[Any]:
        self._table[self.rank] = value
        self._barrier.wait()
        everyone = list(self._table)
        self._barrier.wait()
        return everyone

    def allgather(self, tensor: Tensor, name: str | None = None) -> Tensor:
        return torch.stack(self.allgather_object(tensor.clone()))

    def allreduce(self, tensor: Tensor, op: str = "mean", name: str | None = None) -> Tensor:
        stacked = self.allgather(tensor)
        reduced = {"mean": stacked.mean, "sum": stacked.sum, "min": stacked.amin, "max": stacked.amax}[op](dim=0)
        return reduced.to(tensor.dtype)

    def broadcast_object(self, value: Any, root: int = 0, name: str | None = None) -> Any:
        return self.allgather_object(value)[root]

    def alltoall(self, rows: Tensor, splits: Any, name: str | None = None) -> tuple[Tensor, Tensor]:
        counts = torch.as_tensor(splits, dtype=torch.int64)
        assert int(counts.sum()) == len(rows)
        parts = self.allgather_object([part.clone() for part in rows.split(counts.tolist())])
        mine = [sender[self.rank] for sender in parts]
        return torch.cat(mine), torch.tensor([len(part) for part in mine])

    def barrier(self, name: str | None = None) -> None:
        self._barrier.wait()

    def agree(self, work: Callable[[], T], name: str | None = None) -> T:
        result: list[T] = []
        self.collect(lambda: result.append(work()))
        return result[0]

    def collect(self, work: Callable[[], T], name: str | None = None) -> list[T]:
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = str(error)
        everyone = self.allgather_object((result, problem))
        problems = [text for _, text in everyone if text is not None]
        if problems:
            raise UserError(problems[0])
        return [value for value, _ in everyone]  # type: ignore[misc]


def run_ranks(size: int, work: Callable[[ThreadComm], T]) -> list[T]:
    """The results of `work` on every rank; raises the first error of any rank, once all have ended."""
    barrier = threading.Barrier(size, timeout=_PATIENCE_S)
    table: list[Any] = [None] * size
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadComm(rank, size, table, barrier))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * _PATIENCE_S)
    real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if real or errors:
        raise (real or errors)[0]
    return results
