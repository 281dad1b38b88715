"""Saving one rank's shard again and again, each time only the samples written since the save before.

A save is a chain of files: one with all samples, then one for each later save with those that changed; the counters of
the last one hold. The earlier files are shared with the saves that they were written for, by hard links, so that every
folder is complete by itself and any of them may be deleted. Shared files are damaged for all: a chain ends, and
everything is written once more, when the changes come to as much as that, and when it is asked for.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reprise.buffer import snapshot
from reprise.buffer.policies.random_words import Int64s
from reprise.buffer.rehearsal import RehearsalBuffer
from reprise.buffer.schema import Spec
from reprise.buffer.snapshot import ShardFile
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write, disk_errors

MAX_FILES = 64


@dataclass(frozen=True)
class Capture:
    """A shard between two steps, copied. earlier: the files, in `folder`, that it builds on.

    Its samples are there until the next capture of the same buffer, which takes their memory.
    """

    state: dict[str, Any]
    versions: Int64s
    folder: Path | None
    earlier: tuple[ShardFile, ...]


class Increments:
    """The saves of one rank's buffer. One save at a time; `write` may run in another thread than everything else."""

    def __init__(self, buffer: RehearsalBuffer) -> None:
        self._buffer = buffer
        self._memory = _Memory(buffer.spec)
        self._folder: Path | None = None
        self._files: tuple[ShardFile, ...] = ()
        self._versions = np.empty(0, dtype=np.int64)

    def resume(self, folder: Path) -> None:
        """Build on the save in `folder`, which the buffer has just been restored from, on as many ranks as saved it."""
        manifest = snapshot.read_manifest(folder)
        self._folder, self._versions = folder, self._buffer.versions()
        self._files = tuple(ShardFile(**entry) for entry in manifest["shards"][self._buffer.spec.rank])

    def capture(self, *, whole: bool = False) -> Capture:
        """Copy what has to be written. Waits for what was submitted; the buffer may go on as soon as this returns.

        whole: begin a new chain, as is done where somebody has deleted files of this one.
        """
        self._buffer.drain()
        versions = self._buffer.versions()
        known = len(self._versions)
        changed = np.concatenate(
            [np.flatnonzero(versions[:known] != self._versions), np.arange(known, len(versions), dtype=np.int64)]
        )
        written = sum(file.rows for file in self._files[1:]) + len(changed)
        lost = any(self._folder is None or not (self._folder / file.file).is_file() for file in self._files)
        if whole or lost or not self._files or written > len(versions) or len(self._files) == MAX_FILES:
            return Capture(self._buffer.state_dict(empty=self._memory), versions, None, ())
        state = {**self._buffer.state_dict(changed, self._memory), "slots": torch.from_numpy(changed)}
        return Capture(state, versions, self._folder, self._files)

    def write(self, capture: Capture, folder: Path) -> tuple[ShardFile, ...]:
        """Write a capture to `folder`; returns its files. Raises UserError on disk errors."""
        for file in capture.earlier:
            assert capture.folder is not None
            with disk_errors("write", folder / file.file):
                folder.mkdir(parents=True, exist_ok=True)
                _link(capture.folder / file.file, folder / file.file)
        number = 1 + max((snapshot.generation_of(file.file) for file in capture.earlier), default=0)
        return (*capture.earlier, snapshot.write_shard(folder, capture.state, number))

    def complete(self, capture: Capture, folder: Path, shards: Sequence[Sequence[ShardFile]]) -> Path:
        """Make what all ranks have written, by rank, a saved buffer; on one rank. Returns the manifest's path, which
        tells whether any of it is changed later. Raises UserError on disk errors.
        """
        snapshot.write_manifest(folder, capture.state["schema"], shards)
        return folder / snapshot.MANIFEST

    def keep(self, capture: Capture, folder: Path, files: tuple[ShardFile, ...]) -> None:
        """What was written to `folder` counts on all ranks: the next capture builds on it."""
        self._folder, self._files, self._versions = folder, files, capture.versions


class _Memory:
    """Where samples are copied to, again and again: the system takes several times as long to find memory as a copy to
    what it has found takes, and training waits for that.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._bytes: dict[str, NDArray[np.uint8]] = {}

    def __call__(self, name: str, rows: int) -> Tensor:
        if not rows:
            return self._spec.empty(name, 0)
        field = self._spec.stored_columns[name]
        if name not in self._bytes:  # of the whole share, so that it never grows; only what is written to is there
            self._bytes[name] = np.empty(self._spec.share * field.nbytes, np.uint8)
        # A storage of its own size: torch.save() writes all of it.
        return torch.from_numpy(self._bytes[name][: rows * field.nbytes]).view(field.dtype).view(rows, *field.shape)


def check_saved(folder: Path, rank: int, size: int) -> None:
    """Read this rank's share of the files of a saved buffer. Raises UserError for what is missing or damaged."""
    manifest = snapshot.read_manifest(folder)
    for saved_rank in range(rank, len(manifest["shards"]), size):
        snapshot.check_files(folder, manifest, saved_rank)


def chain_of(folder: Path) -> int | None:
    """Tells chains apart: two saves on one disk with the same number share files. None: it cannot be read."""
    try:
        first = snapshot.read_manifest(folder)["shards"][0][0]["file"]
        return (folder / first).stat().st_ino
    except (UserError, OSError):
        return None


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        with open(source, "rb") as earlier, atomic_write(target, "wb") as stream:
            shutil.copyfileobj(earlier, stream, 1 << 20)
