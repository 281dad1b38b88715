"""Files that are either whole or not there: written under a temporary name, flushed to the disk, then renamed.

Every result and checkpoint goes through here. A disk error is the user's to solve, so it becomes a UserError.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from reprise.runtime.errors import UserError


@contextmanager
def disk_errors(action: str, path: str | Path) -> Iterator[None]:
    """Turn an OSError (disk full, read-only, no permission) into one line: `action`, `path`, the system's reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot {action} '{path}': {reason}; free some space or choose another folder") from error


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`: success moves it to `path` in one step, failure leaves `path` as it was."""
    path = Path(path)
    with disk_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not the process number: in containers on two nodes it may be the same one.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sync_folder(path: Path) -> None:
    """Have the names in a folder outlive a crash of the machine, on file systems that can be asked for that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
