"""Starts a benchmark's own script on several ranks, with what it is asked, and brings back what rank 0 found out.

`run` is for the command, `answer` for the ranks it starts; between them lies a folder.
"""

import argparse
import json
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reprise.runtime.files import atomic_write
from reprise.tests.parallel import launch


def positive(text: str) -> int:
    """For argparse: a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return number


def run(
    script: str, launcher: str, ranks: int, asked: Mapping[str, Any], env: Mapping[str, str], timeout_s: float
) -> dict[str, Any]:
    """Run `script --worker FOLDER` on so many ranks. Returns what rank 0 has answered, or {"failed": reason}."""
    if launcher not in launch.available():
        return {"failed": f"{launcher} is not installed"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "asked.json").write_text(json.dumps(asked))
        command: list[str | Path] = [Path(script).resolve(), "--worker", folder]
        try:
            done = launch.run(launcher, ranks, command, env, timeout=timeout_s)
        except launch.JobTimeoutError as error:
            return {"failed": f"it does not end: {str(error)[-2000:]}"}
        results = folder / "results.json"
        if done.returncode or not results.exists():
            reason = folder / "failed.txt"
            words = reason.read_text() if reason.exists() else done.output
            return {"failed": f"exit code {done.returncode}: {words.strip()[-2000:]}"}
        found: dict[str, Any] = json.loads(results.read_text())
        return found


def answer(folder: Path, work: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """On each rank: do what is asked. `work` returns the answer on rank 0 and None elsewhere; a failure says why."""
    try:
        found = work(json.loads((folder / "asked.json").read_text()))
        if found is not None:
            with atomic_write(folder / "results.json") as stream:
                stream.write(json.dumps(found))
    except BaseException:
        with (folder / "failed.txt").open("a") as stream:
            stream.write(traceback.format_exc())
        raise
