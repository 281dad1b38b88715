"""When checkpoints are written, and how without stopping the training: a copy between two steps, then a thread writes.

Each rank copies what it has (of the samples only those that changed) and writes it. Once all have, rank 0 renames the
whole to its final name; until then the one before is the newest. Ranks learn of each other's progress, and of signals,
through one small exchange about every second (agreement.py). Every method is called on all ranks alike.
"""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprise.buffer import Capture, Increments, RehearsalBuffer, ShardFile
from reprise.cl_models.base import ContinualModel
from reprise.runtime import tensor_file
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import UserError
from reprise.runtime.files import disk_errors, sha256, sync_folder
from reprise.runtime.stop import StoppedError, StopRequest
from reprise.train import checkpoint
from reprise.train.agreement import Agreement
from reprise.train.checkpoint import Checkpoint, Progress

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.02
_WRITTEN, _REFUSED = 1, 2  # what became of a checkpoint, as ranks tell each other; 0: not known yet


@dataclass(frozen=True)
class Every:
    """How often: after so many steps, or so many seconds; 0: not so. Task ends always count."""

    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Written:
    """What a rank has written: its files by name with their SHA-256, and its part of the buffer."""

    files: dict[str, str]
    shard: tuple[ShardFile, ...]
    problem: str = ""


@dataclass
class _Saving:
    """A checkpoint under way."""

    progress: Progress
    partial: Path
    capture: Capture | None
    writing: "Future[_Written]"
    shard: tuple[ShardFile, ...] = ()
    committing: "Future[str] | None" = None
    everyone_wrote: bool = False


class Checkpointer:
    """Writes the checkpoints of a run into `folder` and keeps the last `keep` (0: all). resumed: what it goes on from.

    A disk that refuses is named in one line on rank 0, and training goes on without that checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        strategy: ContinualModel,
        buffer: RehearsalBuffer | None,
        comm: Communicator,
        *,
        every: Every,
        keep: int,
        stop: StopRequest,
        resumed: Checkpoint | None = None,
    ) -> None:
        self._folder = folder
        self._strategy = strategy
        self._buffer = buffer
        self._comm = comm
        self._every = every
        self._keep = keep
        self._stop = stop
        self._agreement = Agreement(comm)
        self._increments = Increments(buffer) if buffer is not None else None
        if self._increments is not None and resumed and resumed.world_size == comm.size:
            self._increments.resume(resumed.folder / checkpoint.BUFFER)
        self._writer = ThreadPoolExecutor(1, "reprise-checkpoint")
        self._saving: _Saving | None = None
        self._wanted = False  # a checkpoint is due and not begun
        self._saved_at = time.monotonic()

    def after_step(self, step: int, here: Callable[[], Progress], means: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time. step: steps done. here: how far the run is; means: this rank's of the epoch under way.

        Raises StoppedError, with a checkpoint of this very step, after a signal on any rank.
        """
        if self._every.steps and step % self._every.steps == 0:
            self._wanted = True
        if self._agreement.due():
            self._exchange(here, means)
        if self._wanted and self._saving is None:
            self._begin(here(), means())

    def check(self, here: Callable[[], Progress]) -> None:
        """Between steps of other kinds (an evaluation): as after_step, but nothing is due."""
        self._exchange(here, dict)

    def after_task(self, progress: Progress) -> None:
        """Save at a task's end; the checkpoint before has to be finished first."""
        self.settle()
        self._begin(progress, {})

    def settle(self) -> None:
        """Return when the checkpoint under way is complete, or refused."""
        while self._saving is not None:
            self._tell_each_other()
            if self._saving is not None:
                time.sleep(_LOOK_EVERY_S)

    def close(self) -> None:
        """Settle, and write no more."""
        self.settle()
        self._writer.shutdown()

    # ---- what ranks tell each other

    def _exchange(self, here: Callable[[], Progress], means: Callable[[], dict[str, Any]]) -> None:
        stopped_by = self._tell_each_other()
        if not stopped_by:
            return
        self.settle()
        progress = here()
        self._begin(progress, means())
        self.settle()
        self._writer.shutdown()
        name = signal.Signals(stopped_by).name
        raise StoppedError(f"stopped by {name} after step {progress.steps}; go on with --resume")

    def _tell_each_other(self) -> int:
        """One exchange; takes the checkpoint under way as far as it goes. Returns the signal to stop, or 0."""
        saving, late = self._saving, 0 < self._every.seconds <= time.monotonic() - self._saved_at
        unwritten = saving is not None and not saving.everyone_wrote and not saving.writing.done()
        outcome = 0
        if saving and saving.committing and saving.committing.done():
            outcome = _REFUSED if saving.committing.result() else _WRITTEN
        told = self._agreement.exchange([self._stop.signal, late and self._comm.rank == 0, unwritten, outcome])
        stopped_by, due, someone_writes, outcome = told
        self._wanted = self._wanted or bool(due)
        if saving is None:
            return stopped_by
        if not saving.everyone_wrote and not someone_writes:
            self._commit(saving)
        elif outcome:
            self._finish(saving, outcome)
        return stopped_by

    # ---- a checkpoint's life

    def _begin(self, progress: Progress, means: dict[str, Any]) -> None:
        """Copy everything and have it written."""
        self._wanted, self._saved_at = False, time.monotonic()
        partial = self._folder / f".{progress.name}.partial"
        capture = self._increments.capture() if self._increments else None
        states = {
            checkpoint.rank_file(self._comm.rank): {
                **checkpoint.state_of_rank(self._strategy),
                "means": checkpoint.on_host(means),
            }
        }
        if self._comm.rank == 0:
            states[checkpoint.MODEL] = checkpoint.on_host(self._strategy.state_dict())
        writing = self._writer.submit(self._write, partial, states, capture)
        self._saving = _Saving(progress, partial, capture, writing)

    def _write(self, partial: Path, states: dict[str, Any], capture: Capture | None) -> _Written:
        """On the writer's thread."""
        files = {}
        try:
            for name, state in states.items():
                files[name] = tensor_file.save(partial / name, state)
            shard = self._increments.write(capture, partial / checkpoint.BUFFER) if self._increments and capture else ()
        except UserError as error:
            return _Written({}, (), f"rank {self._comm.rank}: {error}")
        return _Written(files, shard)

    def _commit(self, saving: _Saving) -> None:
        """All ranks have written: rank 0 makes it a checkpoint, on its writer's thread."""
        own = saving.writing.result()
        everyone = self._comm.allgather_object(own, name="checkpoint")
        problem = next((written.problem for written in everyone if written.problem), "")
        saving.everyone_wrote, saving.shard = True, own.shard
        if self._comm.rank == 0:
            if problem:
                saving.committing = self._writer.submit(self._discard, saving, problem)
            else:
                saving.committing = self._writer.submit(self._rename, saving, everyone)

    def _rename(self, saving: _Saving, everyone: list[_Written]) -> str:
        """On rank 0's writer's thread. Returns what went wrong."""
        partial, final = saving.partial, self._folder / saving.progress.name
        try:
            files = {name: digest for written in everyone for name, digest in written.files.items()}
            if self._increments is not None and saving.capture:
                buffer = partial / checkpoint.BUFFER
                manifest = self._increments.complete(saving.capture, buffer, [written.shard for written in everyone])
                files[str(manifest.relative_to(partial))] = sha256(manifest)
            checkpoint.write_manifest(partial, saving.progress, self._comm.size, files)
            with disk_errors("write", final):
                replaced = self._folder / f".{final.name}.old.partial"
                if final.exists():  # resumed and stopped at the same step
                    os.rename(final, replaced)
                os.rename(partial, final)
                sync_folder(self._folder)
                shutil.rmtree(replaced, ignore_errors=True)
        except UserError as error:
            return self._discard(saving, str(error))
        self._prune(final)
        return ""

    def _discard(self, saving: _Saving, problem: str) -> str:
        shutil.rmtree(saving.partial, ignore_errors=True)
        return problem

    def _finish(self, saving: _Saving, outcome: int) -> None:
        self._saving = None
        if outcome == _WRITTEN:
            if self._increments and saving.capture:
                final = self._folder / saving.progress.name
                self._increments.keep(saving.capture, final / checkpoint.BUFFER, saving.shard)
        elif saving.committing:
            logger.error("no checkpoint %s: %s", saving.progress.name, saving.committing.result())

    def _prune(self, newest: Path) -> None:
        """Delete all but the last checkpoints."""
        if not self._keep:
            return
        for old in checkpoint.find(self._folder)[self._keep :]:
            if old != newest:
                shutil.rmtree(old, ignore_errors=True)
