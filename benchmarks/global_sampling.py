"""Benchmark of global sampling: what a draw of other ranks' samples costs, against what the machine and others can do.

    python benchmarks/global_sampling.py --check --json results.json
    python benchmarks/global_sampling.py --measure hidden --transports shm collectives
    python benchmarks/global_sampling.py --quick

Starts its own jobs under torchrun, horovodrun and mpirun; the timed part is global_worker.py. Prints a table per
measurement; ratios count, times are those of this machine at this moment. See docs/performance.md.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from reprise.benchmarks import global_worker, job, scale_model
from reprise.benchmarks.buffer import environment
from reprise.benchmarks.global_checks import judge
from reprise.benchmarks.global_show import show_results
from reprise.benchmarks.limit import library
from reprise.benchmarks.show import console, show_checks
from reprise.benchmarks.workloads import PUBLIC
from reprise.runtime.files import atomic_write

MEASUREMENTS = ("draws", "hidden", "collectives", "ranks", "model")
TRANSPORTS = ("shm", "ucx", "collectives")

_KIB = 1024
# By transport: what UCX may use, so that ours and ucx_perftest's messages go the same way.
_UCX = {"shm": {"UCX_TLS": "posix,sysv,self"}, "ucx": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}}


@dataclass(frozen=True)
class Settings:
    """How much is measured: the default takes about ten minutes on two cores."""

    cases: tuple[tuple[int, int], ...] = ((16, 12 * _KIB), (7, 588 * _KIB), (1, 12 * _KIB))
    """Records and bytes of each, of the draws that must be fast."""
    sweep_kib: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    """Draws of 16 records of other sizes."""
    shard_mib: int = 1200
    draw_blocks: int = 40
    block: int = 10
    perftest_repeats: int = 3
    perftest_seconds: float = 0.2
    compute_ms: tuple[float, ...] = (0, 5, 20)
    hidden_ranks: tuple[int, ...] = (2, 4)
    hidden_steps: int = 200
    collective_steps: int = 60
    collective_compute_ms: tuple[float, ...] = (0, 20)
    ranks: tuple[int, ...] = (2, 4, 8, 16, 32)
    ranks_steps: int = 60
    share: int = 1000
    """Samples per rank where ranks are many."""
    model_ranks: tuple[int, ...] = scale_model.RANKS
    model_steps: int = 100


_QUICK = Settings(
    sweep_kib=(1, 64),
    shard_mib=200,
    draw_blocks=8,
    perftest_repeats=1,
    perftest_seconds=0.1,
    compute_ms=(0, 20),
    hidden_ranks=(2,),
    hidden_steps=50,
    collective_steps=20,
    collective_compute_ms=(0,),
    ranks=(2, 4, 8),
    ranks_steps=20,
    model_ranks=(8, 64, 512),
    model_steps=30,
)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when --check finds something that does not hold."""
    chosen = _parse(arguments)
    if chosen.worker:
        global_worker.run(chosen.worker)
        return 0
    out = console()
    results = run(chosen, out)
    show_results(results, out)
    if chosen.check:
        checks = judge(results)
        results["checks"] = [asdict(check) for check in checks]
        show_checks(checks, out)
    if chosen.json:
        with atomic_write(chosen.json) as stream:
            stream.write(json.dumps(results, indent=1) + "\n")
        out.print(f"Results are in {chosen.json}", highlight=False, soft_wrap=True)
    return int(any(check["passed"] is False for check in results.get("checks", ())))


def run(chosen: argparse.Namespace, out: Console) -> dict[str, Any]:
    """All measurements asked for, as what the JSON file holds."""
    settings = _QUICK if chosen.quick else Settings()
    if chosen.ranks:
        settings = replace(settings, ranks=tuple(chosen.ranks))
    if chosen.share:
        settings = replace(settings, share=chosen.share)
    results: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "environment": environment(),
        "settings": asdict(settings),
    }
    library()  # compiled here, before several ranks want it at once
    remote = [transport for transport in chosen.transports if transport in _UCX]

    def step(text: str) -> None:
        out.print(f"[dim]{text} ...[/dim]", highlight=False)

    for transport in remote if "draws" in chosen.measure else ():
        step(f"draws over {transport}")
        asked = _draws(settings, transport)
        results.setdefault("draws", {})[transport] = _job("torchrun", 2, asked, transport)

    for ranks in settings.hidden_ranks if "hidden" in chosen.measure else ():
        step(f"steps with and without compute, {ranks} ranks")
        asked = _hidden(settings, chosen.workload, chosen.transports, ranks)
        results.setdefault("hidden", {})[str(ranks)] = _job("torchrun", ranks, asked)

    for launcher in ("torchrun", "horovodrun", "mpirun") if "collectives" in chosen.measure else ():
        step(f"the collective exchange under {launcher}")
        asked = _hidden(settings, chosen.workload, ["shm", "collectives"], 2)
        asked |= {"steps": settings.collective_steps, "compute_ms": settings.collective_compute_ms}
        results.setdefault("collectives", {})[launcher] = _job(launcher, 2, asked)

    for ranks in settings.ranks if "ranks" in chosen.measure else ():
        step(f"{ranks} ranks")
        asked = {
            "part": "ranks",
            "workload": "cifar",
            "share": settings.share,
            "steps": settings.ranks_steps,
            "transports": chosen.transports,
        }
        results.setdefault("ranks", {})[str(ranks)] = _job("torchrun", ranks, asked)

    if "model" in chosen.measure:
        step("the model of many ranks")
        costs = scale_model.costs_from(results)
        results["model"] = scale_model.predict(costs, settings.model_ranks, settings.model_steps)
        results["model"]["against_measured"] = scale_model.compare(costs, results)
    return results


def _draws(settings: Settings, transport: str) -> dict[str, Any]:
    cases = [{"records": n, "bytes": size, "repeats": settings.perftest_repeats} for n, size in settings.cases]
    cases += [{"records": 16, "bytes": kib * _KIB, "repeats": 1} for kib in settings.sweep_kib]
    return {
        "part": "draws",
        "transport": transport,
        "ucx": _ucx(transport),
        "cases": cases,
        "shard_bytes": settings.shard_mib << 20,
        "blocks": settings.draw_blocks,
        "block": settings.block,
        "perftest_seconds": settings.perftest_seconds,
    }


def _hidden(settings: Settings, workloads: Sequence[str], transports: Sequence[str], ranks: int) -> dict[str, Any]:
    return {
        "part": "hidden",
        "busy": True,
        "ranks": ranks,
        "workloads": workloads,
        "transports": transports,
        "compute_ms": settings.compute_ms,
        "steps": settings.hidden_steps,
        "block": settings.block,
    }


def _job(launcher: str, ranks: int, asked: dict[str, Any], transport: str = "ucx") -> dict[str, Any]:
    """What the job's rank 0 has written, or {"failed": reason}."""
    # Horovod's MPI may use UCX itself, which is none of our business there.
    ucx = _ucx(transport) if launcher == "torchrun" else {}
    return job.run(__file__, launcher, ranks, asked, {"REPRISE_TIMEOUT": "200", **ucx}, timeout_s=400)


def _ucx(transport: str) -> dict[str, str]:
    """What the user has set goes first."""
    return {name: os.environ.get(name, value) for name, value in _UCX[transport].items()}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Benchmark of global sampling over ranks on this machine, and a model of many. About ten minutes."
    )
    add = parser.add_argument
    add("--measure", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    add("--transports", nargs="+", choices=TRANSPORTS, default=list(TRANSPORTS))
    add(
        "--workload", nargs="+", choices=PUBLIC, default=["imagenet", "cifar"], help="of steps with and without compute"
    )
    add("--ranks", nargs="+", type=int, metavar="N", help="how many ranks to start for --measure ranks (2 4 8 16 32)")
    add("--share", type=int, metavar="N", help="samples per rank there, of 12 KiB (1000): page tables grow with it")
    add("--json", type=Path, metavar="FILE", help="write all results there")
    add("--check", action="store_true", help="print what must hold and whether it does; exit 1 when something does not")
    add("--quick", action="store_true", help="about two minutes: fewer sizes, ranks and steps")
    add("--worker", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)  # one rank of a job of this program
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
