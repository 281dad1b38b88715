"""Collectives and gradient averaging over Horovod (MPI, or Gloo under horovodrun; NCCL for CUDA where it was built in).

Names matter: Horovod matches the tensors of different ranks by name, and remembers names it has seen to save a round
of negotiation. So every collective here has one that is the same on every rank and at every step.
"""

import atexit
import math
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reprise.runtime.dist.base import Communicator, Reduction
from reprise.runtime.dist.launcher import Launch
from reprise.runtime.dist.watchdog import Watchdog
from reprise.runtime.errors import SharedUserError, UserError

_GLOO_DEFAULT_S = 30.0

# Horovod's own wait asks again every 0.1 µs, which costs a core per waiting rank where ranks share cores.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5e-5, 1e-3

# HorovodInternalError is raised for our own mistakes too; these words of Horovod's controller tell them apart.
_OUR_MISTAKE = ("Mismatched", "Duplicate", "Invalid", "not supported", "must be", "does not support")


class HorovodCommunicator(Communicator):
    """One rank of a Horovod job. Making it starts Horovod, a collective."""

    name: ClassVar[str] = "horovod"

    def __init__(self, launch: Launch, watchdog: Watchdog, *, deterministic: bool) -> None:
        if deterministic:
            # Tensors that are ready at the same moment are averaged as one buffer, and how a buffer is cut among the
            # ranks decides the order in which each element is summed. Readiness is timing; tensor by tensor it is not.
            os.environ["HOROVOD_FUSION_THRESHOLD"] = "0"
            os.environ.pop("HOROVOD_AUTOTUNE", None)
        self.elastic = os.environ.get("HOROVOD_ELASTIC") == "1"
        # A rank that was only slow must not be taken for lost before the limit that the user set for all waiting; where
        # ranks that are lost are replaced, waiting must end before that limit ends the process.
        gloo_s = min(_GLOO_DEFAULT_S, watchdog.limit_s / 2) if self.elastic else max(_GLOO_DEFAULT_S, watchdog.limit_s)
        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(math.ceil(gloo_s)))
        # Horovod's thread waits inside MPI, which polls; on a core of its own that costs nobody anything, but where the
        # training thread shares it a step takes several times as long. Open MPI yields by itself only when there are
        # more ranks than cores.
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
        self._hvd = _import(launch)
        self._membership = _Membership()
        before = _sockets()
        with watchdog.watch("the start of Horovod"):
            self._hvd.init()
        self._sockets = _sockets() - before
        if self.elastic:
            self._membership.listen()
            # The environment keeps the numbers with which this process was started.
            watchdog.who = f"rank {self._hvd.rank()} of {self._hvd.size()} on {socket.gethostname()}"
        elif self._hvd.size() != launch.size:
            raise UserError(
                f"{launch.launcher} started {launch.size} processes but Horovod sees {self._hvd.size()}: it was not "
                "built with this MPI; start with 'horovodrun --gloo', or build Horovod against the MPI used here"
            )
        if torch.cuda.is_available():
            torch.cuda.set_device(self._hvd.local_rank() % torch.cuda.device_count())
        self._ops = {
            "mean": self._hvd.Average,
            "sum": self._hvd.Sum,
            "min": self._hvd.Min,
            "max": self._hvd.Max,
        }
        super().__init__(
            launch.launcher, self._hvd.rank(), self._hvd.size(), self._backend(), watchdog, deterministic=deterministic
        )
        self.local_rank, self.local_size = self._hvd.local_rank(), self._hvd.local_size()

    @contextmanager
    def averaged_gradients(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        if self.size == 1:
            yield
            return
        if optimizer.__dict__.get("_reprise_adasum"):
            with self.guard("gradients"):  # Adasum communicates inside step()
                yield
            return
        assert hasattr(optimizer, "synchronize"), (
            "averaged_gradients() needs the optimiser that data_parallel() returned"
        )
        with self.guard("gradients"):
            optimizer.synchronize()
        with optimizer.skip_synchronize():  # type: ignore[attr-defined]
            yield

    @property
    def changed(self) -> bool:
        return self._membership.changed

    def leave(self) -> None:
        self._membership.stop()
        if self._lost:
            # Whoever waits for this rank, and not for the one that is gone, would learn of it by time-out only.
            for number, _ in self._sockets & _sockets():
                with suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
                    connection.shutdown(socket.SHUT_RDWR)
        super().leave()

    def _allreduce(self, tensor: Tensor, op: Reduction, label: str) -> Tensor:
        name = f"reprise/{label}.{op}"
        result: Tensor = self._wait(self._hvd.allreduce_async_(tensor, name=name, op=self._ops[op]))
        return result

    def _allgather(self, data: Tensor, label: str) -> Tensor:
        result: Tensor = self._wait(self._hvd.allgather_async(data[None], name=f"reprise/{label}"))
        return result

    def _broadcast(self, data: Tensor, root: int, label: str) -> None:
        self._wait(self._hvd.broadcast_async_(data, root_rank=root, name=f"reprise/{label}"))

    def _alltoall(self, rows: Tensor, splits: Tensor, label: str) -> tuple[Tensor, Tensor]:
        handle = self._hvd.alltoall_async(rows, splits=splits.to(torch.int32), name=f"reprise/{label}")
        received, received_splits = self._wait(handle)
        return received.reshape(-1, rows.shape[1]), received_splits.to(torch.int64)

    def _data_parallel(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compression: str,
        op: str,
        gradient_predivide_factor: float,
        backward_passes_per_step: int,
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """backward_passes_per_step: Horovod counts the passes and averages after the last; gradients are summed over
        passes (only TensorFlow's binding divides). A parameter that no rank used gets a gradient of zeros, so weight
        decay and momentum still move it, the same on every rank.
        """
        if op == "adasum":
            self._check_adasum(gradient_predivide_factor)
        parameters = dict(model.named_parameters())
        if any("_reprise_hooked" in parameter.__dict__ for parameter in parameters.values()):
            # Its hooks are never removed: two optimisers would both average each gradient.
            raise RuntimeError("data_parallel() was called twice over the same parameters; Horovod allows it once")
        for parameter in parameters.values():
            parameter._reprise_hooked = True  # type: ignore[attr-defined]  # copies of the parameter do not have it
        wrapped: torch.optim.Optimizer = self._hvd.DistributedOptimizer(
            optimizer,
            named_parameters=[(f"gradient.{name}", parameter) for name, parameter in parameters.items()],
            compression=self._hvd.Compression.fp16 if compression == "fp16" else self._hvd.Compression.none,
            op=self._hvd.Adasum if op == "adasum" else self._hvd.Average,
            gradient_predivide_factor=gradient_predivide_factor,
            backward_passes_per_step=backward_passes_per_step,
        )
        wrapped.load_state_dict(optimizer.state_dict())  # Horovod builds a new optimiser, without the old one's state
        wrapped.__dict__["_reprise_adasum"] = op == "adasum"
        wrapped.__dict__["zero_grad"] = _zero_grad(wrapped)
        return model, wrapped

    def _wait(self, handle: int) -> Any:
        """The result of a collective, waited for asleep."""
        pause = _FIRST_PAUSE_S
        while not self._hvd.poll(handle):
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return self._hvd.synchronize(handle)

    def _is_loss(self, error: BaseException) -> bool:
        from horovod.common.exceptions import HorovodInternalError

        return isinstance(error, HorovodInternalError) and not any(words in str(error) for words in _OUR_MISTAKE)

    def _shutdown(self) -> None:
        self._hvd.shutdown()

    def _forget(self) -> None:
        atexit.unregister(self._hvd.shutdown)  # it would wait for the background thread, and that for the dead rank

    def _backend(self) -> str:
        if self._hvd.nccl_built() and torch.cuda.is_available():
            return "nccl"
        return "mpi" if self._hvd.mpi_enabled() else "gloo"

    def _check_adasum(self, gradient_predivide_factor: float) -> None:
        if gradient_predivide_factor != 1.0:
            raise SharedUserError(
                f"gradient_predivide_factor={gradient_predivide_factor} does not go with use_adasum; leave one out"
            )
        if self.size & (self.size - 1):
            raise SharedUserError(f"use_adasum needs 2, 4, 8, ... ranks, there are {self.size}; choose one of these numbers")
        if self.backend == "gloo" and self.size > 1:
            raise SharedUserError(
                "use_adasum is not in Horovod's gloo backend; start with mpirun, or leave use_adasum out"
            )


class _Membership:
    """Hears from horovodrun, on rank 0, that hosts have come or are to go."""

    def __init__(self) -> None:
        self.changed = False

    def listen(self) -> None:
        from horovod.common.elastic import notification_manager

        notification_manager.init()  # the first time in a process; later calls do nothing
        notification_manager.register_listener(self)

    def stop(self) -> None:
        from horovod.common.elastic import notification_manager

        notification_manager.remove_listener(self)

    def on_hosts_updated(self, timestamp: int, update: int) -> None:
        """Called by Horovod in a thread of its own."""
        self.changed = True


def _sockets() -> set[tuple[int, int]]:
    """This process's sockets: descriptor, and inode, as descriptors are used again. Empty where there is no /proc."""
    found = set()
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the descriptor of this very listing
                status = os.stat(f"/proc/self/fd/{name}")
                if stat.S_ISSOCK(status.st_mode):
                    found.add((int(name), status.st_ino))
    return found


def _import(launch: Launch) -> Any:
    try:
        import horovod.torch as hvd
    except (ImportError, OSError) as error:  # OSError: the MPI library it was built against is not there
        raise UserError(
            f"{launch.launcher} started {launch.size} processes, but Horovod cannot be imported ({error}); "
            "use torchrun or install Horovod (pip install 'reprise[horovod]')"
        ) from error
    return hvd


def _zero_grad(optimizer: torch.optim.Optimizer) -> Any:
    """Horovod's zero_grad() takes no arguments; torch's does, and loops rely on it."""

    def zero_grad(set_to_none: bool = True) -> None:
        in_flight = optimizer._handles  # type: ignore[attr-defined]
        assert not in_flight, "zero_grad() after backward() and before averaged_gradients(): gradients are in flight"
        torch.optim.Optimizer.zero_grad(optimizer, set_to_none=set_to_none)

    return zero_grad
