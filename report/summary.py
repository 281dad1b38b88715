"""What a run prints at its end: both accuracy matrices, every metric with its formula's name, speed, where to look.

Also the comparison of finished runs for `python -m reprise.report`. This and __main__.py are the only places that
write to stdout. Tables are never wider than the terminal; plain text where there is none.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

# Launchers put "[1,0]<stdout>: " before each line; with it a plain line still fits the usual 80 columns.
_PLAIN_COLUMNS = 66
_ROWS_SHOWN = 24

_FORMULAS = (
    ("average_accuracy", "ACC", "mean of the last row"),
    ("average_incremental_accuracy", "AIA", "mean over tasks of the average so far"),
    ("forgetting", "Forgetting", "best before - end, Chaudhry 2018"),
    ("backward_transfer", "BWT", "end - when learned, Lopez-Paz 2017"),
    ("forward_transfer", "FWT", "just before - untrained, Lopez-Paz"),
    ("average_accuracy_task_il", "ACC, task-IL", "mean of the last row, task known"),
)
_ERRORS = (
    ("average_error", "Error", "mean of the last row, less is better"),
    ("error_increase", "Error increase", "end - least before, less is better"),
)
_IDENTITY = (
    ("strategy", "Strategy"),
    ("buffer_implementation", "Buffer"),
    ("launcher", "Launcher"),
    ("world_size", "Ranks"),
    ("seed", "Seed"),
)


def print_summary(
    summary: Mapping[str, Any],
    matrix: ArrayLike | None,
    matrix_task_il: ArrayLike | None,
    folder: Path,
    pictures: Sequence[Path] = (),
    console: Console | None = None,
    *,
    errors: bool = False,
    parts: Mapping[str, float] | None = None,
) -> None:
    """Print a finished run. `summary` as in summary.json; the matrices are None where nothing was evaluated.

    errors: the matrix holds mean absolute errors of reconstructions instead of accuracies. parts: of a mean step, as
    `timeline.overheads` gives them.
    """
    console = console or stdout()
    first = (
        "Mean absolute error on each task, less is better"
        if errors
        else "Accuracy on each task in %, class-incremental"
    )
    for name, rows in ((first, matrix), ("Accuracy on each task in %, task-incremental", matrix_task_il)):
        if rows is not None:
            _print_matrix(console, np.asarray(rows, dtype=np.float64), name, errors=errors)
    table = Table(box=box.SIMPLE, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    for key, name, formula in _FORMULAS:
        if summary[key] is not None:
            table.add_row(name, _percent(summary[key]), formula)
    for key, name, formula in _ERRORS:
        if summary[key] is not None:
            table.add_row(name, f"{summary[key]:.4g}", formula)
    table.add_section()
    step, wait = summary["step_ms"], summary["wait_ms"]
    table.add_row("Training time", _duration(summary["train_seconds"]), "evaluation not counted")
    table.add_row("Speed", f"{summary['images_per_second']:,.0f}", "images/s, new samples of all ranks")
    table.add_row("Step", f"{step['p50']:.2f} ms", f"median; 95 % under {step['p95']:.2f} ms")
    if summary["buffer_implementation"] != "none":
        size = decimal(summary["buffer_bytes_per_rank"])
        table.add_row("Buffer wait", _percent(summary["wait_share"]), f"of a step; 95 % under {wait['p95']:.2f} ms")
        table.add_row("Stored", f"{summary['samples_stored']:,}", f"samples, all ranks; {size} per rank")
    console.print("[bold]Metrics[/bold]")
    console.print(table)
    if parts:
        _print_parts(console, parts)
    # Paths are left whole, for the terminal to wrap: a broken one cannot be copied.
    for line in (f"Results are in {folder}", *(f"  {picture}" for picture in pictures)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_comparison(summaries: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """Print one column per run, {name: summary}, in as many tables as the width asks for."""
    console = console or stdout()
    names = list(summaries)
    runs_per_table = max((console.width - 15) // 16, 1)
    for start in range(0, len(names), runs_per_table):
        shown = names[start : start + runs_per_table]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True)
        for name in shown:
            table.add_column(escape(name), justify="right", overflow="fold", max_width=30)
        for formulas, written in ((_FORMULAS, _percent), (_ERRORS, "{:.4g}".format)):
            for key, title, _ in formulas:
                cells = [summaries[name][key] for name in shown]
                if any(cell is not None for cell in cells):
                    table.add_row(title, *("-" if cell is None else written(cell) for cell in cells))
        table.add_row("Images/s", *(f"{summaries[name]['images_per_second']:,.0f}" for name in shown))
        table.add_row("Buffer wait", *(_percent(summaries[name]["wait_share"]) for name in shown))
        table.add_row("Training time", *(_duration(summaries[name]["train_seconds"]) for name in shown))
        for key, title in _IDENTITY:
            table.add_row(title, *(escape(str(summaries[name][key])) for name in shown))
        console.print(table)


def stdout() -> Console:
    """Where tables go: wide enough for them where there is no terminal to say how wide it is."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_PLAIN_COLUMNS)
    return console


def _print_parts(console: Console, parts: Mapping[str, float]) -> None:
    beside = "; populate, augment: the buffer's" if "populate" in parts else ""
    console.print(f"[bold]Mean step of rank 0 in ms{beside}[/bold]")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in parts:
        table.add_column(name, justify="right")
    table.add_row(*(f"{mean:.3g}" for mean in parts.values()))
    console.print(table)


def _print_matrix(console: Console, rows: np.ndarray, name: str, *, errors: bool) -> None:
    """R in percent, whole numbers where many tasks need the room, or errors as they are.

    Middle tasks give way where it still does not fit.
    """
    num_rows, num_tasks = rows.shape
    decimals = 1 if num_tasks <= 8 else 0
    cell_width = 9 if errors else 4 + 2 * decimals  # "1.23e-05", or "100" or "100.0", and a space
    columns = _ends(num_tasks, max((console.width - 13) // cell_width, 2))
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("after task", justify="right", no_wrap=True)
    for j in columns:
        table.add_column("…" if j is None else str(j), justify="right", no_wrap=True)
    for i in _ends(num_rows, _ROWS_SHOWN):
        if i is None:
            table.add_row(*["…"] * (len(columns) + 1))
            continue
        cells = []
        for j in columns:
            text = "…" if j is None else f"{rows[i, j]:.3g}" if errors else f"{100 * rows[i, j]:.{decimals}f}"
            if errors and j:  # numbers of any width touch without it
                text = f" {text}"
            # Tasks not trained yet stay readable but in the background.
            cells.append(f"[dim]{text}[/dim]" if j is not None and j > i else text)
        table.add_row(str(i), *cells)
    console.print(f"[bold]{name}[/bold]", highlight=False)
    console.print(table)


def _ends(count: int, room: int) -> list[int | None]:
    """0..count-1, or where `room` is too small its first and last numbers with None between them."""
    if count <= room:
        return list(range(count))
    tail = room // 2
    head = room - 1 - tail
    return [*range(head), None, *range(count - tail, count)]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
