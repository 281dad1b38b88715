"""What is learnt: average accuracy over several seeds, beside a peer, of published protocols and of our own choices.

    python benchmarks/accuracy.py --study digits --check --json digits.json
    python benchmarks/accuracy.py --study types storage reconstruction --check
    python benchmarks/accuracy.py --study types --dataset mnist --dataset-dir ~/data --seeds 20

Studies: `digits`, every strategy beside Avalanche's with the same network, initial weights, optimiser, order, batches
and memory; `types`, task-, domain- and class-incremental learning; `storage`, uint8 against float32; `reconstruction`,
two ranks; `peft`, modules on a transformer that benchmarks/pretrain_vit.py pre-trains. Prints mean ± standard deviation
as a table that can stand in docs/accuracy.md. --check compares the means: exits with 1 when a statement does not hold.
The peer takes part where it is installed (pip install avalanche-lib).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from reprise.benchmarks.job import positive
from reprise.benchmarks.peers import installed
from reprise.benchmarks.show import console
from reprise.benchmarks.studies import STUDIES, WEIGHTS_FILE, Cell, Results, Statement, Study, gather
from reprise.benchmarks.training_runs import AVALANCHE, train_all
from reprise.runtime.files import atomic_write
from reprise.tests.parallel import launch


def measure(study: Study, chosen: argparse.Namespace) -> Results:
    runs = study.runs(range(chosen.seeds), chosen.dataset, chosen.dataset_dir)
    if not installed(AVALANCHE):
        runs = [run for run in runs if run.by != AVALANCHE]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(study.title, total=len(runs))
        summaries = train_all(runs, chosen.launcher, lambda: bar.advance(task))
    return gather(runs, summaries, study.figures)


def show(study: Study, results: Results, statements: Sequence[Statement], seeds: int, out: Console) -> None:
    built = Table(title=f"{study.title} ({seeds} seeds)", title_justify="left", box=box.MARKDOWN)
    entries: dict[Cell, dict[str, str]] = {}
    for cell, figures in results.items():
        whose = "" if len(cell) == len(study.columns) else cell[-1]
        row = entries.setdefault(cell[: len(study.columns)], {})
        row |= {whose or name: str(spread) for name, spread in figures.items()}
    header = dict.fromkeys(name for row in entries.values() for name in row)
    for name in (*study.columns, *header):
        built.add_column(name.replace("_", " "), no_wrap=True)
    for cell, row in entries.items():
        built.add_row(*cell, *(row.get(name, "") for name in header))
    out.print(built)
    checks = Table(box=box.MARKDOWN)
    for name in ("must hold", "measured", ""):
        checks.add_column(name)
    for statement in statements:
        checks.add_row(statement.text, statement.measured, "pass" if statement.holds else "FAIL")
    out.print(checks)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", nargs="+", default=list(STUDIES), choices=STUDIES, help="default: all")
    parser.add_argument("--seeds", type=positive, default=5, help="seeds 0, 1, ... of every run (5)")
    parser.add_argument(
        "--dataset", default="digits", choices=("digits", "mnist"), help="of the study `types` (digits)"
    )
    parser.add_argument("--dataset-dir", default="./datasets", help="where mnist lies (./datasets)")
    parser.add_argument("--launcher", default="horovodrun", choices=("horovodrun", "mpirun", "torchrun"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--check", action="store_true", help="exit with 1 when something does not hold")
    chosen = parser.parse_args(argv)
    out = console()
    if "reconstruction" in chosen.study and chosen.launcher not in launch.available():
        parser.error(f"--launcher {chosen.launcher} is not installed; here are {', '.join(launch.available())}")
    if "peft" in chosen.study and not WEIGHTS_FILE.exists():
        parser.error(f"{WEIGHTS_FILE} does not exist; run python benchmarks/pretrain_vit.py first")
    if "digits" in chosen.study and not installed(AVALANCHE):
        out.print("avalanche: not installed (pip install avalanche-lib), so nothing is compared with it")
    good, kept = True, {}
    for name in chosen.study:
        study = STUDIES[name]
        results = measure(study, chosen)
        statements = study.judge(results)
        show(study, results, statements, chosen.seeds, out)
        good = good and all(statement.holds for statement in statements)
        kept[name] = _as_json(results, statements)
    if chosen.json:
        with atomic_write(chosen.json) as stream:
            json.dump({"command": sys.argv, "cores": psutil.cpu_count(), "studies": kept}, stream, indent=1)
    return 0 if good or not chosen.check else 1


def _as_json(results: Results, statements: Sequence[Statement]) -> dict[str, Any]:
    cells = [
        {"cell": cell, **{name: spread.values for name, spread in figures.items()}} for cell, figures in results.items()
    ]
    return {"cells": cells, "statements": [vars(statement) for statement in statements]}


if __name__ == "__main__":
    sys.exit(main())
