"""GoogleTest for the C++ tests, on Debian and Ubuntu, without root: the distribution's package, unpacked and kept.

It is not on PyPI. Called by cmake/googletest.cmake where the machine has none; prints the folder of the sources. Not
part of `make setup`: only the tests need it. Standard library only.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

from setup_debian import unpack
from setup_support import Lock, Runner, SetupError, cache_folder

PACKAGE = "googletest"
"""Holds sources and headers; they are compiled with the flags of the tests, sanitizers included."""

PARTS = ("googletest/include", "googletest/src")
ENTRY = Path("googletest/src/gtest-all.cc")
REMEDY = "install GoogleTest (Debian, Ubuntu: libgtest-dev) or load it (your site's module, spack load googletest)"


def get(runner: Runner, cache: Path) -> Path:
    """Folder of the sources: from the cache, else downloaded into it and renamed, so that it never holds half of it."""
    kept = cache / PACKAGE
    if (kept / ENTRY).is_file():
        return kept
    work = cache / f"{PACKAGE}.partial"
    shutil.rmtree(work, ignore_errors=True)
    try:
        root = unpack(runner, work, [PACKAGE], "GoogleTest")
        unpacked, wanted = root / "usr/src" / PACKAGE, work / "wanted"
        if not (unpacked / ENTRY).is_file():
            raise SetupError(f"package {PACKAGE} has no {ENTRY}")
        for part in PARTS:  # the rest is the mocks, and tests of its own in Python that ours would trip over
            (wanted / part).parent.mkdir(parents=True, exist_ok=True)
            (unpacked / part).replace(wanted / part)
        shutil.rmtree(kept, ignore_errors=True)
        wanted.replace(kept)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return kept


def main(root: Path, environ: dict[str, str]) -> int:
    """Exit code: 0 and the folder on standard output, or 2 and one line on standard error that says what to install."""
    try:
        cache = cache_folder(root, environ)
        # A lock of its own: `make setup` holds the other one for as long as Horovod takes to build.
        with contextlib.redirect_stdout(sys.stderr), Lock(cache / f"{PACKAGE}.lock") as lock:
            folder = get(Runner(cache / f"{PACKAGE}.log", lock, environ), cache)
    except SetupError as stop:
        print(f"no GoogleTest, and {stop}: {REMEDY}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent, dict(os.environ)))
