"""The communicator of a process that was started alone: every collective is the identity. No library is needed."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from reprise.runtime.dist.base import Communicator, Reduction
from reprise.runtime.dist.watchdog import Watchdog


class SoloCommunicator(Communicator):
    """Rank 0 of 1."""

    name: ClassVar[str] = "solo"

    def __init__(self, launcher: str, watchdog: Watchdog, *, deterministic: bool) -> None:
        super().__init__(launcher, 0, 1, "none", watchdog, deterministic=deterministic)

    def _allreduce(self, tensor: Tensor, op: Reduction, label: str) -> Tensor:
        return tensor

    def _allgather(self, data: Tensor, label: str) -> Tensor:
        return data.clone()[None]

    def _broadcast(self, data: Tensor, root: int, label: str) -> None:
        assert root == 0, f"{label}: root {root} of 1 rank"

    def _alltoall(self, rows: Tensor, splits: Tensor, label: str) -> tuple[Tensor, Tensor]:
        return rows.clone(), splits.clone()

    def _data_parallel(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compression: str,
        op: str,
        gradient_predivide_factor: float,
        backward_passes_per_step: int,
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        return model, optimizer

    def _is_loss(self, error: BaseException) -> bool:
        return False

    def _shutdown(self) -> None:
        """Nothing was started."""

    def _forget(self) -> None:
        """Nothing was started."""
