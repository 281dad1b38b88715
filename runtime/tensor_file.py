"""Writing torch's files: atomically, hashed on the way so that nothing is read back, and with the disk's own errors."""

import hashlib
import os
from pathlib import Path
from typing import IO, Any, cast

import torch

from reprise.runtime.files import atomic_write

_PIECE = 4 << 20
_BEHIND = 8  # pieces that may be on their way to the disk


def save(path: Path, state: Any) -> str:
    """torch.save() of `state` to `path`; returns the SHA-256. Raises UserError when the disk refuses."""
    with atomic_write(path, "wb") as stream:
        target = _Hashed(stream)
        try:
            torch.save(state, cast(IO[bytes], target))
        except RuntimeError:
            # Torch says that its file came out too short, and not why.
            if target.error is not None:
                raise target.error from None
            raise
        return target.digest.hexdigest()


class _Hashed:
    """A file that is hashed as it is written, piece by piece, and makes way in the page cache as it reaches the disk.

    A checkpoint is hardly ever read again. Left in the cache it takes fresh memory, page by page, which can cost more
    than all else about it, and drives out what is read again: the data set.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.error: OSError | None = None
        self._stream = stream
        self._written = 0

    def write(self, data: bytes) -> int:
        pieces = memoryview(data)
        try:
            for first in range(0, len(pieces), _PIECE):
                piece = pieces[first : first + _PIECE]
                self.digest.update(piece)
                self._stream.write(piece)
                self._make_way(len(piece))
        except OSError as error:
            self.error = error
            raise
        return len(pieces)

    def flush(self) -> None:
        self._stream.flush()

    def _make_way(self, written: int) -> None:
        before, self._written = self._written // _PIECE, self._written + written
        if before == self._written // _PIECE or not hasattr(os, "posix_fadvise"):
            return
        # Asked once, the system starts to write the newest piece; asked again, it lets go of the one that is written.
        for piece in (before, before - _BEHIND):
            if piece >= 0:
                os.posix_fadvise(self._stream.fileno(), piece * _PIECE, _PIECE, os.POSIX_FADV_DONTNEED)
