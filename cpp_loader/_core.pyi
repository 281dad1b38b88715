"""The compiled engine; see src/engine.h for the contract. Addresses are of memory that the caller keeps alive."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

def version() -> str:
    """One line: interface version, C++ standard and compiler of this build."""

def why_no_network(library: str) -> str:
    """Why ranks on other nodes cannot be read with this library of UCX; empty when they can."""

class Memory:
    """A writable buffer of bytes that keeps itself alive."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Engine:
    """One rank's engine. One caller at a time, except for stats, recent and close."""

    def __init__(
        self,
        *,
        prototypes: dict[str, Tensor],
        labels: Tensor,
        field_bytes: Sequence[int],
        share: int,
        policy: str,
        draws: Sequence[int],
        candidates: int,
        seed: int,
        rank: int,
        world_size: int,
        threads: int,
        storage: str,
        cuda_device: int,
        current_stream: Callable[[], int],
        exchanges: bool,
        deterministic: bool,
        limit_s: float,
        network: tuple[str, str, str, int] | None,
        wrap: Callable[[int, tuple[int, ...]], object],
        report: Callable[[str], None],
    ) -> None:
        """prototypes, labels: tensors (0, *shape) of the fields and labels that will be submitted.

        cuda_device: where batches may lie and draws are delivered, -1 for the host; current_stream: the driver's handle
        of the stream that torch works on there, asked where torch does not say it to C. exchanges: draw from all ranks;
        connect() comes first. limit_s: how long a deterministic step waits for another rank, and a request for its
        answer. network: UCX's library, interfaces and transports (empty: its choice), and the secret of the job; None:
        all ranks are on this node. wrap: makes of a staging slot and the rows of each draw what draws() returns.
        report: gets a line for each rank that is lost, from within wait(), draws(), drain() or fills().
        """

    def address(self) -> tuple[int, int, int, int, int, bytes]:
        """What other ranks need to read this one: process, descriptor, bytes, token, share; network address."""

    def connect(self, addresses: Sequence[tuple[str, bool, int, int, int, int, int, bytes]], /) -> None:
        """By rank: a name for messages, whether its memory can be mapped here, its address."""

    def why_silent(self, rank: int) -> str:
        """Why a rank that is reached through the network does not answer; empty when it does."""

    def describe_peers(self) -> str: ...
    def submit(self, fields: dict[str, Tensor], labels: Tensor, task: int | Tensor | None, /) -> bool:
        """Queue a step and keep the tensors until it is done; False, and nothing done, if they are not plain."""

    def submit_draw(self) -> None: ...
    def set_device_rows(self, slot: int, columns: Sequence[int]) -> None: ...
    def not_pinned(self) -> str: ...
    def wait(self) -> tuple[int, tuple[int, ...]]:
        """(staging slot, rows of each draw)."""

    def draws(self) -> Any:
        """wait(), as `wrap` has made it; asked once for a slot's complete draws, until its memory is another."""

    def drain(self) -> None: ...
    def next_slot(self) -> int: ...
    def staging(self, slot: int) -> tuple[Memory, int, list[int]]:
        """(memory, front rows, offset of each column): fields, labels, tasks, ranks, weights."""

    def reserve_front(self, rows: int) -> None: ...
    def stored(self) -> int: ...
    def submitted(self) -> int: ...
    def step(self) -> int: ...
    def mass(self) -> int: ...
    def fills(self) -> list[tuple[int, int]]:
        """(samples stored, seen samples they stand for) of every rank; 0 for those that draws do not reach."""

    def started(self) -> bool: ...
    def labels(self) -> npt.NDArray[np.int64]: ...
    def policy_state(self) -> dict[str, int | npt.NDArray[np.int64]]: ...
    def versions(self) -> npt.NDArray[np.int64]:
        """How often each slot that holds a sample has been written."""

    def read_column(self, column: int, slots: npt.NDArray[np.int64], target: int) -> None:
        """Copy a column of the samples in `slots` to an address. ValueError for a slot without a sample."""

    def estates(
        self,
    ) -> list[tuple[int, int, int, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """What each other rank holds, as far as is known: (rank, stored, mass, and, if its process was on this node and
        has ended, slots, versions, inverse inclusion of whole samples).
        """

    def read_estate(self, rank: int, column: int, slots: npt.NDArray[np.int64], target: int) -> None:
        """As read_column, from such a rank. ValueError when it has left nothing, or not these slots."""

    def load(
        self,
        policy: dict[str, int | npt.NDArray[np.int64]],
        step: int,
        submitted: int,
        started: bool,
        fills: Sequence[tuple[int, int]],
        columns: Sequence[int],
    ) -> None: ...
    def adopt_draw(self, sizes: Sequence[int]) -> int: ...
    def pending(self) -> list[tuple[int, tuple[int, ...]]]: ...
    def stats(self) -> dict[str, dict[str, float]]: ...
    def recent(self) -> dict[str, list[tuple[int, int]]]: ...
    def close(self) -> None: ...
    def fail_next_step(self, message: str) -> None:
        """Make the next step fail with a RuntimeError, to test what happens then."""
