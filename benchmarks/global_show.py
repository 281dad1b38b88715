"""The results of benchmarks/global_sampling.py as tables on the terminal."""

from typing import Any

from rich.console import Console

from reprise.benchmarks.global_checks import memory_kib
from reprise.benchmarks.scale_model import show_model
from reprise.benchmarks.show import table, us


def show_results(results: dict[str, Any], out: Console) -> None:
    """Everything that was measured, and what was not, with its reason."""
    for transport, job in results.get("draws", {}).items():
        if _there(f"draws over {transport}", job, out):
            _show_draws(transport, job, out)
    for ranks, job in results.get("hidden", {}).items():
        if _there(f"{ranks} ranks", job, out):
            _show_hidden(f"{ranks} ranks", job, out)
    for launcher, job in results.get("collectives", {}).items():
        if _there(launcher, job, out):
            _show_hidden(f"2 ranks under {launcher}", job, out)
    if "ranks" in results:
        _show_ranks(results["ranks"], out)
    if "model" in results:
        show_model(results["model"], out)


def _there(what: str, job: dict[str, Any], out: Console) -> bool:
    for key, words in (("failed", "failed"), ("not_available", "not available")):
        if key in job:
            out.print(f"{what}: {words}: {job[key]}", highlight=False, markup=False)
            return False
    return True


def _show_draws(transport: str, job: dict[str, Any], out: Console) -> None:
    cases = job["cases"]
    parts = (("fetch", "fetch"), ("draw", "plan +\nfetch"), ("step", "submit +\nwait"))
    header = ["records", "KiB\neach", *(f"{label} µs" for _, label in parts), "p95", "GB/s"]
    compares = any("ratio" in case for case in cases)
    header += ["plain\ncopy µs", "fetch\n/ copy", "plan + f.\n/ copy", "sub. + w.\n/ copy"] if compares else []
    rows = []
    for case in cases:
        row = [*_size(case), *(us(case[f"{part}_p50_us"]) for part, _ in parts), us(case["step_p95_us"])]
        row.append(_gigabytes(case["records"] * case["bytes"], case["fetch_p50_us"]))
        if compares:
            row += [us(case["copy_p50_us"]), *(f"{case['ratio'][part]:.2f}" for part, _ in parts)]
        rows.append(row)
    table(f"{transport}: draws of remote records, p50", header, rows, out, left=0)
    header = ["records", "KiB\neach", "draw\nGB/s", "stream\nGB/s", "get\nGB/s", "draw /\nstream", "fetch\nµs"]
    header += ["round\ntrip µs", "both\nasleep µs", "fetch /\nround trip", "fetch /\nboth asleep"]
    rows = []
    for case in cases:
        found = case["perftest_us"]
        if "am_bw" not in found:
            continue
        size, fetch = case["records"] * case["bytes"], case["fetch_p50_us"]
        trips = [2 * found["am_lat"], 2 * found["am_lat_sleep"]]
        row = [*_size(case), _gigabytes(size, fetch), *(_gigabytes(case["bytes"], found[t]) for t in ("am_bw", "get"))]
        row += [f"{case['records'] * found['am_bw'] / fetch:.2f}", us(fetch), *map(us, trips)]
        rows.append([*row, *(f"{fetch / trip:.2f}" for trip in trips)])
    if rows:
        title = f"{transport}: the same beside ucx_perftest's active messages and gets of a record's size"
        table(title, header, rows, out, left=0)
    reasons = {job.get("no_perftest"), *(case["perftest_us"].get("failed") for case in cases)}
    for reason in sorted(filter(None, reasons)):
        out.print(f"ucx_perftest not available: {reason}", highlight=False, markup=False)


def _show_hidden(title: str, job: dict[str, Any], out: Console) -> None:
    header = ["compute\nms", "", "blocked\np50 µs", "p95", "max", "submit", "wait", "engine CPU\nµs/step"]
    header += ["process CPU\nms/step", "loop\n/ bare", "ranks\nasked", "KiB read\n/step"]
    for workload, computes in job.items():
        rows, reasons = [], {}
        for compute, contestants in computes.items():
            for name, mine in contestants.items():
                if "not_available" in mine:
                    reasons[name] = mine["not_available"]
                    continue
                times = ("p50_us", "p95_us", "max_us", "submit_p50_us", "wait_p50_us", "engine_cpu_us")
                rows.append(
                    (
                        compute,
                        mine["runs"] or name,
                        *(us(mine[time]) for time in times),
                        f"{mine['process_cpu_us'] / 1000:.2f}",
                        f"{mine['loop_ratio']:.3f}" if float(compute) else "-",
                        f"{mine['requests_per_step']:.2f}",
                        f"{mine['remote_bytes_per_step'] / 1024:,.0f}",
                    )
                )
        table(f"{workload}, {title}: time in submit and wait, all steps of all ranks", header, rows, out, left=2)
        for name, reason in reasons.items():
            out.print(f"{name}: not available: {reason}", highlight=False, markup=False)


def _show_ranks(counts: dict[str, dict[str, Any]], out: Console) -> None:
    header = ["ranks", "", "make\ns", "first\nsteps s", "ms\n/step", "blocked\np50 µs", "p95", "engine CPU\nµs/step"]
    header += ["ranks\nasked", "KiB read\n/step", "mess-\nages", "KiB\nmade", "used", "page\ntables", "KiB per\npeer"]
    rows, reasons = [], {}
    first: dict[str, tuple[int, float]] = {}
    for ranks, job in counts.items():
        if not _there(f"{ranks} ranks", job, out):
            continue
        for name, mine in job.items():
            if "not_available" in mine:
                reasons[name] = mine["not_available"]
                continue
            fewest, memory = first.setdefault(name, (int(ranks), memory_kib(mine)))
            peers = int(ranks) - fewest
            rows.append(
                (
                    ranks,
                    mine["runs"],
                    f"{mine['make_s']:.2f}",
                    f"{mine['first_steps_s']:.2f}",
                    f"{mine['step_ms']:.2f}",
                    *(us(mine[time]) for time in ("p50_us", "p95_us", "engine_cpu_us")),
                    f"{mine['requests_per_step']:.2f}",
                    f"{mine['remote_bytes_per_step'] / 1024:,.1f}",
                    f"{mine['messages_per_step']:.2f}" if name == "ucx" else "0" if name == "shm" else "-",
                    f"{mine['made_anonymous_kib']:,.0f}",
                    f"{mine['used_anonymous_kib']:,.0f}",
                    f"{mine['used_page_tables_kib']:,.0f}",
                    f"{(memory_kib(mine) - memory) / peers:.1f}" if peers else "-",
                )
            )
    if rows:
        title = "ranks on this machine, no compute, an allreduce per step; start-up of the worst rank"
        table(title, header, rows, out, left=2)
    for name, reason in reasons.items():
        out.print(f"{name}: not available: {reason}", highlight=False, markup=False)


def _gigabytes(num_bytes: float, microseconds: float) -> str:
    return f"{num_bytes / microseconds / 1000:.2f}"


def _size(case: dict[str, Any]) -> tuple[str, str]:
    return str(case["records"]), f"{case['bytes'] / 1024:g}"
