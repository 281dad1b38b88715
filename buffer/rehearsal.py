"""RehearsalBuffer: the rehearsal memory as a training loop sees it. The engines behind it never face the user.

Per step: `submit()` a batch and `wait()` for the draws prepared meanwhile, or `augment()`, which does both and returns
one contiguous batch. Which sample is stored where is decided in policies/, what is drawn in plan.py.
"""

import functools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from reprise.buffer import reach, snapshot
from reprise.buffer.batches import CopiedBatches
from reprise.buffer.native_engine import Address, NativeEngine, Reach
from reprise.buffer.policies.random_words import Int64s
from reprise.buffer.python_engine import PythonEngine
from reprise.buffer.schema import Draw, Empty, Estate, Field, Prepared, Spec, draws_of
from reprise.runtime import dist as runtime_dist
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import SharedUserError, UserError
from reprise.runtime.files import disk_errors
from reprise.runtime.registry import nearest

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("standard", "flyweight", "python")
MAX_THREADS = 1024


class RehearsalBuffer:
    """A memory of `capacity` samples over all ranks, and independent uniform draws from it at every step.

    fields: name -> Field, what is stored with each sample besides its label and task. capacity: samples summed over all
    ranks, shared out evenly. draws: samples per draw on this rank, one entry per independent draw of a step.
    candidates: at most so many of each batch, chosen uniformly, are offered to the policy (None: all).
    policy: "class_balanced" | "reservoir" | "fifo". scope: draw from all ranks ("global") or this one ("local").
    implementation: "standard" | "flyweight" | "python". seed: the same on all ranks. deterministic: contents and draws
    depend on seed, world size and batches alone. device: where draws are delivered. dist: a Communicator, default the
    current one. storage: "memory", or "file:/path" for capacities beyond it: samples lie in a file without a name in
    the folder /path, or where the file /path.<rank> would be. threads: how many the engine may copy with, on this rank.
    ("python" has neither: its samples lie in memory, and it works when it is called.) transport: how samples of other
    ranks are read, "auto" | "shm" | "ucx" | "collectives"; "auto" takes shared memory within a node and UCX between
    nodes, and collectives, with implementation "python", where those do not reach everybody. interface: network
    interfaces that UCX may use, like "eth0" or "mlx5_0:1"; "" leaves it to UCX_NET_DEVICES, else to UCX.

    Raises UserError (a ValueError) for bad arguments and when the memory or disk asked for exceed what the node has.
    Not thread-safe: one thread per buffer. With more than one rank and scope "global" making a buffer is a collective,
    and every rank must call `submit`, `augment` and `save` equally often: they may exchange data. A batch of 0 rows is
    allowed.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        capacity: int,
        draws: tuple[int, ...] = (16,),
        candidates: int | None = None,
        policy: str = "class_balanced",
        scope: str = "global",
        implementation: str = "standard",
        seed: int = 42,
        deterministic: bool = False,
        device: str | torch.device = "cpu",
        dist: Communicator | None = None,
        *,
        storage: str = "memory",
        threads: int = 1,
        transport: str = "auto",
        interface: str = "",
    ) -> None:
        self._comm = dist if dist is not None else runtime_dist.current()
        self.deterministic = deterministic
        self._closed = False

        def check() -> str:
            self.device = _device(device)
            self.spec = Spec(
                dict(fields), capacity, draws, candidates, policy, scope, seed, self._comm.rank, self._comm.size
            )
            if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MAX_THREADS:
                raise UserError(f"threads must be a whole number from 1 to {MAX_THREADS}, got {threads!r}")
            _check_implementation(implementation)
            reach.check(transport, implementation)
            return _storage_path(storage, self._comm)

        # A rank that refuses its arguments must not leave the others waiting in what comes next.
        together = scope == "global" and self._comm.size > 1
        folder = self._comm.agree(check, name="rehearsal.arguments") if together else check()
        self._reach = reach.decide(self.spec, self._comm, implementation, transport)
        interface = interface or os.environ.get("UCX_NET_DEVICES", "") or self._reach.interface
        self.implementation = "python" if self._reach.why_python else implementation
        self._say_why_python(implementation)
        self._native: NativeEngine | None = None
        self._engine: NativeEngine | PythonEngine
        if not self.spec.exchanges:
            self._build(folder, threads, interface)
        else:
            self._build_together(folder, threads, transport, interface)
        native_here = self._native if self._native is not None and self._native.device == self.device else None
        # "standard" gathers representatives to where they belong in the batch; the others' are copied there.
        self._in_place = native_here if self.implementation == "standard" else None
        self._native_here = native_here
        self._batches = CopiedBatches(self.spec, self.device)

    # ---- a step

    def submit(self, *, y: Tensor, task: int | Tensor | None = None, copy: bool = False, **fields: Tensor) -> None:
        """Offer a batch to the policy, then prepare the draws of the next step.

        y: int64 (b,). task: int, integer (b,) or None (stored as -1). fields: (b, *shape) each. On the CPU or on
        `device`. Raises UserError naming the field for a wrong shape, dtype, device or missing field, and then stores
        nothing of the batch.

        Returns at once: the engine copies in the background and keeps the tensors alive meanwhile. They may be
        overwritten once the draw that was prepared after them has been delivered, that is when the first `wait()` or
        `augment()` after the *next* submit returns, or when `drain()` returns. copy=True: as soon as this returns, at
        the price of a copy here. A change in place that comes too early is found, where torch counts it, and raised as
        RuntimeError by a later call. ("python" has read everything when this returns.)
        """
        # The common case in one call: everything before the engine is time that the training step waits.
        if self._native is None or copy or not self._native.submit_as_is(fields, y, task):
            self._open()
            self.spec.check_batch(fields, y, self.device)
            self._engine.submit(fields, y, self.spec.check_task(task, len(y), self.device), copy)

    def wait(self) -> tuple[Draw, ...]:
        """The draws prepared during the previous step, one per entry of `draws`; the first call returns 0 rows.

        A draw has min(r, samples stored) rows on `device`, valid until the next `wait()` or `augment()` returns.
        """
        if self._native_here is not None:
            return self._native_here.draws()
        self._open()
        return draws_of(self._prepared())

    def augment(self, *, y: Tensor, task: int | Tensor | None = None, **fields: Tensor) -> Draw:
        """wait(), put the batch and all draws into contiguous tensors, submit(batch).

        Returns b + n rows per column on `device`: rows 0..b-1 are the arguments (weight 1, this rank), then the draws
        one after the other; `sizes` is (b, n_1, ...). Rows obtained from `rows(b)` are not copied. Valid until the next
        `wait()` or `augment()` returns; until then the arguments must not be overwritten (see `submit`), nor the
        result's first b rows if they came from `rows(b)`. Raises as `submit`, before anything is taken or stored.
        """
        self._open()
        self.spec.check_batch(fields, y, self.device)
        tasks = self.spec.check_task(task, len(y), self.device)
        rows = len(y)
        if self._in_place is not None:
            self._in_place.reserve_front(rows)
            columns, start, sizes = self._prepared()
        else:
            columns, start, sizes = self._batches.join(rows, self._prepared())
        first = start - rows
        own = {name: self._place(value, columns[name][first:start]) for name, value in fields.items()}
        own_y = self._place(y, columns["y"][first:start])
        columns["task"][first:start] = tasks
        # The batch that lay here before was its owner's to change.
        columns["weight"][first:start] = 1.0
        columns["rank"][first:start] = self.spec.rank
        self._engine.submit(own, own_y, tasks, copy=False)
        return Draw(columns, (rows, *sizes), first)

    def rows(self, b: int) -> dict[str, Tensor]:
        """Uninitialised rows 0..b-1 of the next batch, by name ("y" included), for a loader to collate into.

        Pass them on with `augment(**rows, task=...)`, which then copies nothing; the first rows of them may be passed
        on too, and are copied. Valid until that call returns.
        """
        self._open()
        if b < 0:
            raise UserError(f"rows(b): b must be >= 0, got {b}")
        return self._batches.rows(b) if self._in_place is None else self._in_place.rows(b)

    # ---- what is in it

    def __len__(self) -> int:
        """Samples stored on this rank. Like all questions about the contents it waits for what was submitted."""
        self._open()
        return self._engine.stored

    @property
    def seen(self) -> int:
        """Samples submitted on this rank."""
        self._open()
        return self._engine.submitted

    @property
    def fields(self) -> Mapping[str, Field]:
        """What is stored with each sample."""
        return self.spec.fields

    @property
    def capacity(self) -> int:
        """Samples over all ranks that fit."""
        return self.spec.capacity

    @property
    def global_size(self) -> int:
        """Samples stored on all ranks as of the last submit. With scope "local" this is a collective call."""
        self._open()
        return self._engine.global_stored

    @property
    def bytes_per_rank(self) -> int:
        """Payload bytes allocated on this rank."""
        return self.spec.share * self.spec.bytes_per_sample

    @property
    def transport(self) -> str:
        """How samples of other ranks are read."""
        return self._engine.transport

    def class_counts(self) -> dict[int, int]:
        """{label: samples stored} on this rank."""
        self._open()
        return self._engine.class_counts()

    def stored(self, rows: int) -> Iterator[dict[str, Tensor]]:
        """All samples on this rank, as copies on the CPU, at most `rows` at a time: every field, "y" and "task".

        Waits for what was submitted. Nothing may be submitted until it has ended.
        """
        self.drain()
        names = (*self.fields, "y", "task")
        stored = len(self)
        for start in range(0, stored, rows):
            slots = np.arange(start, min(start + rows, stored))
            columns = self._engine.state_dict(slots)["shard"]["columns"]
            yield {name: columns[name] for name in names}

    def timings(self) -> dict[str, dict[str, float]]:
        """Per part of the work: count, total, mean, p50 and p95 in ms.

        "submit": the call; "queue": from there until the engine begins; "insert", "plan", "fetch": its work; "wait":
        the time a wait() was blocked.
        """
        return self._engine.timings()

    def recent_timings(self) -> dict[str, list[tuple[int, int]]]:
        """Per part of the work, as in timings(): when its last times, at most 1,024, began and ended, oldest first.

        In nanoseconds of time.perf_counter_ns(), so that they can be laid beside those of a training loop. On any
        thread.
        """
        return self._engine.recent_timings()

    # ---- life

    def drain(self) -> None:
        """Return once everything submitted is stored and the next draw is ready. Raises what went wrong meanwhile."""
        self._open()
        self._engine.drain()

    def state_dict(self, slots: Int64s | None = None, empty: Empty | None = None) -> dict[str, Any]:
        """This rank's shard, counters, position in the random streams and draws in flight; tensors and numbers only.

        For increments.py: of the samples only those in `slots`, which cannot be loaded; copied to columns that `empty`
        makes, given a column's name and the number of samples.
        """
        self._open()
        schema = snapshot.schema_of(self.spec)
        return {"schema": schema, "rank": self.spec.rank, "engine": self._engine.state_dict(slots, empty)}

    def versions(self) -> Int64s:
        """Per slot of this rank that holds a sample a number that changes whenever it is written."""
        self._open()
        return self._engine.versions()

    def estates(self) -> list[Estate]:
        """What other ranks hold, and left here when they ended; for regroup.py."""
        self._open()
        return self._engine.estates()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back `state_dict()` of the same rank. Raises UserError naming what differs; then nothing is changed."""
        self._open()
        snapshot.check_schema(state["schema"], self.spec, "state_dict")
        for key, got, expected in (
            ("world_size", state["schema"]["world_size"], self.spec.world_size),
            ("rank", state["rank"], self.spec.rank),
        ):
            if got != expected:
                raise UserError(f"state_dict: {key} is {got}, this buffer has {expected}; use save() and restore()")
        self._engine.load_state_dict(state["engine"])

    def save(self, folder: str | Path) -> None:
        """Write all ranks' shards to `folder`, which all ranks must see. Collective.

        An earlier save in the same folder stays valid until the new one is complete. Raises UserError on disk errors,
        on every rank.
        """
        self.drain()
        snapshot.save(Path(folder), self.state_dict(), self._comm)

    @classmethod
    def restore(cls, folder: str | Path, **arguments: Any) -> "RehearsalBuffer":
        """A buffer built with `arguments` that continues what `save` wrote, on any number of ranks. Collective.

        On as many ranks as saved everything continues exactly. On another number the samples are dealt out anew, evenly
        per class, and the counters are split so that the policies' probabilities go on. Raises UserError for a missing,
        damaged or different snapshot, naming the file or the field.
        """
        buffer = cls(**arguments)
        try:
            # Reading is agreed on: a file that one rank finds damaged must not leave the others waiting.
            state, step = buffer._comm.agree(lambda: snapshot.read(Path(folder), buffer.spec), name="rehearsal.restore")
            buffer.go_on(state, step)
        except BaseException:
            buffer.close()
            raise
        return buffer

    def go_on(self, state: dict[str, Any], step: int | None) -> None:
        """Begin with this rank's saved state, or with a shard dealt out to it and the step that is of. Collective."""
        if step is None:
            self._engine.load_state_dict(state)
        else:
            self._engine.continue_from(state, step)
        if self.spec.exchanges:
            self._comm.barrier(name="rehearsal.restored")  # before anybody draws from what another has not read

    def close(self) -> None:
        """Release the memory. Idempotent; afterwards whatever needs the contents raises RuntimeError.

        May be called from another thread, to wake a blocked wait(). Draws and batches handed out stay readable.
        """
        if not self._closed and self._native is not None and logger.isEnabledFor(logging.DEBUG):
            for line in self._native.describe_peers():
                logger.debug("rehearsal buffer: %s", line)
        self._closed = True
        self._engine.close()

    def __enter__(self) -> "RehearsalBuffer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside

    def _build(self, folder: str, threads: int, interface: str) -> Address | None:
        """Make the engine; returns where other ranks find it, if they look for it."""
        if self.implementation == "python":
            self._engine = self._python_engine(folder)
            return None
        self._check_room(folder)
        self._engine = self._native = NativeEngine(
            self.spec,
            self._comm,
            reach=self._reach,
            interface=interface,
            deterministic=self.deterministic,
            device=self.device,
            threads=threads,
            storage=folder,
        )
        return self._native.address if self.spec.exchanges else None

    def _build_together(self, folder: str, threads: int, transport: str, interface: str) -> None:
        """Make every rank's engine and tell them of each other; what one rank is refused is raised on all."""
        try:
            addresses = self._comm.collect(lambda: self._build(folder, threads, interface), name="rehearsal.addresses")
        except BaseException:
            if self._native is not None:
                self._native.close()
            raise
        if self._native is not None:
            self._native.connect([address for address in addresses if address is not None])
        if "ucx" in self.transport:
            self._check_network(folder, transport, interface)
        if self._comm.rank == 0:
            logger.info("rehearsal buffer: %d ranks read each other's samples by %s", self._comm.size, self.transport)

    def _python_engine(self, folder: str) -> PythonEngine:
        if folder:
            raise UserError(f"storage 'file:{folder}' needs the C++ engine, but the buffer runs 'python'; use 'memory'")
        self._check_room(folder)
        try:
            return PythonEngine(self.spec, self._comm)
        except RuntimeError as error:  # what torch raises when memory is refused
            reason = str(error).splitlines()[0]
            raise UserError(f"no room for the rehearsal buffer: {reason}; lower capacity") from error

    def _check_network(self, folder: str, transport: str, interface: str) -> None:
        """Make sure that ranks on other nodes answer, else go through collectives, unless something else was chosen."""
        native = self._native
        assert native is not None
        reason = next(filter(None, self._comm.collect(native.why_apart, name="rehearsal.greetings")), "")
        if not reason:
            return
        native.close()
        if interface:
            raise SharedUserError(f"interface '{interface}' does not connect all ranks: {reason}; choose another")
        if transport != "auto":
            raise SharedUserError(f"transport '{transport}' does not reach all ranks: {reason}; choose an interface")
        asked = self.implementation
        self.implementation, self._native, self._reach = "python", None, Reach("collectives", reason)
        self._engine = self._comm.agree(lambda: self._python_engine(folder), name="rehearsal.python")
        self._say_why_python(asked)

    def _say_why_python(self, asked: str) -> None:
        if self._reach.why_python and self._comm.rank == 0:
            _warn_once(f"buffer implementation '{asked}' runs as 'python': {self._reach.why_python}")

    def _open(self) -> None:
        if self._closed:
            raise RuntimeError("the rehearsal buffer is closed")

    def _prepared(self) -> Prepared:
        prepared = self._engine.wait()
        if self._native_here is not None or self.device.type == "cpu":
            return prepared
        delivered = {name: value.to(self.device, non_blocking=True) for name, value in prepared.columns.items()}
        return prepared._replace(columns=delivered)

    def _place(self, source: Tensor, target: Tensor) -> Tensor:
        """Put the rows where they belong in the batch, unless they are there; returns the tensor to submit."""
        source = source.detach()
        at_home = source.device == target.device and source.data_ptr() == target.data_ptr()
        if at_home and source.stride() == target.stride():
            return source
        storage = source.untyped_storage().data_ptr()
        if storage not in (self._in_place or self._batches).storages:
            target.copy_(source, non_blocking=True)
            return source
        # Rows of ours that lie elsewhere: of a smaller batch than rows() was asked for, or of an earlier one, whose
        # memory rows() may hand out again before the engine has read it.
        target.copy_(source.clone() if storage == target.untyped_storage().data_ptr() else source)
        return target

    def _check_room(self, folder: str) -> None:
        """Say how much is asked for, and refuse what does not fit."""
        per_node = self.bytes_per_rank * self._comm.local_size
        if folder:
            place = folder if os.path.isdir(folder) else os.path.dirname(folder) or "."
            with disk_errors("use", Path(place)):
                room, where = shutil.disk_usage(place).free, f"free in '{place}'"
        else:
            room, where = psutil.virtual_memory().available, "available"
        numbers = (
            f"{self.spec.share} of {self.capacity} samples x {self.spec.bytes_per_sample} bytes = "
            f"{self.bytes_per_rank / 2**20:.1f} MiB per rank, {per_node / 2**20:.1f} MiB on this node, "
            f"{room / 2**20:.0f} MiB {where}"
        )
        if per_node > room:
            raise UserError(f"the rehearsal buffer does not fit: {numbers}; lower capacity or rehearsal_ratio")
        logger.info("rehearsal buffer: %s", numbers)


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from error
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise UserError(f"device '{device}': torch finds no GPU here; use device 'cpu'")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def _storage_path(storage: str, comm: Communicator) -> str:
    """Where the samples of this rank lie: a folder, a file's name, or "" for memory."""
    if storage == "memory":
        return ""
    if not isinstance(storage, str) or not storage.startswith("file:") or storage == "file:":
        raise UserError(f"unknown storage {storage!r}; choose 'memory' or 'file:/path' (a folder, or a file's name)")
    path = os.path.expanduser(storage.removeprefix("file:"))
    return path if os.path.isdir(path) else f"{path}.{comm.rank}"


def _check_implementation(implementation: str) -> None:
    if implementation not in IMPLEMENTATIONS:
        hint = nearest(str(implementation), IMPLEMENTATIONS)
        raise UserError(f"unknown implementation '{implementation}'{hint or ';'} choose: {', '.join(IMPLEMENTATIONS)}")


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
