"""`python -m reprise.report results/a results/b`: runs side by side, as a table here and as a page for the browser.

The page is report.html beside the runs, or --html FILE. --picture FILE also draws what the runs had learnt after how
much training time. A missing or damaged file is named in one line, exit code 2. A run without a summary, still going on
or killed, is on the page with what there is of it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from reprise.report import page, run_contents, time_curve
from reprise.report.plots import accuracy_against_time_png
from reprise.report.summary import print_comparison
from reprise.runtime.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m reprise.report", description="Compare runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="e.g. results/demo-er")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="the page; report.html beside the first run if not given"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw accuracy against training time there (PNG)")
    chosen = parser.parse_args(argv)
    # By the name that was given: of a linked folder, that is where its user looks.
    html: Path = chosen.html or Path(os.path.normpath(chosen.runs[0] / "..")) / "report.html"
    # results/* names the page of an earlier call, too.
    runs = [run for run in dict.fromkeys(chosen.runs) if run.absolute() != html.absolute()] or chosen.runs
    # Runs of one results folder are told apart by their last part; the same name twice needs the whole path.
    short = len({run.resolve().name for run in runs}) == len(runs)
    try:
        contents = [run_contents.read(run, run.resolve().name if short else str(run)) for run in runs]
        if chosen.picture:
            accuracy_against_time_png({run.name: time_curve.read(run.folder) for run in contents}, chosen.picture)
        print_comparison({run.name: run.summary for run in contents if run.summary})
        for run in contents:
            if run.summary is None:
                print(f"{run.name} has not finished: it is on the page alone")
        page.write(contents, html)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"The page to open in a browser: {html}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
