"""What must hold of global sampling, judged from the results of one run of benchmarks/global_sampling.py.

Line 4: draws of remote records; 5: time blocked behind compute; 7: many ranks. See checks.py for what a verdict means.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from reprise.benchmarks.checks import Check, at_least, at_most
from reprise.benchmarks.workloads import WORKLOADS

_KIB = 1024
_IMAGENET, _CIFAR, _ONE = (7, 588 * _KIB), (16, 12 * _KIB), (1, 12 * _KIB)


def judge(results: dict[str, Any]) -> list[Check]:
    """All checks that the results allow, by line."""
    found = [*_failures(results), *_draws(results), *_hidden(results), *_many(results)]
    return sorted(found, key=lambda check: check.line)


def _failures(results: dict[str, Any]) -> Iterator[Check]:
    lines = {"draws": 4, "hidden": 5, "collectives": 5, "ranks": 7}
    for part, line in lines.items():
        for name, job in results.get(part, {}).items():
            # A launcher that is not installed is no failure of ours.
            if "failed" in job and "not installed" not in job["failed"]:
                yield Check(line, f"{part}, {name}", job["failed"].splitlines()[-1][:60], "the job ends well", False)


def _draws(results: dict[str, Any]) -> Iterator[Check]:
    shm, ucx = (_cases(results, transport) for transport in ("shm", "ucx"))
    for key, limit in ((_IMAGENET, 1.25), (_CIFAR, 2.0)):
        text = f"shm: {_name(key)}, of a plain copy"
        if key in shm:
            yield at_most(4, f"{text} (plan and fetch)", shm[key]["ratio"]["draw"], limit)
            whole = shm[key]["ratio"]["step"]
            yield Check(4, f"{text} (submit and wait)", f"{whole:.2f} x", f"<= {limit:g} x", None)
        elif "draws" in results:
            yield Check(4, text, "not measured", f"<= {limit:g} x", None)
    if "draws" not in results:
        return
    text = f"ucx: {_name(_IMAGENET)}, bandwidth of ucx_perftest's active messages"
    if "am_bw" in ucx.get(_IMAGENET, {}).get("perftest_us", {}):
        case = ucx[_IMAGENET]
        yield at_least(4, text, case["records"] * case["perftest_us"]["am_bw"] / case["fetch_p50_us"], 0.7)
    else:
        yield Check(4, text, "not measured", ">= 0.7 x", None)
    text = f"ucx: {_name(_ONE)}, in round trips of ucx_perftest"
    if "am_lat" in ucx.get(_ONE, {}).get("perftest_us", {}):
        case = ucx[_ONE]
        yield at_most(4, text, case["fetch_p50_us"] / (2 * case["perftest_us"]["am_lat"]), 3.0)
        asleep = case["fetch_p50_us"] / (2 * case["perftest_us"]["am_lat_sleep"])
        yield Check(4, f"{text}, both sides asleep between messages", f"{asleep:.2f} x", "<= 3 x", None)
    else:
        yield Check(4, text, "not measured", "<= 3 x", None)


def _hidden(results: dict[str, Any]) -> Iterator[Check]:
    if "hidden" not in results:
        return
    ranks = 2
    contestants = results["hidden"].get(str(ranks), {}).get("imagenet", {}).get("20", {})
    for transport, limits in (("shm", (40, 200)), ("ucx", (None, 1000))):
        mine = contestants.get(transport, {})
        text = f"imagenet, {transport}, 2 ranks, 20 ms:"
        if "p50_us" not in mine:
            reason = mine.get("not_available", "not measured")
            yield Check(5, f"{text} blocked", reason, f"p95 <= {limits[1]} µs", None)
            continue
        if limits[0]:
            yield at_most(5, f"{text} blocked p50", mine["p50_us"], limits[0], "µs", 1)
        yield at_most(5, f"{text} blocked p95", mine["p95_us"], limits[1] or 0, "µs", 1)
        if transport == "shm":
            yield at_most(5, f"{text} engine's CPU time per step", mine["engine_cpu_us"] / 1000, 2, "ms")
    for text, workloads in results["hidden"].items():
        for workload, computes in workloads.items() if "failed" not in workloads else ():
            records = sum(WORKLOADS[workload].draws)
            for compute, transports in computes.items():
                for transport in ("shm", "ucx"):
                    mine = transports.get(transport, {})
                    if "requests_per_step" in mine:
                        label = f"{workload}, {transport}, {text} ranks, {compute} ms: ranks asked per step"
                        yield at_most(5, label, mine["requests_per_step"], min(records, int(text) - 1), "")


def _many(results: dict[str, Any]) -> Iterator[Check]:
    counts = sorted(int(ranks) for ranks, one in results.get("ranks", {}).items() if "failed" not in one)
    for transport in ("shm", "ucx"):
        rows = {n: results["ranks"][str(n)].get(transport, {}) for n in counts}
        rows = {n: row for n, row in rows.items() if "make_s" in row}
        if 32 in rows:
            yield at_most(7, f"{transport}: start-up of the buffer at 32 ranks", rows[32]["make_s"], 10, "s")
        if len(rows) >= 2:
            grown = float(np.polyfit(list(rows), [memory_kib(row) for row in rows.values()], 1)[0])
            yield at_most(7, f"{transport}: memory per peer, {min(rows)} to {max(rows)} ranks", grown, 64, "KiB", 1)


def memory_kib(row: dict[str, Any]) -> float:
    """What a buffer in use has taken besides its samples: private memory of the process, and page tables."""
    return float(row["used_anonymous_kib"] + row["used_page_tables_kib"])


def _cases(results: dict[str, Any], transport: str) -> dict[tuple[int, int], dict[str, Any]]:
    cases = results.get("draws", {}).get(transport, {}).get("cases", [])
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for case in cases:
        # The sweep has one of these sizes again.
        found.setdefault((case["records"], case["bytes"]), case)
    return found


def _name(case: tuple[int, int]) -> str:
    return f"{case[0]} x {case[1] // _KIB} KiB"
