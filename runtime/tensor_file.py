"""Writing torch's files: atomically, hashed on the way so that nothing is read back, and with the disk's own errors."""

import hashlib
from pathlib import Path
from typing import IO, Any, cast

import torch

from reprise.runtime.files import atomic_write


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
    def __init__(self, stream: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.error: OSError | None = None
        self._stream = stream

    def write(self, data: bytes) -> int:
        try:
            written = self._stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self._stream.flush()
