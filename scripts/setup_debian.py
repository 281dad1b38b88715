"""Packages of Debian and Ubuntu, unpacked into a folder of the cache: without root, and without installing them.

For what tests need and the Python package index does not have. Standard library only; no part of `make setup`.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from setup_support import Runner, SetupError

APT_SECONDS = 240
"""Seen: 1.5 s for the lists of packages, 0.7 s for a package."""


def unpack(runner: Runner, folder: Path, packages: Sequence[str], what: str) -> Path:
    """Folder of what is in the packages, below `folder`, which the caller removes. apt checks their signatures.

    what: how messages name it. Raises SetupError.
    """
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool, path=runner.environ.get("PATH")):
            raise SetupError(f"no {tool} on the PATH to get it with")
    root = folder / "root"
    for package in _download(runner, folder, packages, what):
        runner.run(["dpkg", "-x", package, root], f"unpacking {what}", seconds=APT_SECONDS)
    return root


def _download(runner: Runner, folder: Path, packages: Sequence[str], what: str) -> list[Path]:
    lists, cache, deb = folder / "lists", folder / "cache", folder / "deb"
    for made in (lists / "partial", cache / "archives" / "partial", deb):
        made.mkdir(parents=True)
    apt = ["apt-get", "-o", f"Dir::Cache={cache}", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=15"]
    fetch: list[str | Path] = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", deb]
    step = f"downloading {what}"
    try:
        runner.run([*fetch, *apt, "download", *packages], step, seconds=APT_SECONDS)
    except SetupError:  # the system's lists are empty, as in many containers, or older than what the mirror holds
        apt += ["-o", f"Dir::State::Lists={lists}"]
        runner.run([*apt, "update"], "fetching the lists of packages", seconds=APT_SECONDS)
        runner.run([*fetch, *apt, "download", *packages], step, seconds=APT_SECONDS)
    found = sorted(deb.glob("*.deb"))
    if len(found) != len(packages):
        raise SetupError(f"{step}: apt-get left {len(found)} packages, not {len(packages)}")
    return found
