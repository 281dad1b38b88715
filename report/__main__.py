"""`python -m reprise.report results/a results/b`: the summaries of finished runs, side by side.

--picture FILE also draws what they had learnt after how much training time. A missing or damaged file is named in one
line, exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reprise.report import summary_schema, time_curve
from reprise.report.plots import accuracy_against_time_png
from reprise.report.summary import print_comparison
from reprise.runtime.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m reprise.report", description="Compare finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="e.g. results/demo-er")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw accuracy against training time there (PNG)")
    chosen = parser.parse_args(argv)
    runs: list[Path] = chosen.runs
    # Runs of one results folder are told apart by their last part; the same name twice needs the whole path.
    short = len({run.resolve().name for run in runs}) == len(runs)
    try:
        named = {run.resolve().name if short else str(run): run for run in runs}
        summaries = {name: summary_schema.read(run) for name, run in named.items()}
        if chosen.picture:
            accuracy_against_time_png({name: time_curve.read(run) for name, run in named.items()}, chosen.picture)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print_comparison(summaries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
