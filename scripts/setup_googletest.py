"""GoogleTest for the C++ tests, on Debian and Ubuntu, without root: the distribution's package, unpacked and kept.

It is not on PyPI. Called by cmake/googletest.cmake where the machine has none; prints the folder of the sources. Not
part of `make setup`: only the tests need it. Standard library only.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

from setup_support import Lock, Runner, SetupError, cache_folder

PACKAGE = "googletest"
"""Holds sources and headers; they are compiled with the flags of the tests, sanitizers included."""

PARTS = ("googletest/include", "googletest/src")
ENTRY = Path("googletest/src/gtest-all.cc")
APT_SECONDS = 240
"""Seen: 1.5 s for the lists of packages, 0.7 s for the package."""

REMEDY = "install GoogleTest (Debian, Ubuntu: libgtest-dev) or load it (your site's module, spack load googletest)"


def download(runner: Runner, folder: Path) -> Path:
    """The package, in a folder where apt has written nothing else. apt checks its signature."""
    lists, cache, deb = folder / "lists", folder / "cache", folder / "deb"
    for made in (lists / "partial", cache / "archives" / "partial", deb):
        made.mkdir(parents=True)
    apt = ["apt-get", "-o", f"Dir::Cache={cache}", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=15"]
    fetch: list[str | Path] = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", deb]
    what = "downloading GoogleTest"
    try:
        runner.run([*fetch, *apt, "download", PACKAGE], what, seconds=APT_SECONDS)
    except SetupError:  # the system's lists are empty, as in many containers, or older than what the mirror holds
        apt += ["-o", f"Dir::State::Lists={lists}"]
        runner.run([*apt, "update"], "fetching the lists of packages", seconds=APT_SECONDS)
        runner.run([*fetch, *apt, "download", PACKAGE], what, seconds=APT_SECONDS)
    found = list(deb.glob("*.deb"))
    if len(found) != 1:
        raise SetupError(f"{what}: apt-get left {len(found)} packages")
    return found[0]


def get(runner: Runner, cache: Path) -> Path:
    """Folder of the sources: from the cache, else downloaded into it and renamed, so that it never holds half of it."""
    kept = cache / PACKAGE
    if (kept / ENTRY).is_file():
        return kept
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool, path=runner.environ.get("PATH")):
            raise SetupError(f"no {tool} on the PATH to get it with")
    work = cache / f"{PACKAGE}.partial"
    shutil.rmtree(work, ignore_errors=True)
    try:
        package = download(runner, work)
        runner.run(["dpkg", "-x", package, work / "root"], "unpacking GoogleTest", seconds=APT_SECONDS)
        unpacked, wanted = work / "root/usr/src" / PACKAGE, work / "wanted"
        if not (unpacked / ENTRY).is_file():
            raise SetupError(f"{package.name} has no {ENTRY}")
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
