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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprise.buffer import Capture, Increments, RehearsalBuffer, ShardFile, chain_of
from reprise.cl_models.base import ContinualModel
from reprise.runtime import tensor_file
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import RanksChanged, SharedUserError, UserError
from reprise.runtime.files import disk_errors, sha256, sync_folder
from reprise.runtime.stop import StoppedError, StopRequest
from reprise.train import checkpoint
from reprise.train.agreement import Agreement
from reprise.train.checkpoint import Checkpoint, Progress

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.02
# What became of a checkpoint, as ranks tell each other; 0: not known yet.
_WRITTEN, _REFUSED, _THERE = 1, 2, 3


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
    committing: "Future[tuple[int, str]] | None" = None
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
        self._refused = ""  # why the last checkpoint was

    def after_step(self, step: int, here: Callable[[], Progress], means: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time. step: steps done. here: how far the run is; means: this rank's of the epoch under way.

        Raises StoppedError, with a checkpoint of this very step, after a signal on any rank; RanksChanged when others
        want to join.
        """
        if self._every.steps and step % self._every.steps == 0:
            self._wanted = True
        if self._agreement.due():
            self._exchange(here, means)
        if self._wanted and self._saving is None:
            self._begin(here(), means())

    def check(self, here: Callable[[], Progress]) -> None:
        """As after_step, where no step is taken: in an evaluation."""
        self._exchange(here, dict)
        if self._wanted and self._saving is None:
            self._begin(here(), {})

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

    def abandon(self) -> None:
        """Write no more, without the others: a rank is gone. What is under way is no checkpoint.

        Frees the copy of the samples: those that are left may have to be dealt out now, which takes memory.
        """
        self._writer.shutdown()
        self._saving = self._increments = None

    # ---- what ranks tell each other

    def _exchange(self, here: Callable[[], Progress], means: Callable[[], dict[str, Any]]) -> None:
        stopped_by, changed = self._tell_each_other()
        if changed and not stopped_by:
            self.settle()
            raise RanksChanged
        if not stopped_by:
            return
        self.settle()
        progress = here()
        self._begin(progress, means())
        self.settle()
        self._writer.shutdown()
        said = f"stopped by {signal.Signals(stopped_by).name} after step {progress.steps}"
        if self._refused:
            raise SharedUserError(f"{said}, which could not be saved: {self._refused}; earlier checkpoints are whole")
        raise StoppedError(f"{said}; go on with --resume")

    def _tell_each_other(self) -> tuple[int, bool]:
        """One exchange; takes the checkpoint under way as far as it goes. Returns the signal to stop, or 0, and whether
        other ranks want to join.
        """
        saving, late = self._saving, 0 < self._every.seconds <= time.monotonic() - self._saved_at
        unwritten = saving is not None and not saving.everyone_wrote and not saving.writing.done()
        outcome = 0
        if saving and saving.committing and saving.committing.done():
            outcome = saving.committing.result()[0]
        told = self._agreement.exchange(
            [self._stop.signal, late and self._comm.rank == 0, unwritten, outcome, self._comm.changed]
        )
        stopped_by, due, someone_writes, outcome, changed = told
        self._wanted = self._wanted or bool(due)
        if saving is None:
            return stopped_by, bool(changed)
        if not saving.everyone_wrote and not someone_writes:
            self._commit(saving)
        elif outcome:
            self._finish(saving, outcome)
        return stopped_by, bool(changed)

    # ---- a checkpoint's life

    def _begin(self, progress: Progress, means: dict[str, Any]) -> None:
        """Copy everything and have it written."""
        self._wanted, self._saved_at = False, time.monotonic()
        partial = self._folder / f".{progress.name}.partial"
        # The ends of tasks share no file with what came before, so that a disk's bad block does not take everything.
        capture = self._increments.capture(whole=progress.between_tasks) if self._increments else None
        finite = all(bool(value.isfinite().all()) for value in means.get("sums", {}).values())
        states = {
            checkpoint.rank_file(self._comm.rank): {
                **checkpoint.state_of_rank(self._strategy),
                "means": checkpoint.on_host(means),
            }
        }
        if self._comm.rank == 0:
            states[checkpoint.MODEL] = checkpoint.on_host(self._strategy.state_dict())
        problem = "" if finite else f"rank {self._comm.rank}: the loss is not finite, so there is nothing to go on from"
        writing = self._writer.submit(self._write, partial, states, capture, problem)
        self._saving = _Saving(progress, partial, capture, writing)

    def _write(self, partial: Path, states: dict[str, Any], capture: Capture | None, problem: str) -> _Written:
        """On the writer's thread."""
        if problem:
            return _Written({}, (), problem)
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
        self._refused = problem
        if self._comm.rank == 0:
            if problem:
                saving.committing = self._writer.submit(self._discard, saving, problem)
            else:
                saving.committing = self._writer.submit(self._rename, saving, everyone)

    def _rename(self, saving: _Saving, everyone: list[_Written]) -> tuple[int, str]:
        """On rank 0's writer's thread. Returns what became of it, and what went wrong."""
        partial, final = saving.partial, self._folder / saving.progress.name
        if final.exists():  # the run was resumed from it and has not taken a step since
            self._discard(saving, "")
            return _THERE, ""
        try:
            files = {name: digest for written in everyone for name, digest in written.files.items()}
            if self._increments is not None and saving.capture:
                buffer = partial / checkpoint.BUFFER
                manifest = self._increments.complete(saving.capture, buffer, [written.shard for written in everyone])
                files[str(manifest.relative_to(partial))] = sha256(manifest)
            checkpoint.write_manifest(partial, saving.progress, self._comm.size, files)
            with disk_errors("write", final):
                sync_folder(partial)
                os.rename(partial, final)
                sync_folder(self._folder)
        except UserError as error:
            return self._discard(saving, str(error))
        self._prune()
        return _WRITTEN, ""

    def _discard(self, saving: _Saving, problem: str) -> tuple[int, str]:
        shutil.rmtree(saving.partial, ignore_errors=True)
        return _REFUSED, problem

    def _finish(self, saving: _Saving, outcome: int) -> None:
        self._saving = None
        if outcome == _WRITTEN:
            if self._increments and saving.capture:
                final = self._folder / saving.progress.name
                self._increments.keep(saving.capture, final / checkpoint.BUFFER, saving.shard)
        elif outcome == _REFUSED:
            self._refused = self._refused or "rank 0 could not write it"
            if saving.committing:
                _, self._refused = saving.committing.result()
                logger.error("no checkpoint %s: %s", saving.progress.name, self._refused)

    def _prune(self) -> None:
        """Delete all but the last checkpoints, and the last one that shares no file with them."""
        if not self._keep:
            return
        whole = [folder for folder in checkpoint.find(self._folder) if checkpoint.is_readable(folder)]
        kept, old = whole[: self._keep], whole[self._keep :]
        chains = {chain_of(folder / checkpoint.BUFFER) for folder in kept}
        if len(kept) > 1 and len(chains) == 1 and self._increments is not None:
            spare = next((folder for folder in old if chain_of(folder / checkpoint.BUFFER) not in chains), None)
            old = [folder for folder in old if folder != spare]
        for folder in old:
            # Renamed first: what a kill leaves half deleted must not look like a damaged checkpoint.
            gone = folder.with_name(f".{folder.name}.old.partial")
            with suppress(OSError):
                os.rename(folder, gone)
                shutil.rmtree(gone)
