"""Collectives over torch.distributed (Gloo on the CPU, NCCL for CUDA tensors) and DistributedDataParallel.

What torchrun starts, and what REPRISE_DIST=torch asks for where MASTER_ADDR and MASTER_PORT are set.
"""

import gc
import inspect
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reprise.runtime.dist.base import Communicator, Reduction
from reprise.runtime.dist.launcher import Launch
from reprise.runtime.dist.watchdog import Watchdog
from reprise.runtime.errors import SharedUserError, UserError

_LOOK_EVERY_S = 0.005

# Words in a RuntimeError that only a broken connection explains; Gloo has no error class of its own.
_LOSS_WORDS = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "gloo/transport",
    "Gloo",
    "NCCL",
    "remote process exited",
)
# Renamed in torch 2.13; the old name warns there.
_SIGNATURE = inspect.signature(DistributedDataParallel.__init__)
_KEEP_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _SIGNATURE.parameters else "broadcast_buffers"


class TorchCommunicator(Communicator):
    """One rank of a torch.distributed job. Making it meets the others, a collective."""

    name: ClassVar[str] = "torch"

    def __init__(self, launch: Launch, watchdog: Watchdog, *, deterministic: bool) -> None:
        cuda = torch.cuda.is_available()
        store = _meet(launch, watchdog.limit_s)
        # Gloo's own limit is far beyond the watchdog's, whose message says more.
        with watchdog.watch("the start of torch.distributed"):
            td.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=store,
                rank=launch.rank,
                world_size=launch.size,
                timeout=timedelta(seconds=2 * watchdog.limit_s + 60),
            )
        self._ops: Mapping[str, td.ReduceOp.RedOpType] = {
            "mean": td.ReduceOp.SUM,
            "sum": td.ReduceOp.SUM,
            "min": td.ReduceOp.MIN,
            "max": td.ReduceOp.MAX,
        }
        super().__init__(
            launch.launcher,
            launch.rank,
            launch.size,
            "nccl" if cuda else "gloo",
            watchdog,
            deterministic=deterministic,
        )
        if launch.local_rank is not None and launch.local_size is not None:
            self.local_rank, self.local_size = launch.local_rank, launch.local_size
        if cuda:
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())

    def accumulate(self, model: nn.Module) -> AbstractContextManager[None]:
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def _allreduce(self, tensor: Tensor, op: Reduction, label: str) -> Tensor:
        td.all_reduce(tensor, self._ops[op])
        return tensor.div_(self.size) if op == "mean" else tensor

    def _allgather(self, data: Tensor, label: str) -> Tensor:
        gathered = list(data.new_empty((self.size, len(data))))
        td.all_gather(gathered, data)
        return torch.stack(gathered)

    def _broadcast(self, data: Tensor, root: int, label: str) -> None:
        td.broadcast(data, root)

    def _alltoall(self, rows: Tensor, splits: Tensor, label: str) -> tuple[Tensor, Tensor]:
        received_splits = torch.empty_like(splits)
        td.all_to_all_single(received_splits, splits)
        received = rows.new_empty((int(received_splits.sum()), rows.shape[1]))
        td.all_to_all_single(received, rows, received_splits.tolist(), splits.tolist())
        return received, received_splits

    def _data_parallel(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compression: str,
        op: str,
        gradient_predivide_factor: float,
        backward_passes_per_step: int,
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A parameter that no rank used keeps no gradient, so the optimiser leaves it alone.

        Several forwards may share one backward pass if they use the same parameters; with different ones (two heads in
        two forwards) DistributedDataParallel raises "mark a variable ready only once". Horovod takes both.
        """
        if op != "average" or gradient_predivide_factor != 1.0:
            what = "use_adasum" if op == "adasum" else f"gradient_predivide_factor={gradient_predivide_factor}"
            raise SharedUserError(f"{what}: only Horovod has this; start with mpirun, or leave the option out")
        # find_unused_parameters always: which heads and adapters take part changes with the task, and a parameter that
        # is left out otherwise fails the next step with the others' gradients not averaged. It costs one walk over
        # the graph per forward, and one line of torch's on stderr that it was not needed in the first.
        # Buffers stay as they are between forwards: copying them would break the first of two forwards of one step.
        keep_buffers: dict[str, Any] = {_KEEP_BUFFERS: False}
        wrapped = DistributedDataParallel(model, find_unused_parameters=True, init_sync=False, **keep_buffers)
        if compression == "fp16":
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

            wrapped.register_comm_hook(None, fp16_compress_hook)
        return wrapped, optimizer

    def _is_loss(self, error: BaseException) -> bool:
        if isinstance(error, td.DistError):
            return True
        return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOSS_WORDS)

    def _shutdown(self) -> None:
        # Gloo's threads are joined once nothing refers to the process group. A DistributedDataParallel that is garbage
        # but not collected keeps it alive, and a thread that drops a tensor while the interpreter ends aborts it.
        gc.collect()
        td.destroy_process_group()

    def _forget(self) -> None:
        """Gloo does not wait for anyone when the interpreter ends."""


def _meet(launch: Launch, limit_s: float) -> "td.Store":
    """Wait until every rank has come to the meeting point. Raises UserError naming its address and port."""
    if launch.size == 1 and "MASTER_ADDR" not in os.environ:
        return td.HashStore()
    for variable in ("MASTER_ADDR", "MASTER_PORT"):
        if variable not in os.environ:
            raise UserError(
                f"torch.distributed with {launch.size} processes needs {variable}, which is not set; "
                "use torchrun, or set MASTER_ADDR and MASTER_PORT to a host of rank 0 and a free port"
            )
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store, _, _ = next(
            td.rendezvous("env://", launch.rank, launch.size, timeout=timedelta(seconds=limit_s))
        )
        # Only rank 0's store waits for the others by itself; nothing sent here may be mistaken for a lost peer later.
        store.add("reprise/here", 1)
        return _without_earlier_keys(store, launch, limit_s) if "TORCHELASTIC_RUN_ID" in os.environ else store
    except (td.DistError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"rank {launch.rank} of {launch.size} cannot meet the others at MASTER_ADDR:MASTER_PORT={address}:{port}: "
            f"{reason}; choose a free port, or a longer REPRISE_TIMEOUT than {limit_s:g} s"
        ) from error


def _without_earlier_keys(store: "td.Store", launch: Launch, limit_s: float) -> "td.Store":
    """A part of the store that is this attempt's alone.

    torchrun's agent keeps the store when it starts its workers anew, with the addresses of those that are dead. It gives
    attempts no number that is the same on all nodes, so each process brings a word of its own, rank 0 answers every word
    with its own one, and what it says names the part.
    """
    own = secrets.token_hex(8)
    store.set(f"reprise/word of {launch.rank}", own)
    if launch.rank:
        store.wait([f"reprise/answer to {own}"], timedelta(seconds=limit_s))
        name = store.get(f"reprise/answer to {own}").decode()
        store.set(f"reprise/{name} has {launch.rank}", "")
        return td.PrefixStore(name, store)
    missing, deadline = set(range(1, launch.size)), time.monotonic() + limit_s
    while missing:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no word from {len(missing)} rank(s), rank {min(missing)} among them")
        for rank in sorted(missing):
            if store.check([f"reprise/{own} has {rank}"]):
                missing.remove(rank)
            elif store.check([f"reprise/word of {rank}"]):  # a dead one's, maybe: it is looked at again
                word = store.get(f"reprise/word of {rank}").decode()
                store.set(f"reprise/answer to {word}", own)
        time.sleep(_LOOK_EVERY_S)
    return td.PrefixStore(own, store)
