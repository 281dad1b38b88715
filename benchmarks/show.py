"""The results of benchmarks/buffer.py as tables on the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from reprise.benchmarks.checks import Check, per_byte_speedup

_MIB = 2**20
_VERDICTS = {True: "[green]pass[/green]", False: "[red]FAIL[/red]", None: "[dim]-[/dim]"}


def console() -> Console:
    """Wide enough for a table where the output is no terminal."""
    wanted = Console()
    return wanted if wanted.is_terminal else Console(width=140)


def show_results(results: dict[str, Any], out: Console) -> None:
    limits = results["settings"]["limits"]
    for workload, contestants in results.get("unhidden", {}).items():
        _show_unhidden(f"{workload}: submit + wait back to back", contestants, limits, out)
    for workload, contestants in results.get("hidden", {}).items():
        rows = [
            (_label(name, mine), us(mine["p50_us"]), us(mine["p95_us"]), f"{mine['loop_ratio']:.4f}")
            for name, mine in contestants.items()
        ]
        compute = results["settings"]["compute_ms"]
        title = f"{workload}: {compute:g} ms of matmul per step, on one core"
        table(title, ("", "blocked p50 µs", "p95 µs", "loop / bare loop"), rows, out)
    if "capacity" in results:
        _show_capacity(results["capacity"], limits, out)
    if "rows" in results:
        for workload, contestants in results["rows"].items():
            _show_unhidden(f"{workload}: in augment(), the batch freshly collated", contestants, limits, out)
    if "memory" in results:
        _show_memory(results["memory"], out)
    for peer, package in results["not_installed"].items():
        out.print(f"{peer}: not installed (pip install {package})")


def show_checks(checks: Sequence[Check], out: Console) -> None:
    if not checks:
        out.print("Nothing was measured that must hold.")
        return
    rows = [(str(check.line), check.text, check.measured, check.limit, _VERDICTS[check.passed]) for check in checks]
    table("What must hold", ("line", "", "measured", "limit", ""), rows, out, left=2)


def _show_unhidden(title: str, contestants: dict[str, Any], limits: Sequence[str], out: Console) -> None:
    header = ["", "p50 µs", "p95 µs", "insert", "draw", "MB/step", *(f"/ {limit}" for limit in limits), "standard is"]
    rows = []
    for name, mine in contestants.items():
        ratios = (mine["ratio_to"].get(limit) for limit in limits)
        standard = None if name in (*limits, "standard") or "+" in name else contestants.get("standard")
        rows.append(
            (
                _label(name, mine),
                us(mine["p50_us"]),
                us(mine["p95_us"]),
                *_parts(mine),
                f"{mine['bytes_per_step'] / 1e6:.2f}",
                *(f"{ratio['median']:.2f}" if ratio else "-" for ratio in ratios),
                f"{per_byte_speedup(standard, mine):.2f} x faster" if standard else "-",
            )
        )
    table(title, header, rows, out)


def _parts(mine: dict[str, Any]) -> tuple[str, str]:
    """Insert and draw: of ours what its timings() say, of others the two calls."""
    if mine["separates"]:
        return us(mine["submit_p50_us"]), us(mine["wait_p50_us"])
    parts = mine["parts_mean_us"]
    draw = [parts[name] for name in ("plan", "fetch", "gather") if name in parts]
    return us(parts["insert"]) if "insert" in parts else "-", us(sum(draw)) if draw else "-"


def _show_capacity(sizes: dict[str, Any], limits: Sequence[str], out: Console) -> None:
    header = ["samples", "", "p50 µs", *(f"{limit} µs" for limit in limits), *(f"/ {limit}" for limit in limits)]
    rows = []
    for size, contestants in sizes.items():
        for name, mine in contestants.items():
            times = (us(mine["limit_p50_us"][limit]) for limit in limits)
            ratios = (f"{mine['ratio_to'][limit]['median']:.2f}" for limit in limits)
            rows.append((f"{int(size):,}", _label(name, mine), us(mine["p50_us"]), *times, *ratios))
    table("capacity", header, rows, out, left=2)


def _show_memory(workloads: dict[str, Any], out: Console) -> None:
    rows = []
    for workload, contestants in workloads.items():
        for name, mine in contestants.items():
            full, untouched, idle = mine["resident"], mine["untouched"], mine["idle"]
            rows.append(
                (
                    workload,
                    _label(name, mine),
                    f"{full['payload_bytes'] / _MIB:.0f}",
                    f"{full['overhead_bytes'] / _MIB:.1f}",
                    f"{untouched['grown_bytes'] / _MIB:.1f}" if untouched else "-",
                    f"{100 * idle['core_share']:.3f} %" if idle else "-",
                )
            )
    header = ("workload", "", "payload MiB", "overhead MiB", "untouched capacity MiB", "idle, of a core")
    table("memory", header, rows, out, left=2)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], out: Console, left: int = 1) -> None:
    """Print a table; its first `left` columns are words."""
    built = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, name in enumerate(header):
        built.add_column(name, justify="left" if index < left else "right", no_wrap=index >= left)
    for row in rows:
        built.add_row(*row)
    out.print(built)


def _label(name: str, mine: dict[str, Any]) -> str:
    runs = mine["runs"]
    return name if runs in (name, name.partition("+")[0]) else f"{name} ({runs})"


def us(value: float) -> str:
    """Microseconds as they are printed."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
