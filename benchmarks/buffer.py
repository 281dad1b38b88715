"""Benchmark of the rehearsal buffer: ours, the memory limit and other projects' buffers, in one run, taking turns.

    python benchmarks/buffer.py --check --json results.json
    python benchmarks/buffer.py --workload cifar --measure unhidden hidden --peers none

Prints a table per measurement; ratios count, times are those of this machine at this moment. See docs/performance.md.
"""

import argparse
import json
import logging
import shlex
import sys
import warnings
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from reprise.benchmarks import peers
from reprise.benchmarks.checks import judge
from reprise.benchmarks.contestants import FORMS, Augmented, Contestant, Loop, ours
from reprise.benchmarks.limit import LIMITS, Limit
from reprise.benchmarks.measure import Settings, hidden, unhidden
from reprise.benchmarks.memory import measure_memory
from reprise.benchmarks.show import console, show_checks, show_results
from reprise.benchmarks.workloads import PUBLIC, WORKLOADS, Workload
from reprise.report.environment import describe
from reprise.runtime.files import atomic_write

MEASUREMENTS = ("unhidden", "hidden", "capacity", "rows", "memory")
_QUICK = Settings(steps=6, repeats=2, block=3, warmup=1, capacities=(40, 80), compute_ms=0.2, idle_seconds=0.2)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when --check finds something that does not hold."""
    chosen = _parse(arguments)
    out = console()
    if chosen.list:
        _list(out)
        return 0
    torch.set_num_threads(1)
    # Of ours that an engine is not built; the table says so. Of the peers whatever they have to say.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
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
    settings = replace(settings, steps=chosen.steps or settings.steps, repeats=chosen.repeats or settings.repeats)
    workloads = [WORKLOADS["tiny"]] if chosen.quick else [WORKLOADS[name] for name in chosen.workload]
    plain = [name for name in chosen.implementation if "+" not in name]
    present = [peer for peer in chosen.peers if peers.installed(peer)]
    results: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "environment": environment(),
        "settings": {**asdict(settings), "limits": chosen.limits},
        "not_installed": {peer: peers.PEERS[peer] for peer in chosen.peers if peer not in present},
    }

    def limits(workload: Workload) -> list[Contestant]:
        return [Limit(name, workload) for name in chosen.limits]

    def say(measurement: str, workload: Workload) -> None:
        out.print(f"[dim]{measurement}: {workload.name} ...[/dim]", highlight=False)

    for workload in workloads if "unhidden" in chosen.measure else ():
        say("unhidden", workload)
        contestants = [*limits(workload), *(ours(name, workload) for name in chosen.implementation), Loop(workload)]
        for peer in present:
            contestants += peers.contestants_of(peer, workload)
        results.setdefault("unhidden", {})[workload.name] = unhidden(workload, contestants, settings)

    for workload in workloads if "hidden" in chosen.measure else ():
        say("hidden", workload)
        contestants = [ours(name, workload) for name in plain]
        if "torchrl" in present:
            contestants += peers.contestants_of("torchrl", workload)
        results.setdefault("hidden", {})[workload.name] = hidden(workload, contestants, settings)

    if "capacity" in chosen.measure:
        results["capacity"] = {}
        for capacity in settings.capacities:
            workload = WORKLOADS["tiny" if chosen.quick else "cifar"].with_capacity(capacity)
            say(f"capacity {capacity:,}", workload)
            results["capacity"][str(capacity)] = _capacity(workload, plain, chosen.limits, settings)

    if "rows" in chosen.measure:
        workload = WORKLOADS["tiny" if chosen.quick else "imagenet"]
        say("rows", workload)
        forms = [Augmented(name, workload, complete=False) for name in ("standard+augment", "standard+rows")]
        results["rows"] = {workload.name: unhidden(workload, [*limits(workload), *forms], settings)}

    if "memory" in chosen.measure:
        results["memory"] = {}
        for workload in workloads:
            say("memory", workload)
            # What does not depend on the workload is measured once.
            once = workload is workloads[0]
            results["memory"][workload.name] = {name: _memory(name, workload, settings, once) for name in plain}
    return results


def _capacity(workload: Workload, names: list[str], limits: list[str], settings: Settings) -> dict[str, Any]:
    """Each implementation with limits of its own: all together would ask for too much memory at the largest size."""
    result = {}
    for name in names:
        contestants = [*(Limit(limit, workload) for limit in limits), ours(name, workload)]
        measured = unhidden(workload, contestants, settings)
        result[name] = {**measured[name], "limit_p50_us": {limit: measured[limit]["p50_us"] for limit in limits}}
    return result


def _memory(name: str, workload: Workload, settings: Settings, once: bool) -> dict[str, Any]:
    resident = measure_memory("resident", workload.name, name)
    return {
        "runs": resident["runs"],
        "resident": resident,
        "untouched": measure_memory("untouched", workload.name, name) if once else None,
        "idle": measure_memory("idle", workload.name, name, settings.idle_seconds) if once else None,
    }


def environment() -> dict[str, Any]:
    names = ("torchrl", "tensordict", "avalanche-lib")
    versions = {name: metadata.version(name) for name in names if any(metadata.distributions(name=name))}
    cpu_info, pages = Path("/proc/cpuinfo"), Path("/sys/kernel/mm/transparent_hugepage/enabled")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        **describe(world_size=1, launcher="none"),
        **versions,
        "cpu": ", ".join(sorted(models)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "transparent_huge_pages": pages.read_text(encoding="utf-8").strip() if pages.exists() else None,
    }


def _list(out: Console) -> None:
    for name in PUBLIC:
        workload = WORKLOADS[name]
        out.print(
            f"{name}: b={workload.batch_size} c={workload.candidates} draws={workload.draws}, "
            f"{workload.record_bytes} bytes a sample, {workload.capacity:,} samples, {workload.num_classes} classes",
            highlight=False,
        )
    out.print(f"implementations: {', '.join(FORMS)}", f"limits: {', '.join(LIMITS)}", sep="\n", highlight=False)
    for peer, package in peers.PEERS.items():
        state = "installed" if peers.installed(peer) else f"not installed (pip install {package})"
        out.print(f"{peer}: {state}", highlight=False)


def _peers(text: str) -> list[str]:
    if text in ("auto", "none"):
        return list(peers.PEERS) if text == "auto" else []
    names = text.split(",")
    unknown = [name for name in names if name not in peers.PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown peer '{unknown[0]}'; choose: auto, none, {', '.join(peers.PEERS)}")
    return names


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Benchmark of the rehearsal buffer. All contestants take turns in one process; one torch thread."
    )
    add = parser.add_argument
    add("--workload", nargs="+", choices=PUBLIC, default=list(PUBLIC))
    add("--measure", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    add("--implementation", nargs="+", choices=FORMS, default=list(FORMS), help="of ours, and how it is driven")
    add("--limits", nargs="+", choices=LIMITS, default=["memcpy", "streaming"], help="what is compared with")
    add("--peers", type=_peers, default="auto", help="auto (those installed), none, or torchrl,avalanche")
    add("--steps", type=int, help="steps per repeat (300)")
    add("--repeats", type=int, help="repeats (3)")
    add("--json", type=Path, metavar="FILE", help="write all results there")
    add("--check", action="store_true", help="print what must hold and whether it does; exit 1 when something does not")
    add("--list", action="store_true", help="list workloads and contestants and stop")
    add("--quick", action="store_true", help=argparse.SUPPRESS)  # for tests: sizes that mean nothing
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
