"""Communicator: what the rest of the project knows of other processes. One per process, made by runtime.dist.init().

Here: everything that is the same for every engine (arguments, bytes, names, time limit, lost peers). The engines
(horovod_engine.py, torch_engine.py, solo.py) supply the primitives at the end of the class and the data-parallel
optimiser. Nobody outside runtime.dist imports Horovod or torch.distributed.
"""

import atexit
import logging
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from reprise.runtime.dist import peers, wire
from reprise.runtime.dist.watchdog import Watchdog
from reprise.runtime.errors import PeerLost, SharedUserError, UserError

logger = logging.getLogger(__name__)

_SMALL_BYTES = 1024

T = TypeVar("T")
Reduction = Literal["mean", "sum", "min", "max"]

# Reduced in a wider type: backends refuse the narrow ones, and float16 sums lose bits with every rank.
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.bool: torch.int64,
    torch.uint8: torch.int64,
    torch.int8: torch.int64,
    torch.int16: torch.int64,
    torch.uint16: torch.int64,
    torch.uint32: torch.int64,
}


class Communicator(ABC):
    """Rank, size and collectives of this process.

    A collective must be called by every rank, in the same order, by one thread at a time. `name` is optional: it
    appears in messages about stuck or lost ranks and must be the same on every rank. A collective raises PeerLost when
    another rank is gone, and ends the process (exit code 75) when it lasts longer than the time limit; after PeerLost
    no collective works any more, and only shutdown() and abort() make sense.

    rank, size: of all processes; local_rank, local_size: of this node's. name: the engine; launcher: what started this
    process; backend: what carries the bytes ("gloo", "mpi", "nccl", "none").
    """

    name: ClassVar[str]
    elastic: bool = False
    """The launcher replaces ranks that are lost, and adds new ones: after PeerLost and RanksChanged, regroup()."""

    def __init__(
        self, launcher: str, rank: int, size: int, backend: str, watchdog: Watchdog, *, deterministic: bool
    ) -> None:
        self.launcher = launcher
        self.rank = rank
        self.size = size
        self.backend = backend
        self.deterministic = deterministic
        self.closed = False
        self._watchdog = watchdog
        self._lost = False
        self._owner = os.getpid()
        atexit.register(self.shutdown)
        own = peers.Peer.own(rank)
        self._peers: list[peers.Peer] = [own]
        self._peers = self.allgather_object(own, name="addresses")
        watchdog.others = self._known_of_others
        on_node = [peer.rank for peer in self._peers if peer.host == own.host]
        # By default the order of ranks on the node; engines put what their launcher says instead.
        self.local_rank = on_node.index(rank)
        self.local_size = len(on_node)
        self._limit_threads(peers.fair_share_of_cores(own, self._peers))

    # ---- collectives

    def allreduce(self, tensor: Tensor, op: Reduction = "mean", name: str | None = None) -> Tensor:
        """Elementwise over ranks; a new tensor of the same shape, dtype and device. The mean needs a float dtype."""
        assert op in ("mean", "sum", "min", "max"), f"allreduce: unknown op {op!r}"
        if op == "mean" and not tensor.dtype.is_floating_point:
            raise UserError(
                f"allreduce '{name}': a mean of {tensor.dtype} is not of that dtype; use op='sum' or floats"
            )
        if op == "sum" and tensor.dtype == torch.bool:
            raise UserError(f"allreduce '{name}': a sum of torch.bool is not of that dtype; convert to int64 first")
        # copy=True: the engine may write into what it gets, and never into the caller's tensor.
        wide = tensor.detach().to(_WIDER.get(tensor.dtype, tensor.dtype), copy=True).contiguous()
        if wide.numel() == 0:
            return wide.to(tensor.dtype)
        label = _label("allreduce", name)
        with self.guard(label):
            return self._allreduce(wide, op, label).to(tensor.dtype)

    def allgather(self, tensor: Tensor, name: str | None = None) -> Tensor:
        """The tensors of all ranks, stacked by rank: (size, *tensor.shape). Same shape and dtype on every rank."""
        if tensor.numel() == 0:
            return tensor.detach().new_empty((self.size, *tensor.shape))
        label = _label("allgather", name)
        with self.guard(label):
            gathered = self._allgather(wire.as_bytes(tensor), label)
        return gathered.view(tensor.dtype).reshape(self.size, *tensor.shape)

    def allgather_object(self, value: T, name: str | None = None) -> list[T]:
        """The values of all ranks, by rank. Anything pickle takes; sizes may differ."""
        label = _label("allgather_object", name)
        data = wire.pack(value)
        with self.guard(label):
            # Its size and, where it is small, the value itself: one exchange instead of two.
            first = torch.zeros(8 + _SMALL_BYTES, dtype=torch.uint8)
            first[:8] = torch.tensor([len(data)]).view(torch.uint8)
            small = min(len(data), _SMALL_BYTES)
            first[8 : 8 + small] = data[:small]
            heads = self._allgather(first, label + ".sizes")
            sizes = [int(head[:8].clone().view(torch.int64)) for head in heads]
            gathered = heads[:, 8:]
            if max(sizes) > _SMALL_BYTES:
                padded = torch.zeros(max(sizes), dtype=torch.uint8)
                padded[: len(data)] = data
                gathered = self._allgather(padded, label)
        return [wire.unpack(row[:size]) for row, size in zip(gathered, sizes, strict=True)]

    def broadcast_object(self, value: T, root: int = 0, name: str | None = None) -> T:
        """The value of rank `root`; what other ranks pass is ignored."""
        label = _label("broadcast_object", name)
        with self.guard(label):
            data = self._broadcast_bytes(wire.pack(value) if self.rank == root else None, root, label)
        return value if self.rank == root else wire.unpack(data)

    def broadcast_tensors(self, tensors: Sequence[Tensor], root: int = 0, name: str | None = None) -> None:
        """Overwrite `tensors` in place with those of rank `root`. Same shapes and dtypes on every rank."""
        label = _label("broadcast_tensors", name)
        for index, bucket in enumerate(wire.buckets([tensor for tensor in tensors if tensor.numel()])):
            data = torch.cat([wire.as_bytes(tensor) for tensor in bucket])
            with self.guard(label):
                self._broadcast(data, root, f"{label}.{index}")
            if self.rank == root:
                continue
            parts = torch.split(data, [tensor.nbytes for tensor in bucket])
            with torch.no_grad():
                for tensor, part in zip(bucket, parts, strict=True):
                    # clone: a part may lie at an address that its dtype does not allow
                    tensor.copy_(part.clone().view(tensor.dtype).reshape(tensor.shape))

    def alltoall(self, rows: Tensor, splits: Sequence[int] | Tensor, name: str | None = None) -> tuple[Tensor, Tensor]:
        """Send the first splits[0] of `rows` (n, ...) to rank 0, the next splits[1] to rank 1, and so on.

        Returns the rows received, by sending rank, and how many came from each (int64, CPU, `size` entries). Any
        dtype; n may be 0; the shape of a row is the same on every rank. At most 2 GiB per rank and call, either way.
        """
        counts = torch.as_tensor(splits, dtype=torch.int64, device="cpu").contiguous()
        assert counts.shape == (self.size,), f"alltoall: {counts.numel()} splits for {self.size} ranks"
        assert int(counts.sum()) == len(rows), f"alltoall: splits add up to {int(counts.sum())}, rows are {len(rows)}"
        data = wire.as_rows(rows)
        assert data.shape[1] > 0, "alltoall: a row has no bytes"
        assert data.nbytes < 2**31, f"alltoall: {data.nbytes} bytes in one call; backends count them in 32 bits"
        label = _label("alltoall", name)
        with self.guard(label):
            received, received_counts = self._alltoall(data, counts, label)
        return wire.from_rows(received, rows), received_counts

    def barrier(self, name: str | None = None) -> None:
        """Return when every rank has called it."""
        label = _label("barrier", name)
        with self.guard(label):
            self._allgather(torch.zeros(1, dtype=torch.uint8), label)

    def agree(self, work: Callable[[], T], name: str | None = None) -> T:
        """Run `work` here; a UserError it raises on any rank is raised on every rank, as SharedUserError.

        Without this a rank with a mistake of its own (its disk is full) would leave the others waiting.
        """
        result: list[T] = []
        self.collect(lambda: result.append(work()), name=name or "agree")
        return result[0]

    def collect(self, work: Callable[[], T], name: str | None = None) -> list[T]:
        """The results of `work` on all ranks, by rank; otherwise as agree(). Anything pickle takes."""
        own: tuple[T | None, str | None]
        try:
            own = work(), None
        except UserError as error:
            own = None, str(error)
        everyone = self.allgather_object(own, name=name or "collect")
        problems = [problem for _, problem in everyone]
        for rank, text in enumerate(problems):
            if text is not None:
                everywhere = all(other == text for other in problems)
                raise SharedUserError(text if rank == 0 or everywhere else f"rank {rank}: {text}")
        return [result for result, _ in everyone]  # type: ignore[misc]  # there was no problem anywhere

    @property
    def changed(self) -> bool:
        """Whether this rank has been told that others wait to join, or are to leave."""
        return False

    def running_here(self) -> list[int]:
        """Ranks of this node whose processes run, this one included. After PeerLost gives one that dies time to end."""
        here = [peer for peer in self._peers if peer.host == socket.gethostname()]
        dead = peers.gone(here) if self._lost else peers.gone(here, patience_s=0)
        return [peer.rank for peer in here if peer not in dead]

    @property
    def names(self) -> list[str]:
        """Of all ranks, for messages: "rank 1 (node3:4711)"."""
        return [str(peer) for peer in self._peers]

    @property
    def limit_s(self) -> float:
        """Seconds that this rank waits for another one before it gives up."""
        return self._watchdog.limit_s

    # ---- data-parallel training

    def data_parallel(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        compression: Literal["none", "fp16"] = "none",
        op: Literal["average", "adasum"] = "average",
        gradient_predivide_factor: float = 1.0,
        backward_passes_per_step: int = 1,
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Make gradients of `model` the mean over ranks; returns what to train with instead of the arguments.

        First copies parameters, buffers (running statistics too) and optimiser state of rank 0 to every rank. A
        parameter without a gradient in some step is fine, on one rank or on all. Gradients of several backward passes
        add up, on every engine: the caller divides the loss. compression: what gradients travel as. op="adasum" and a
        gradient_predivide_factor other than 1 need Horovod. Parameters that are frozen now stay out for good.
        """
        assert backward_passes_per_step >= 1, f"backward_passes_per_step={backward_passes_per_step}"
        self.broadcast_tensors([*model.parameters(), *model.buffers()], name="model")
        self._broadcast_optimizer(optimizer)
        return self._data_parallel(
            model, optimizer, compression, op, gradient_predivide_factor, backward_passes_per_step
        )

    @contextmanager
    def averaged_gradients(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Enter after backward(): inside, gradients are the mean over ranks, to be clipped, unscaled and stepped with.

        Gradients may be averaged without a step() inside (A-GEM's reference gradient). Adasum has none to show: it
        combines the updates inside step().
        """
        yield

    def accumulate(self, model: nn.Module) -> AbstractContextManager[None]:
        """Around forward and backward of a pass that is not the last of its step: gradients only add up here."""
        return nullcontext()

    def guard(self, what: str) -> AbstractContextManager[None]:
        """Watch a stretch of code in which the engine talks to other ranks, e.g. `guard("backward")`."""
        return _Guard(self, what)

    def at(self, where: str) -> None:
        """Say how far this rank is, for the message of a collective that is never joined."""
        self._watchdog.where = where

    # ---- the end

    def shutdown(self) -> None:
        """Leave the job in order; runs by itself when the interpreter ends. Later calls do nothing.

        After PeerLost it returns at once, but an engine may still hang when the interpreter ends: use abort().
        """
        if self.closed or os.getpid() != self._owner:  # a forked child has inherited the handler, not the connections
            return
        self.closed = True
        atexit.unregister(self.shutdown)
        if self._lost:
            self._forget()
            return
        with self.guard("shutdown"):
            self._shutdown()

    def leave(self) -> None:
        """Give up this job's connections without the others, who do the same; for regroup()."""
        self.closed = True
        atexit.unregister(self.shutdown)
        self._shutdown()

    def abort(self, code: int) -> None:
        """End this process at once, without the engine's orderly end, so that the other ranks notice."""
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def __enter__(self) -> "Communicator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    # ---- what an engine supplies; all CPU tensors unless the caller's was elsewhere, contiguous, never empty

    @abstractmethod
    def _allreduce(self, tensor: Tensor, op: Reduction, label: str) -> Tensor:
        """float32, float64, int32, int64 (or the caller's own wider dtype); may reuse `tensor`."""

    @abstractmethod
    def _allgather(self, data: Tensor, label: str) -> Tensor:
        """(n,) uint8, same n on every rank, to (size, n)."""

    @abstractmethod
    def _broadcast(self, data: Tensor, root: int, label: str) -> None:
        """(n,) uint8, in place."""

    @abstractmethod
    def _alltoall(self, rows: Tensor, splits: Tensor, label: str) -> tuple[Tensor, Tensor]:
        """(n, width) uint8 and int64 splits; n may be 0. Returns the received rows and their int64 splits."""

    @abstractmethod
    def _data_parallel(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compression: str,
        op: str,
        gradient_predivide_factor: float,
        backward_passes_per_step: int,
    ) -> tuple[nn.Module, torch.optim.Optimizer]: ...

    @abstractmethod
    def _is_loss(self, error: BaseException) -> bool:
        """Whether this error of the engine means that another rank is gone (and not, say, a wrong shape)."""

    @abstractmethod
    def _shutdown(self) -> None:
        """End the engine in order, together with the other ranks where it needs that."""

    @abstractmethod
    def _forget(self) -> None:
        """After PeerLost: keep the engine from waiting for the dead at the interpreter's end, as far as it allows."""

    # ---- shared parts

    def _broadcast_bytes(self, data: Tensor | None, root: int, label: str) -> Tensor:
        size = torch.tensor([0 if data is None else len(data)])
        self._broadcast(size.view(torch.uint8), root, label + ".size")
        payload = torch.empty(int(size), dtype=torch.uint8) if data is None else data
        self._broadcast(payload, root, label)
        return payload

    def _broadcast_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """State and hyper-parameters of rank 0, which may have them from a checkpoint the others have not read."""
        label = _label("broadcast_optimizer", None)
        packed = wire.pack_state(optimizer.state_dict()) if self.rank == 0 else None
        with self.guard(label):
            data = self._broadcast_bytes(packed, 0, label)
        if self.rank != 0:
            optimizer.load_state_dict(wire.unpack_state(data))

    def _limit_threads(self, share: int) -> None:
        # OMP_NUM_THREADS is the user's word (or torchrun's).
        if "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() <= share:
            return
        logger.debug("%d of %d torch threads: this rank's share of the cores", share, torch.get_num_threads())
        torch.set_num_threads(share)

    def _known_of_others(self) -> str:
        """Which processes of this node are gone and which still run."""
        local = [peer for peer in self._peers if peer.host == socket.gethostname() and peer.rank != self.rank]
        dead = peers.gone(local, patience_s=0)
        running = [peer for peer in local if peer not in dead]
        parts = [("gone", dead), ("still running here", running)]
        return "; ".join(f"{state}: {', '.join(map(str, which))}" for state, which in parts if which)

    def _explain_loss(self, what: str, error: BaseException) -> str:
        host = socket.gethostname()
        others = [peer for peer in self._peers if peer.rank != self.rank]
        local = [peer for peer in others if peer.host == host]
        dead = peers.gone(local)
        if dead:
            cause = "another process is gone: " + ", ".join(map(str, dead))
        elif len(local) < len(others):
            cause = f"a process on another node is gone (all {len(local)} others on this one run)"
        else:
            cause = "another rank has left, though its process still runs"
        reason = " ".join(str(error).split())[:120]
        return f"rank {self.rank} of {self.size} ({host}:{os.getpid()}): {what} failed, {cause} [{reason}]"


class _Guard:
    """The context manager behind Communicator.guard(); a class because it is entered at every collective."""

    __slots__ = ("_comm", "_token", "_what")

    def __init__(self, comm: Communicator, what: str) -> None:
        self._comm = comm
        self._what = what

    def __enter__(self) -> None:
        self._token = self._comm._watchdog.arm(self._what) if self._comm.size > 1 else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            self._comm._watchdog.disarm(self._token)
        if error is not None and not isinstance(error, PeerLost) and self._comm._is_loss(error):
            self._comm._lost = True
            raise PeerLost(self._comm._explain_loss(self._what, error)) from error


def _label(kind: str, name: str | None) -> str:
    return kind if name is None else f"{kind} '{name}'"
