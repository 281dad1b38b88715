"""An SSH server for the tests of jobs on several hosts: the machine's, else Debian's, unpacked and kept, not installed.

Called by tests/parallel. It only ever runs inside the hosts that those tests make, with keys of their own. Standard
library only; no part of `make setup`.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

from setup_debian import unpack
from setup_support import Lock, Runner, SetupError, cache_folder

PACKAGES = ("openssh-server", "libwrap0")
"""The server, and the library of it that machines without one do not have."""

REMEDY = "install an SSH server (Debian, Ubuntu: openssh-server)"


def find(root: Path, environ: dict[str, str]) -> tuple[Path, Path | None]:
    """The server, and the folder of libraries that it needs besides those of the machine. Raises SetupError."""
    path = os.pathsep.join([environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    installed = shutil.which("sshd", path=path)
    if installed:
        return Path(installed), None
    try:
        cache = cache_folder(root, environ)
        with contextlib.redirect_stdout(sys.stderr), Lock(cache / "sshd.lock") as lock:
            kept = _get(Runner(cache / "sshd.log", lock, environ), cache)
    except SetupError as stop:
        raise SetupError(f"no SSH server, and {stop}: {REMEDY}") from stop
    return kept / "sshd", kept / "lib"


def _get(runner: Runner, cache: Path) -> Path:
    """From the cache, else downloaded into it and renamed, so that it never holds half of it."""
    kept, work = cache / "sshd", cache / "sshd.partial"
    if kept.is_dir():
        return kept
    shutil.rmtree(work, ignore_errors=True)
    try:
        unpacked = unpack(runner, work, PACKAGES, "an SSH server")
        wanted = work / "wanted"
        (wanted / "lib").mkdir(parents=True)
        server = unpacked / "usr/sbin/sshd"
        if not server.is_file():
            raise SetupError(f"{PACKAGES[0]} has no sshd")
        server.replace(wanted / "sshd")
        for library in unpacked.glob("**/lib*.so.*"):
            library.replace(wanted / "lib" / library.name)
        needed = runner.run(["ldd", wanted / "sshd"], "loading it", LD_LIBRARY_PATH=str(wanted / "lib"))
        missing = [line.split()[0] for line in needed.splitlines() if "not found" in line]
        if missing:
            raise SetupError(f"it needs {', '.join(missing)}")
        wanted.replace(kept)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return kept
