"""environment.json: on what a run ran, as far as it can be found out without importing or starting anything heavy.

Versions come from package metadata, the MPI's from the library this process has loaded. What is absent is null.
"""

import ctypes
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("reprise", "torch", "torchvision", "horovod", "numpy", "timm", "continuum")


def describe(world_size: int, launcher: str) -> dict[str, Any]:
    """Everything worth knowing when a number cannot be reproduced; call it after runtime.dist is up."""
    return {
        **{package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "mpi": _loaded_mpi(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu_count": os.cpu_count(),
        "world_size": world_size,
        "launcher": launcher,
        "git_commit": _git_commit(Path(__file__).resolve().parent.parent),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _loaded_mpi() -> str | None:
    """First line of MPI_Get_library_version, or None when this process has no MPI in it."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    libraries = sorted(set(re.findall(r"(/\S*/libmpi\.so\S*)", maps.read_text(encoding="utf-8", errors="replace"))))
    if not libraries:
        return None
    # The one MPI function (with its relatives) that may be called before MPI_Init and after MPI_Finalize.
    text, length = ctypes.create_string_buffer(8192), ctypes.c_int()
    try:
        ctypes.CDLL(libraries[0]).MPI_Get_library_version(text, ctypes.byref(length))
    except (OSError, AttributeError):
        return None
    return text.value.decode(errors="replace").splitlines()[0].strip(" ,")


def _git_commit(checkout: Path) -> str | None:
    """The commit of our checkout, with "+changes" when files differ from it; None outside one or without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository, whose commit says nothing about us.
        if Path(git("rev-parse", "--show-toplevel")) != checkout:
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
