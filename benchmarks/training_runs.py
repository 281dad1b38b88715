"""Trains one configuration after the other for benchmarks/accuracy.py: `python main.py` with options, or a peer.

Runs on one rank take turns in as many processes as there are cores, each with one torch thread. Runs on several ranks
go one at a time, under a launcher.
"""

import contextlib
import io
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from reprise.tests.parallel import launch

MAIN = Path(__file__).parents[1] / "main.py"
LIMIT_S = 1800.0
REPRISE, AVALANCHE = "reprise", "avalanche"
FIRST = "FIRST"

Summary = dict[str, Any]
"""Of summary.json, or of a peer the few keys that it has in common with it."""


@dataclass(frozen=True)
class Run:
    """One training run. cell: where its results belong in a table; runs that differ by seed alone share it.

    options: those of main.py without seed and folders. first: those of a run that comes before it, whose folder takes
    the place of FIRST in `options`. by: who trains it; a peer trains what `peer` says.
    """

    cell: tuple[str, ...]
    seed: int
    options: tuple[str, ...]
    first: tuple[str, ...] = ()
    ranks: int = 1
    by: str = REPRISE
    peer: tuple[tuple[str, Any], ...] = ()


def train_all(runs: Sequence[Run], launcher: str, done: Callable[[], None]) -> list[Summary]:
    """The summaries of all runs, in their order. Calls `done` after each. SystemExit when one of them failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the children import torch
    alone = [run for run in runs if run.ranks == 1]
    summaries: dict[int, Summary] = {}
    with ProcessPoolExecutor(
        max_workers=min(psutil.cpu_count() or 1, max(len(alone), 1)), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        futures = {id(run): pool.submit(_train_here, run) for run in alone}
        try:
            for run in alone:
                summaries[id(run)] = futures[id(run)].result(timeout=LIMIT_S)
                done()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for run in runs:
        if run.ranks > 1:
            summaries[id(run)] = _train_launched(run, launcher)
            done()
    return [summaries[id(run)] for run in runs]


def _arguments(run: Run, options: Sequence[str], folder: str, name: str) -> list[str]:
    words = [word.replace(FIRST, f"{folder}/first") for word in options]
    return [*words, "--seed", str(run.seed), "--results-dir", folder, "--save-dir", name]


def _train_here(run: Run) -> Summary:
    """In a child of the pool, which imports everything once."""
    if run.by == AVALANCHE:
        from reprise.benchmarks import avalanche_training

        return avalanche_training.train(run.seed, **dict(run.peer))
    from reprise import main

    with tempfile.TemporaryDirectory() as folder:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = 0
            for options, name in ((run.first, "first"), (run.options, "run")):
                if options and not code:
                    code = main.main([*_arguments(run, options, folder, name), "--log-level", "error"])
        return _summary(run, code, said.getvalue(), folder)


def _train_launched(run: Run, launcher: str) -> Summary:
    with tempfile.TemporaryDirectory() as folder:
        job = [str(MAIN), *_arguments(run, run.options, folder, "run")]
        finished = launch.run(launcher, run.ranks, job, {"OMP_NUM_THREADS": "1"}, timeout=LIMIT_S)
        return _summary(run, finished.returncode, finished.output, folder)


def _summary(run: Run, code: int, said: str, folder: str) -> Summary:
    """That of the run, and where it reconstructs the "error_on_earlier_tasks": the last row without its last."""
    from reprise.report import summary_schema, time_curve

    if code:
        raise SystemExit(f"{run} ended with code {code}\n{said[-2000:]}")
    summary = summary_schema.read(Path(folder) / "run")
    if summary["average_error"] is not None:
        matrix = time_curve.read_matrix(Path(folder) / "run" / "error_matrix.csv")
        summary["error_on_earlier_tasks"] = float(matrix[-1, :-1].mean())
    return summary
