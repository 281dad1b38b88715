"""Benchmark of whole training steps: what a strategy costs over steps without rehearsal that do the same passes.

    python benchmarks/step_overhead.py --check --json steps.json
    python benchmarks/step_overhead.py --implementations standard flyweight --launcher horovodrun

A pass is a forward and a backward through the network with the average of its gradients over ranks. The rows of each
pass of a strategy are counted while it steps; its baseline does the same passes and nothing else, which is Vanilla on a
batch of b + r rows where there is one pass. Overhead: median over turns of the step's time over that of the baseline's
step in the same turn, minus 1. Starts its own ranks; the timed part is step_worker.py. See docs/performance.md.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from reprise.benchmarks import job, step_worker
from reprise.benchmarks.buffer import environment
from reprise.benchmarks.checks import ENGINES
from reprise.benchmarks.show import console, table
from reprise.runtime.files import atomic_write

RANKS = 2
LIMIT = 0.03
STRATEGIES = ("Er", "Agem", "Der", "Derpp")

_RESAMPLES = 2000
_START_S = 300.0  # for everything but the turns


def judge(contestants: dict[str, Any]) -> dict[str, Any]:
    """What the times say of every contestant that has a baseline, by its name.

    `passed` is None for the control, and for "python", also where that runs because the engine is not built.
    """
    found = {}
    for name, mine in contestants.items():
        if not mine["baseline"]:
            continue
        baseline, vanilla = contestants[mine["baseline"]], contestants[mine["vanilla"]]
        over = overhead(mine["wall_ms"], baseline["wall_ms"])
        found[name] = {
            "overhead": over,
            "cpu_overhead": overhead(mine["cpu_ms"], baseline["cpu_ms"]),
            "over_vanilla": overhead(mine["wall_ms"], vanilla["wall_ms"]),
            "passed": over["median"] <= LIMIT if mine["implementation"] in ENGINES else None,
        }
    return found


def overhead(mine_ms: list[float], baseline_ms: list[float]) -> dict[str, float]:
    """Median over turns of mine / baseline - 1, its quartiles over turns, and the median's 95 % bootstrap interval."""
    over = np.array(mine_ms) / np.array(baseline_ms) - 1
    resampled = np.random.default_rng(1).choice(over, (_RESAMPLES, len(over)))
    low, high = np.percentile(np.median(resampled, axis=1), (2.5, 97.5))
    quartiles = np.percentile(over, (25, 75))
    return {
        "median": float(np.median(over)),
        "low": float(low),
        "high": float(high),
        "quartile_1": float(quartiles[0]),
        "quartile_3": float(quartiles[1]),
    }


def show(results: dict[str, Any], out: Console) -> None:
    contestants, verdicts = results["contestants"], results["overheads"]
    header = ["", "buffer", "rows of\npasses", "step\np50 ms", "over the\nsame passes", "95 %\ninterval", "quartiles"]
    header += ["the same,\nCPU time", "over\nVanilla", f"<= {LIMIT:.0%}"]
    rows = []
    for name, mine in contestants.items():
        row = [
            name,
            mine["implementation"] or "-",
            " + ".join(map(str, mine["passes"]["forward"])),
            f"{np.median(mine['wall_ms']):.1f}",
        ]
        if name in verdicts:
            own = verdicts[name]
            over = own["overhead"]
            row += [_percent(over["median"]), _range(over["low"], over["high"])]
            row += [_range(over["quartile_1"], over["quartile_3"]), _percent(own["cpu_overhead"]["median"])]
            row += [_percent(own["over_vanilla"]["median"]), {True: "pass", False: "FAIL", None: "-"}[own["passed"]]]
        rows.append(row + ["-"] * (len(header) - len(row)))
    title = f"{results['backbone']} on {results['ranks']} ranks ({results['launcher']}), {results['turns']} turns"
    table(title, header, rows, out, left=2)

    names = ("rehearsal", "forward", "backward", "optimiser")
    rows = [
        [name, *_calls_us(mine["spans"]), *(f"{mine['spans'].get(span, {}).get('p50_ms', 0):.3g}" for span in names)]
        for name, mine in contestants.items()
    ]
    header = ["", "in calls of the\nbuffer p50 µs", "p95 µs", *(f"{span}\np50 ms" for span in names)]
    table("parts of a step, rank 0 (spans; of each pass)", header, rows, out)
    others = results["cores_used_by_others"]
    out.print(f"Meanwhile other processes used {others:.2f} cores of this machine.", highlight=False)


def _calls_us(spans: dict[str, Any]) -> Iterator[str]:
    """p50 and p95 in µs that a step spends in calls of the buffer, each call's added up."""
    for percentile in ("p50_ms", "p95_ms"):
        calls = [spans[call][percentile] for call in step_worker.BUFFER_CALLS if call in spans]
        yield f"{1000 * sum(calls):.0f}" if calls else "-"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _range(low: float, high: float) -> str:
    return f"{100 * low:+.1f} .. {100 * high:+.1f}"


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when it fails, or when --check finds an overhead above the limit."""
    chosen = _parse(arguments)
    if chosen.worker:
        step_worker.run(chosen.worker)
        return 0
    out = console()
    asked = {
        name: getattr(chosen, name)
        for name in ("backbone", "strategies", "implementations", "batch_size", "representatives", "turns", "minutes")
    }
    # Every new sample is a candidate, as with the defaults of --buffer-config for batches of 8.
    asked |= {"candidates": chosen.batch_size, "capacity": 15_000}
    if chosen.quick:
        asked |= {"batch_size": 4, "candidates": 4, "representatives": 2, "capacity": 64, "turns": 3}
    found = job.run(__file__, chosen.launcher, RANKS, asked, {"OMP_NUM_THREADS": "1"}, 60 * chosen.minutes + _START_S)
    if "failed" in found:
        out.print(found["failed"], highlight=False, markup=False)
        return 1
    results = {"command": shlex.join(sys.argv), "environment": environment(), **asked, **found}
    results["overheads"] = judge(found["contestants"])
    show(results, out)
    if chosen.json:
        with atomic_write(chosen.json) as stream:
            stream.write(json.dumps(results, indent=1) + "\n")
    return int(chosen.check and any(own["passed"] is False for own in results["overheads"].values()))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    add("--implementations", nargs="+", choices=("standard", "flyweight", "python"), default=["standard"])
    add("--backbone", default="resnet18", help="the network (resnet18)")
    add("--batch-size", type=int, default=8, metavar="B", help="new samples per rank and step (8)")
    add("--representatives", type=int, default=4, metavar="R", help="samples of a draw, per rank and step (4)")
    add("--turns", type=int, default=60, metavar="N", help="steps of every contestant (60)")
    add(
        "--launcher",
        choices=("torchrun", "horovodrun", "mpirun"),
        default="torchrun",
        help="starts the ranks (torchrun)",
    )
    add("--minutes", type=float, default=15, metavar="M", help="take no more turns after so long (15)")
    add("--json", type=Path, metavar="FILE", help="write all results there")
    add("--check", action="store_true", help="exit with 1 when an overhead is above the limit")
    add("--quick", action="store_true", help="a few steps with small batches: does it run?")
    add("--worker", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)  # one rank of a job of this program
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
