"""What ranks must agree on while they train, such as whether one of them was told to stop: small numbers, now and then.

Asking at every step would make every rank wait for the slowest one once more; about once a second is enough.
"""

import time
from collections.abc import Sequence

import torch

from reprise.runtime.dist import Communicator

PERIOD_S = 1.0


class Agreement:
    """Called once per step, on every rank alike. How many steps make a period is itself agreed on."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._period = 1
        self._steps = 0
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether to exchange at this step; counts it."""
        self._steps += 1
        return self._comm.size == 1 or self._steps >= self._period

    def exchange(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all ranks. Collective."""
        if self._comm.size == 1:
            return list(numbers)
        seconds = max(time.monotonic() - self._since, 1e-6)
        period = max(1, round(self._steps * PERIOD_S / seconds))
        self._period, *largest = self._comm.allreduce(
            torch.tensor([period, *numbers]), op="max", name="agreement"
        ).tolist()
        self._steps, self._since = 0, time.monotonic()
        return largest
