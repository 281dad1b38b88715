"""The C++ engine as the buffer drives it: tensors in, views of staging memory out.

The engine works in a thread of its own and copies submitted tensors when it comes to them; until then the binding keeps
them alive. Decides nothing: see cpp_loader/src/engine.h for what happens on the other side.
"""

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from reprise import cpp_loader
from reprise.buffer.policies.random_words import Int64s
from reprise.buffer.schema import Columns, Draw, Empty, Estate, Field, Prepared, Spec, draws_of
from reprise.buffer.shard import policy_arrays
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CPU = torch.device("cpu")
Address = tuple[int, int, int, int, int, bytes]
_NOTHING = torch.empty(0, dtype=torch.uint8)


class _Orphan:
    """Stands in for the core in a forked child, where neither its thread nor the samples exist."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: object) -> None:
            raise RuntimeError("the rehearsal buffer belongs to the process that made it, not to its forked children")

        return refuse


_engines: "weakref.WeakSet[NativeEngine]" = weakref.WeakSet()


def _orphan_all() -> None:
    for engine in list(_engines):
        engine.orphan()


os.register_at_fork(after_in_child=_orphan_all)


def why_not() -> str:
    """Why the engine cannot run here; empty when it can."""
    return "" if cpp_loader.available() else f"the C++ module does not load ({cpp_loader.why_not()})"


def why_no_network() -> str:
    """Why the engine cannot read samples of ranks on other nodes; empty when it can."""
    return cpp_loader.why_no_network()


@dataclass(frozen=True)
class Reach:
    """How draws get at samples (decided in reach.py). The same on every rank but for `mapped`.

    transport: "none" (this rank's own only), "shm", "ucx", "shm+ucx" or "collectives". why_python: why the C++ engine
    cannot do it; empty when it can. names: of all ranks, for messages. mapped: ranks that read each other through
    shared memory with this one, itself included; the others are reached through UCX. interface: what UCX is limited to
    when nobody chooses; empty: nothing. key: a secret that all ranks share.
    """

    transport: str
    why_python: str = ""
    names: tuple[str, ...] = ()
    mapped: frozenset[int] = frozenset()
    interface: str = ""
    key: int = 0


class NativeEngine:
    """One rank's engine. One caller at a time, except for close().

    With draws from all ranks it has to be told of them before anything else: `connect` with every rank's `address`.
    """

    def __init__(
        self,
        spec: Spec,
        comm: Communicator,
        *,
        reach: Reach,
        interface: str,
        deterministic: bool,
        device: torch.device,
        threads: int,
        storage: str,
    ) -> None:
        """device: where draws are wanted. The engine delivers them on a CUDA device itself, else in host memory."""
        self.spec = spec
        self.transport = reach.transport
        self._reach = reach
        self.device = device if device.type == "cuda" and torch.version.cuda else _CPU
        self._comm = comm
        here = self.device  # and not self, which the core would then keep alive for ever
        try:
            self._core = cpp_loader.engine()(
                prototypes={name: field.empty(0, _CPU) for name, field in spec.fields.items()},
                labels=torch.empty(0, dtype=torch.int64),
                field_bytes=[field.nbytes for field in spec.fields.values()],
                share=spec.share,
                policy=spec.policy,
                draws=spec.draws,
                candidates=spec.candidates or 0,
                seed=spec.seed % 2**64,
                rank=spec.rank,
                world_size=spec.world_size,
                threads=threads,
                storage=storage,
                cuda_device=-1 if self.device == _CPU else self.device.index,
                current_stream=lambda: torch.cuda.current_stream(here).cuda_stream,
                exchanges=spec.exchanges,
                deterministic=deterministic,
                limit_s=comm.limit_s if spec.exchanges else 0,
                network=(cpp_loader.ucx_library(), interface, "", reach.key) if "ucx" in reach.transport else None,
                wrap=_weakly(self._wrapped),
                report=_report_lost,
            )
        except RuntimeError as error:
            raise UserError(
                f"no room for the rehearsal buffer: {error}; lower capacity or choose another storage"
            ) from error
        if why := self._core.not_pinned():
            logger.warning(
                "rank %d: the rehearsal buffer's memory is not pinned, copies are slower: %s", spec.rank, why
            )
        self._front = 0
        self.storages: frozenset[int] = frozenset()  # addresses of all columns' memory
        self._host: list[Columns] = []  # per staging slot: where the engine gathers to
        self._staging: list[Columns] = []  # per staging slot: where draws are delivered; _host without a device
        self._map_staging()
        self._bind()
        # The tensors outlive the thread that reads them, also when nobody calls close() before the interpreter ends.
        self._close = weakref.finalize(self, self._core.close)
        _engines.add(self)

    @property
    def address(self) -> Address:
        """What the other ranks must know to read this one's samples."""
        return self._core.address()

    def connect(self, addresses: Sequence[Address]) -> None:
        """The addresses of all ranks, by rank. Maps and connects nothing before it is needed."""
        everyone = zip(self._reach.names, addresses, strict=True)
        self._core.connect([(n, rank in self._reach.mapped, *a) for rank, (n, a) in enumerate(everyone)])

    def why_apart(self) -> str:
        """Why the next rank on another node cannot be reached from here; empty when it can, or there is none.

        All ranks asking for their next one find out whether the interface that UCX uses leads to the others.
        """
        ranks = [(self.spec.rank + step) % self.spec.world_size for step in range(1, self.spec.world_size)]
        remote = next((rank for rank in ranks if rank not in self._reach.mapped), None)
        if remote is None:
            return ""
        reason = self._core.why_silent(remote)
        return reason and f"{self._reach.names[self.spec.rank]} does not reach {self._reach.names[remote]}: {reason}"

    # ---- a step

    def submit(self, fields: dict[str, Tensor], y: Tensor, task: int | Tensor, copy: bool) -> None:
        """Queue a step with a checked batch of any strides, on any device; copies it here where that takes one."""
        if copy or not self._core.submit(fields, y, task):
            columns = {name: _plain(value, copy) for name, value in fields.items()}
            accepted = self._core.submit(
                columns, _plain(y, copy), _plain(task, copy) if isinstance(task, Tensor) else task
            )
            assert accepted, "the engine refuses a plain batch"

    def wait(self) -> Prepared:
        """The draws prepared one step ago, in place. Raises what went wrong in the engine."""
        staging = self._staging  # close() may come from another thread
        slot, sizes = self._core.wait()
        return Prepared(staging[slot], self._front, sizes)

    def reserve_front(self, rows: int) -> None:
        """Have room for so many new samples in front of the draws of every step."""
        if rows > self._front:
            if self.device == _CPU:
                self._core.reserve_front(rows)
            self._front = rows
            self._map_staging()

    def rows(self, rows: int) -> Columns:
        """The last `rows` rows before the draws that the next wait() will deliver; fields and "y"."""
        self.reserve_front(rows)
        columns = self._staging[self._core.next_slot()]
        return {name: columns[name][self._front - rows : self._front] for name in (*self.spec.fields, "y")}

    def drain(self) -> None:
        """Return once everything submitted is stored and the next draw is ready."""
        self._core.drain()

    # ---- what is in it

    @property
    def stored(self) -> int:
        return self._core.stored()

    @property
    def submitted(self) -> int:
        return self._core.submitted()

    @property
    def global_stored(self) -> int:
        """Samples on all ranks. With several ranks and scope local a collective, as each knows its own share only."""
        if self.spec.exchanges or self.spec.world_size == 1:
            return sum(stored for stored, _ in self._core.fills())
        return int(self._comm.allgather(torch.tensor([self._core.stored()]), name="rehearsal.stored").sum())

    def class_counts(self) -> dict[int, int]:
        labels, counts = np.unique(self._core.labels(), return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))

    def timings(self) -> dict[str, dict[str, float]]:
        return self._core.stats()

    def recent_timings(self) -> dict[str, list[tuple[int, int]]]:
        return self._core.recent()

    # ---- state, in the format of PythonEngine

    def versions(self) -> Int64s:
        """Per slot that holds a sample a number that changes whenever it is written."""
        return self._core.versions()

    def estates(self) -> list[Estate]:
        """What other ranks hold. Of those on this node whose processes have ended the samples too, if this rank is the
        first one of those that run.
        """
        heirs = self._reach.mapped & set(self._comm.running_here())
        found = []
        for rank, stored, mass, slots, writes, inverse_inclusion in self._core.estates():
            columns = None
            if len(slots) and min(heirs) == self.spec.rank:
                columns = self._read(slots, partial(self._core.read_estate, rank), self.spec.empty)
            found.append(Estate(rank, stored, mass, columns, writes, inverse_inclusion))
        return found

    def _read(self, slots: Int64s, read_column: Callable[[int, Int64s, int], None], empty: Empty) -> Columns:
        columns = {name: empty(name, len(slots)) for name in self.spec.stored_columns}
        for index, column in enumerate(columns.values()):
            read_column(index, slots, column.data_ptr())
        return columns

    def state_dict(self, slots: Int64s | None = None, empty: Empty | None = None) -> dict[str, Any]:
        """Everything that the next step depends on; of the samples only those in `slots`, if given, copied to `empty`
        columns.
        """
        if slots is None:
            slots = np.arange(self._core.stored())
        columns = self._read(slots, self._core.read_column, empty or self.spec.empty)
        policy = self._core.policy_state()
        fill = torch.tensor(self._core.fills(), dtype=torch.int64)
        return {
            "step": self._core.step(),
            "started": self._core.started(),
            "fill": fill,
            "prepared": [
                {"sizes": list(sizes), "columns": {n: c.clone() for n, c in self._draw_rows(slot, sizes).items()}}
                for slot, sizes in self._core.pending()
            ],
            "shard": {
                "submitted": self._core.submitted(),
                "policy": {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in policy.items()},
                "columns": columns,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._load(state["shard"], int(state["step"]), bool(state["started"]), state["fill"].tolist())
        for entry in state["prepared"]:
            slot = self._core.adopt_draw(entry["sizes"])
            for name, rows in self._draw_rows(slot, entry["sizes"]).items():
                rows.copy_(entry["columns"][name])
        if self.device != _CPU:
            self._map_device()  # copies the draws there

    def continue_from(self, shard_state: dict[str, Any], step: int) -> None:
        """Go on from resharded contents: a draw of the step before is made up, as none can be carried over."""
        self._load(shard_state, step, started=True, fills=[])
        self._core.submit_draw()

    def describe_peers(self) -> list[str]:
        """A line for each rank that is reached through the network, and how much has gone there. Not after close()."""
        return self._core.describe_peers().splitlines()

    def close(self) -> None:
        self._close()
        self._host, self._staging = [], []

    def orphan(self) -> None:
        """This is a forked child: every later use but close() raises."""
        self._core = cast(Any, _Orphan())
        self._bind()

    def fail_next_step(self, message: str) -> None:
        """Make the engine's next step fail, to test what happens then."""
        self._core.fail_next_step(message)

    # ---- inside

    def _bind(self) -> None:
        """The calls of a step are the core's own methods: every call in between costs the step."""
        # Queues a step, if the batch (fields, y, task) is right and plain: rows back to back, on the host or where
        # draws are delivered. Looks at it in one go, says False and does nothing for any other. Keeps the tensors
        # until the engine has copied them, raises what went wrong in the engine.
        self.submit_as_is = self._core.submit
        # wait(), as what the user gets.
        self.draws = self._core.draws

    def _wrapped(self, slot: int, sizes: tuple[int, ...]) -> tuple[Draw, ...]:
        staging = self._staging
        if not staging:  # meanwhile, in another thread
            raise RuntimeError("the rehearsal buffer is closed")
        return draws_of(Prepared(staging[slot], self._front, sizes))

    def _load(self, shard: dict[str, Any], step: int, started: bool, fills: list[tuple[int, int]]) -> None:
        policy = policy_arrays(shard)
        columns = []
        for name, field in self._columns().items():
            if name not in shard["columns"]:
                continue  # "rank" and "weight" come with draws only
            column, shape = shard["columns"][name], (int(policy["stored"]), *field.shape)
            if column.dtype != field.dtype or tuple(column.shape) != shape:
                raise UserError(
                    f"the saved rehearsal buffer does not fit this one: '{name}' is {column.dtype} "
                    f"{tuple(column.shape)}, expected {field.dtype} {shape}"
                )
            columns.append(column.contiguous())
        addresses = [column.data_ptr() for column in columns]
        try:
            self._core.load(policy, step, int(shard["submitted"]), started, fills, addresses)
        except ValueError as error:
            raise UserError(f"the saved rehearsal buffer does not fit this one: {error}") from error

    @torch.inference_mode(False)  # the tensors outlive the call, and are to be trained on
    def _map_staging(self) -> None:
        """Wrap the staging slots' columns as tensors: front rows for new samples, the draws behind them."""
        total = sum(self.spec.draws)
        self._host = []
        for slot in range(3):
            memory, front, offsets = self._core.staging(slot)
            columns = {}
            for (name, field), offset in zip(self._columns().items(), offsets, strict=True):
                # A storage per column, with a counter of changes of its own: weights may change while x is stored.
                size = (front + total) * field.nbytes
                part = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=offset) if size else _NOTHING
                columns[name] = part.view(field.dtype).view(front + total, *field.shape)
            self._host.append(columns)
        self._staging = self._host
        if self.device != _CPU:
            self._map_device()
        self.storages = frozenset(c.untyped_storage().data_ptr() for slot in self._staging for c in slot.values())

    @torch.inference_mode(False)
    def _map_device(self) -> None:
        """Make the slots' twins on the device, and have what is pending copied there."""
        total = sum(self.spec.draws)
        self._staging = []
        for slot in range(3):
            columns = {n: f.empty(self._front + total, self.device) for n, f in self._columns().items()}
            columns["weight"].fill_(1.0)
            columns["rank"].fill_(self.spec.rank)
            self._core.set_device_rows(slot, [column[self._front :].data_ptr() for column in columns.values()])
            self._staging.append(columns)

    def _columns(self) -> dict[str, Field]:
        """Every column of a draw, in the engine's order."""
        number = Field((), torch.int64)
        return {**self.spec.fields, "y": number, "task": number, "rank": number, "weight": Field((), torch.float32)}

    def _draw_rows(self, slot: int, sizes: tuple[int, ...]) -> Columns:
        """The host's rows of a slot's draws."""
        front = self._front if self.device == _CPU else 0
        return {name: column[front : front + sum(sizes)] for name, column in self._host[slot].items()}


def _weakly(method: Callable[..., T]) -> Callable[..., T]:
    """Of an object that is not kept alive by it."""
    weak = weakref.WeakMethod(method)

    def call(*arguments: object) -> T:
        bound = weak()
        assert bound is not None
        return bound(*arguments)

    return call


def _report_lost(line: str) -> None:
    logger.error("rehearsal: %s; its samples are left out from now on", line)


def _plain(value: Tensor, copy: bool) -> Tensor:
    # A subclass stays one through all of this, and the engine knows plain tensors only.
    value = value.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
    if copy:
        return value.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return value.cpu().contiguous()
