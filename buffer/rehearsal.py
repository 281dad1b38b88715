"""RehearsalBuffer: the rehearsal memory as a training loop sees it. The engines behind it never face the user.

Per step: `submit()` a batch and `wait()` for the draws prepared meanwhile, or `augment()`, which does both and returns
one contiguous batch. Which sample is stored where is decided in policies/, what is drawn in plan.py.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import Tensor

from reprise import cpp_loader
from reprise.buffer import snapshot
from reprise.buffer.python_engine import PythonEngine
from reprise.buffer.schema import Columns, Draw, Field, Spec
from reprise.runtime import dist as runtime_dist
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest
from reprise.runtime.spans import Spans

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("standard", "flyweight", "python")


class RehearsalBuffer:
    """A memory of `capacity` samples over all ranks, and independent uniform draws from it at every step.

    fields: name -> Field, what is stored with each sample besides its label and task. capacity: samples summed over all
    ranks, shared out evenly. draws: samples per draw on this rank, one entry per independent draw of a step.
    candidates: at most so many of each batch, chosen uniformly, are offered to the policy (None: all).
    policy: "class_balanced" | "reservoir" | "fifo". scope: draw from all ranks ("global") or this one ("local").
    implementation: "standard" | "flyweight" | "python". seed: the same on all ranks. deterministic: contents and draws
    depend on seed, world size and batches alone. device: where draws are delivered. dist: a Communicator, default the
    current one.

    Raises UserError (a ValueError) for bad arguments and when the memory asked for exceeds what the node has.
    Not thread-safe: one thread per buffer. With more than one rank and scope "global", every rank must call `submit`,
    `augment` and `save` equally often: they may exchange data. A batch of 0 rows is allowed.
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
    ) -> None:
        self._comm = dist if dist is not None else runtime_dist.current()
        try:
            self.device = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from error
        self.deterministic = deterministic
        self.spec = Spec(
            dict(fields), capacity, draws, candidates, policy, scope, seed, self._comm.rank, self._comm.size
        )
        self._spans = Spans()
        self._closed = False
        self._batches: list[Columns] = [{}, {}]  # rows for augment(): one set with the user, one being filled
        self._next = 0
        self._check_memory()
        self.implementation = _choose(implementation, self._comm)
        self._engine = PythonEngine(self.spec, self._comm, self._spans)

    # ---- a step

    def submit(self, *, y: Tensor, task: int | Tensor | None = None, **fields: Tensor) -> None:
        """Offer a batch to the policy, then prepare the draws of the next step.

        y: int64 (b,). task: int, integer (b,) or None (stored as -1). fields: (b, *shape) each. On the CPU or on
        `device`. The inputs may be overwritten as soon as this returns. Raises UserError naming the field for a wrong
        shape, dtype, device or missing field, and then stores nothing of the batch.
        """
        self._open()
        self.spec.check_batch(fields, y, self.device)
        tasks = self.spec.task_column(task, len(y), self.device)
        with self._spans.span("submit"):
            batch = {name: fields[name].detach().cpu() for name in self.spec.fields}
            self._engine.submit({**batch, "y": y.detach().cpu(), "task": tasks})

    def wait(self) -> tuple[Draw, ...]:
        """The draws prepared during the previous step, one per entry of `draws`; the first call returns 0 rows.

        A draw has min(r, samples stored) rows on `device`, valid until the next `wait()` or `augment()` returns.
        """
        self._open()
        with self._spans.span("wait"):
            columns, sizes = self._engine.wait()
            delivered = {name: value.to(self.device, non_blocking=True) for name, value in columns.items()}
        parts = {name: value.split(list(sizes)) if sizes else () for name, value in delivered.items()}
        return tuple(
            Draw({name: rows[index] for name, rows in parts.items()}, (size,)) for index, size in enumerate(sizes)
        )

    def augment(self, *, y: Tensor, task: int | Tensor | None = None, **fields: Tensor) -> Draw:
        """wait(), put the batch and all draws into contiguous tensors, submit(batch).

        Returns b + n rows per column on `device`: rows 0..b-1 are the arguments (weight 1, this rank), then the draws
        one after the other; `sizes` is (b, n_1, ...). Rows obtained from `rows(b)` are not copied. Valid until the next
        `wait()` or `augment()` returns. Raises as `submit`, before anything is taken or stored.
        """
        self._open()
        self.spec.check_batch(fields, y, self.device)
        tasks = self.spec.task_column(task, len(y), self.device)
        batch_size = len(y)
        draws = self.wait()
        sizes = (batch_size, *(len(draw) for draw in draws))
        columns = {name: column[: sum(sizes)] for name, column in self._batch_set(batch_size).items()}
        self._next = 1 - self._next
        own = {**fields, "y": y, "task": tasks}
        for name, column in columns.items():
            if name in own:
                _copy_unless_same(column[:batch_size], own[name])
            offset = batch_size
            for draw in draws:
                column[offset : offset + len(draw)].copy_(draw[name])
                offset += len(draw)
        columns["weight"][:batch_size] = 1.0
        columns["rank"][:batch_size] = self.spec.rank
        self.submit(y=y, task=tasks, **fields)
        return Draw(columns, sizes)

    def rows(self, b: int) -> dict[str, Tensor]:
        """Uninitialised rows 0..b-1 of the next batch, by name ("y" included), for a loader to collate into.

        Pass them on with `augment(**rows, task=...)`, which then copies nothing. Valid until that call returns.
        """
        self._open()
        if b < 0:
            raise UserError(f"rows(b): b must be >= 0, got {b}")
        columns = self._batch_set(b)
        return {name: columns[name][:b] for name in (*self.spec.fields, "y")}

    # ---- what is in it

    def __len__(self) -> int:
        """Samples stored on this rank."""
        self._open()
        return self._engine.shard.stored

    @property
    def seen(self) -> int:
        """Samples submitted on this rank."""
        self._open()
        return self._engine.shard.submitted

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
        return self._engine.shard.class_counts()

    def timings(self) -> dict[str, dict[str, float]]:
        """Per part of the work ("submit", "insert", "plan", "fetch", "wait"): count, mean, p50, p95 in ms."""
        return self._spans.stats()

    # ---- life

    def drain(self) -> None:
        """Return once everything submitted is stored and the next draw is ready. Raises what went wrong meanwhile."""
        self._open()  # this implementation has finished when submit() returns

    def state_dict(self) -> dict[str, Any]:
        """This rank's shard, counters, position in the random streams and draws in flight; tensors and numbers only."""
        self._open()
        return {"schema": snapshot.schema_of(self.spec), "rank": self.spec.rank, "engine": self._engine.state_dict()}

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
            if step is None:
                buffer._engine.load_state_dict(state)
            else:
                buffer._engine.continue_from(state, step)
        except BaseException:
            buffer.close()
            raise
        return buffer

    def close(self) -> None:
        """Release the memory. Idempotent; afterwards whatever needs the contents raises RuntimeError."""
        self._closed = True
        self._batches.clear()
        self._engine.shard.columns.clear()

    def __enter__(self) -> "RehearsalBuffer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside

    def _open(self) -> None:
        if self._closed:
            raise RuntimeError("the rehearsal buffer is closed")

    def _batch_set(self, batch_size: int) -> Columns:
        needed = batch_size + sum(self.spec.draws)
        batch = self._batches[self._next]
        if not batch or len(batch["y"]) < needed:
            columns = {name: field.empty(needed, self.device) for name, field in self.spec.fields.items()}
            for name, dtype in (("y", torch.int64), ("task", torch.int64), ("rank", torch.int64)):
                columns[name] = torch.empty(needed, dtype=dtype, device=self.device)
            columns["weight"] = torch.empty(needed, dtype=torch.float32, device=self.device)
            self._batches[self._next] = columns
        return self._batches[self._next]

    def _check_memory(self) -> None:
        per_node = self.bytes_per_rank * self._comm.local_size
        available = psutil.virtual_memory().available
        numbers = (
            f"{self.spec.share} of {self.capacity} samples x {self.spec.bytes_per_sample} bytes = "
            f"{self.bytes_per_rank / 2**20:.1f} MiB per rank, {per_node / 2**20:.1f} MiB on this node, "
            f"{available / 2**20:.0f} MiB available"
        )
        if per_node > available:
            raise UserError(f"the rehearsal buffer does not fit: {numbers}; lower capacity or rehearsal_ratio")
        logger.info("rehearsal buffer: %s", numbers)


def _choose(implementation: str, comm: Communicator) -> str:
    """The implementation that runs; says so on rank 0 when it is not the one asked for."""
    if implementation not in IMPLEMENTATIONS:
        hint = nearest(str(implementation), IMPLEMENTATIONS)
        raise UserError(f"unknown implementation '{implementation}'{hint or ';'} choose: {', '.join(IMPLEMENTATIONS)}")
    if implementation != "python" and comm.rank == 0:
        reason = "its rehearsal engine is not part of this version" if cpp_loader.available() else cpp_loader.why_not()
        logger.warning("buffer implementation '%s' needs the C++ module: %s; running 'python'", implementation, reason)
    return "python"


def _copy_unless_same(target: Tensor, source: Tensor) -> None:
    same = target.data_ptr() == source.data_ptr() and target.stride() == source.stride()
    if not same or target.device != source.device:
        target.copy_(source, non_blocking=True)
