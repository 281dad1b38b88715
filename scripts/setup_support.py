"""What every step of the set-up needs: one-line errors, the lock, stamps, commands whose output goes to the log.

Knows nothing of what is installed; that is for the other setup_*.py to know, the only callers.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

COMMAND_SECONDS = 3600
"""No single command of the set-up takes this long; one that does hangs."""


class SetupError(Exception):
    """The set-up cannot go on; the text is the one line that the user sees."""


def digest(*parts: str | bytes) -> str:
    """Hash of the parts, sensitive to where one ends and the next begins."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()


def cache_folder(root: Path, environ: dict[str, str]) -> Path:
    """Where what was built or unpacked is kept, for this checkout or for several; SetupError if it cannot be used."""
    folder = Path(environ.get("REPRISE_WHEEL_CACHE") or root / ".wheels").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise SetupError(f"wheel cache {folder} is not writable ({error.strerror}): set REPRISE_WHEEL_CACHE") from error
    return folder


class Lock:
    """One set-up per checkout at a time.

    Commands inherit the descriptor: when the set-up is killed, the lock is held until the command that it had started
    has ended too, so that a second set-up never writes into the environment beside an orphaned pip.
    """

    def __init__(self, path: Path):
        self.path = path
        self.descriptor = -1

    def __enter__(self) -> "Lock":
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: waiting for another set-up of this checkout to end", flush=True)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


class Stamps:
    """Which steps are done, with which inputs: one small file per step in a folder of the environment."""

    def __init__(self, folder: Path):
        self.folder = folder

    def is_done(self, step: str, inputs: str) -> bool:
        try:
            return (self.folder / step).read_text() == inputs
        except OSError:
            return False

    @contextlib.contextmanager
    def step(self, step: str, inputs: str) -> Iterator[None]:
        """Around the work of a step: marked as done only if it came to its end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / step).unlink(missing_ok=True)
        yield
        partial = self.folder / f"{step}.partial"
        partial.write_text(inputs)
        partial.replace(self.folder / step)


class Runner:
    """Runs commands in the environment; their output goes to the log, a failure becomes one line."""

    def __init__(self, log: Path, lock: Lock, environ: dict[str, str]):
        self.log, self.lock, self.environ = log, lock, environ

    def run(
        self, command: Sequence[str | Path], what: str, *, seconds: int = COMMAND_SECONDS, **extra_environ: str
    ) -> str:
        """Standard output and error of the command. Raises SetupError, saying `what` failed, with the last lines."""
        words = [str(word) for word in command]
        begin = time.monotonic()
        try:
            done = subprocess.run(
                words,
                env={**self.environ, **extra_environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds,
                pass_fds=(self.lock.descriptor,),
            )
        except subprocess.TimeoutExpired as error:
            raise SetupError(f"{what}: no end after {seconds} s: {' '.join(words)}") from error
        except OSError as error:
            raise SetupError(f"{what}: cannot start {words[0]}: {error.strerror}") from error
        with self.log.open("a") as log:
            took = time.monotonic() - begin
            log.write(f"$ {' '.join(words)}\n{done.stdout}[exit {done.returncode}, {took:.1f} s]\n\n")
        if done.returncode:
            raise SetupError(f"{what} failed: {failure_line(done.stdout)} (all of it: {self.log})")
        return done.stdout


def failure_line(output: str) -> str:
    """What of a failed command's output tells the user most, on one line."""
    if "No space left on device" in output:
        return "no space left on the disk (the environment, the wheel cache, or the temporary folder)"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # pip's own verdict ("metadata-generation-failed") says nothing; the line that made it fail does.
    boilerplate = ("subprocess-exited-with-error", "metadata-generation-failed", "Failed building", "Failed to build")
    errors = [
        line for line in lines if re.match(r"(\w*error|fatal error|E):|.+: (fatal )?error: ", line, re.IGNORECASE)
    ]
    errors = [line for line in errors if not any(word in line for word in boilerplate)] or lines[-3:]
    signs = ("NewConnectionError", "Name or service", "ConnectTimeout", "ProxyError")
    unreachable = any(sign in output for sign in signs)
    return ("the package index cannot be reached: " if unreachable else "") + (" | ".join(errors[-3:]) or "no output")


def repair(site_packages: Path) -> list[str]:
    """Forget packages whose installation was cut off, so that pip installs them anew; their names.

    pip writes the final RECORD, the one that lists INSTALLER, when everything else of a package is in place.
    """
    cut_off = []
    for info in site_packages.glob("*.dist-info"):
        record = info / "RECORD"
        if not record.is_file() or f"{info.name}/INSTALLER" not in record.read_text(errors="replace"):
            cut_off.append(info.name.removesuffix(".dist-info"))
            shutil.rmtree(info)
    for leftover in site_packages.glob("~*"):  # pip renames to ~ame what it is about to remove
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    return cut_off
