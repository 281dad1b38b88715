"""What timing costs, and whether it accounts for the step: spans against an empty block, and a run's timeline.

    python benchmarks/spans.py --check
    python benchmarks/spans.py -- --config mine --dataset cifar10 ...

Prints ns per span; then, of a short run of main.py (the options after "--"; by default experience replay on the digits,
whose steps are among the shortest), the share of a step that its spans cost, and the share that no part of the timeline
accounts for. --check exits with 1 where a span costs 1 µs or more, spans 1 % of a step or more, or where 5 % of the
step or more are unaccounted for.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from reprise import main as program
from reprise.benchmarks.show import console
from reprise.report.run_folder import TIMELINE_FILE
from reprise.report.timeline import STEP, within
from reprise.runtime.spans import Spans

SPAN_NS, SPANS_SHARE, UNACCOUNTED = 1000.0, 0.01, 0.05
DIGITS = (
    *("--dataset", "digits", "--backbone", "mlp", "--epochs", "3", "--warmup-epochs", "0"),
    *("--model", "Er", "--tasksets-config", "increment=2", "--buffer-config", "rehearsal_ratio=30"),
)


def span_ns(turns: int = 40, spans_per_turn: int = 20_000) -> float:
    """The quickest turn, less what the loop itself takes: a shared machine only ever adds."""
    timed = Spans().span

    def spans() -> None:
        for _ in range(spans_per_turn):
            with timed("x"):
                pass

    def nothing() -> None:
        for _ in range(spans_per_turn):
            pass

    fastest = min(timeit.repeat(spans, number=1, repeat=turns)) - min(timeit.repeat(nothing, number=1, repeat=turns))
    return fastest / spans_per_turn * 1e9


def timeline(options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """That of a run in a folder of its own; SystemExit with what it said where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = program.main([*options, "--results-dir", folder, "--save-dir", "run", "--log-level", "error"])
        if code:
            raise SystemExit(said.getvalue())
        parts: dict[str, dict[str, Any]] = json.loads((Path(folder) / "run" / TIMELINE_FILE).read_text())
        return parts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is not kept")
    parser.add_argument("options", nargs="*", help="options of main.py, after --")
    chosen = parser.parse_args(argv)
    cost = span_ns()
    parts = timeline(chosen.options or DIGITS)
    step, inside = parts[STEP], within(parts).values()
    spans = 1 + sum(stats["count"] for stats in inside) / step["count"]
    rows = (
        ("one span, ns", cost, SPAN_NS),
        (f"{spans:.0f} spans of a step of {step['mean_ms']:.3g} ms", spans * cost / 1e6 / step["mean_ms"], SPANS_SHARE),
        (
            "step outside its parts",
            1 - sum(stats["total_ms"] for stats in inside) / step["total_ms"],
            UNACCOUNTED,
        ),
    )
    table = Table(box=box.MARKDOWN)
    for name in ("", "measured", "limit", ""):
        table.add_column(name)
    for text, value, limit in rows:
        measured, most = (f"{value:.0f}", f"{limit:.0f}") if limit > 1 else (f"{value:.2%}", f"{limit:.0%}")
        table.add_row(text, measured, most, "pass" if value < limit else "FAIL")
    console().print(table)
    return 0 if not chosen.check or all(value < limit for _, value, limit in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
