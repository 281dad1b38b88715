"""The sections of the report page on what was learnt and forgotten: matrices, curves over tasks, forgetting per task.

Accuracies and the errors of reconstructions never share a chart. Called by page.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reprise.report import svg
from reprise.report.matrix import average_of_seen, forgetting_of_each
from reprise.report.page_parts import Cell, Figure, Section, Table, area_key, by_task, colour, line_key, told
from reprise.report.run_contents import RunContents

_LEVELS = 20  # of colour in a heat map
_CIVIDIS = ((0, 32, 77), (65, 77, 107), (124, 123, 120), (188, 175, 111), (255, 234, 70))

Matrix = NDArray[np.float64]


def matrices(runs: Sequence[RunContents]) -> Section:
    """The matrices of all runs as heat maps; those of errors to one scale."""
    errors = [run.matrix for run in runs if run.matrix is not None and run.errors]
    span = (min(float(m.min()) for m in errors), max(float(m.max()) for m in errors)) if errors else (0.0, 0.0)
    heats = []
    for run in runs:
        known = "task known" if run.matrix_task_il is not None else ""
        what = "mean absolute error" if run.errors else "task not known" if known else "accuracy"
        tables = [
            _heat(caption, matrix, span if run.errors else None)
            for caption, matrix in ((what, run.matrix), (known, run.matrix_task_il))
            if matrix is not None
        ]
        if tables:
            heats.append((run.name, tables))
    intro = (
        "Accuracy in %, or mean absolute error of reconstructions: a row per task trained, a column per task tested. "
        "Right of the stepped line are tasks that were not trained yet. Light is good."
    )
    return Section("matrices", "Task by task", intro if heats else "", _without_matrix(runs), heats=heats)


def heat_colours() -> list[tuple[str, str]]:
    """Background and ink of every level of a heat map: cividis, between five of its colours."""
    colours = []
    for level in range(_LEVELS + 1):
        place = level * (len(_CIVIDIS) - 1) / _LEVELS
        k = min(int(place), len(_CIVIDIS) - 2)
        rgb = [round(a + (place - k) * (b - a)) for a, b in zip(_CIVIDIS[k], _CIVIDIS[k + 1], strict=True)]
        light = sum(w * (c / 255) ** 2.2 for w, c in zip((0.2126, 0.7152, 0.0722), rgb, strict=True))
        # Above that, black has more contrast than white (WCAG).
        colours.append((f"#{bytes(rgb).hex()}", "#000" if light > 0.179 else "#fff"))
    return colours


def _heat(caption: str, matrix: Matrix, span: tuple[float, float] | None) -> Table:
    """span: least and greatest error, where the matrix holds errors."""
    rows = []
    for i, row in enumerate(matrix.tolist()):
        cells = []
        for j, value in enumerate(row):
            good = value if span is None else (span[1] - value) / (span[1] - span[0] or 1)
            text = f"{100 * value:.1f}" if span is None else f"{value:.3g}"
            cells.append(Cell(text, colour=f"h{round(_LEVELS * min(max(good, 0), 1))}{' own' if i == j else ''}"))
        rows.append((str(i), "", cells))
    return Table(caption, ["after task", *map(str, range(matrix.shape[1]))], rows)


def over_tasks(runs: Sequence[RunContents]) -> Section:
    """Averages and forgetting of all runs side by side, then each run's own tasks."""
    figures: list[Figure] = []
    for errors in (False, True):
        some = {k: run.matrix for k, run in enumerate(runs) if run.matrix is not None and run.errors == errors}
        if some:
            names = {k: runs[k].name for k in some}
            figures += [*_side_by_side(some, names, errors), *_each_task(some, names, errors)]
    intro = (
        "Forgetting is what was known of a task at best, before the last one was trained, less what is known of it "
        "after that (Chaudhry 2018). The charts of single runs follow each task from its own training on."
    )
    return Section("tasks", "Over the tasks", intro if figures else "", _without_matrix(runs), figures=figures)


def _side_by_side(some: Mapping[int, Matrix], names: Mapping[int, str], errors: bool) -> list[Figure]:
    x, y, what, scale = _scales(some, errors)
    written = "{:.4g}" if errors else "{:.1f}"
    averages = {k: scale * average_of_seen(matrix) for k, matrix in some.items()}
    average = Figure(
        f"{'Error' if errors else 'Accuracy'}, average over tasks seen",
        svg.lines(
            [svg.Line(_points(values), colour(k), k) for k, values in averages.items()],
            *(x, y),
            f"{what}, average over the tasks seen, after each task; the numbers are below",
        ),
        [(line_key(k), name) for k, name in names.items()],
        by_task("after task", {names[k]: values for k, values in averages.items()}, written),
    )
    lost = {
        k: scale * forgetting_of_each(-matrix if errors else matrix) for k, matrix in some.items() if len(matrix) > 1
    }
    if not lost:
        return [average]
    caption, unit = ("Error increase", "mean absolute error") if errors else ("Forgetting", "percentage points")
    forgetting = Figure(
        f"{caption} of each task at the end",
        svg.columns(
            [svg.Layer(values.tolist(), colour(k)) for k, values in lost.items()],
            svg.Axis.tasks(max(len(values) for values in lost.values())),
            svg.Axis.numbers(unit, (value for values in lost.values() for value in values.tolist())),
            f"{caption} of each task in {unit}; the numbers are below",
            stacked=False,
        ),
        [(area_key(k), names[k]) for k in lost],
        by_task("task", {names[k]: values for k, values in lost.items()}, written),
    )
    return [average, forgetting]


def _each_task(some: Mapping[int, Matrix], names: Mapping[int, str], errors: bool) -> list[Figure]:
    x, y, what, scale = _scales(some, errors)
    figures = []
    for k, matrix in some.items():
        num_rows, num_tasks = matrix.shape
        step = -(-num_tasks // svg.LABELS_UP_TO)
        lines = [
            svg.Line(_points(scale * matrix[j:, j], j), svg.ramp(j, num_tasks), 0, str(j) if j % step == 0 else "")
            for j in range(num_rows)
        ]
        lines.append(svg.Line(_points(scale * average_of_seen(matrix)), "average"))
        ends = [(svg.key(svg.ramp(j, num_tasks), 0), f"task {j}") for j in sorted({0, num_tasks - 1})]
        chart = svg.lines(lines, x, y, f"{what} of every task; the numbers are in the matrix above")
        figures.append(Figure(names[k], chart, [(svg.key("average"), "average so far"), *ends]))
    return figures


def _scales(some: Mapping[int, Matrix], errors: bool) -> tuple[svg.Axis, svg.Axis, str, float]:
    """Of charts that can hold all of these matrices: both axes, what is measured, and what to multiply it by."""
    x = replace(svg.Axis.tasks(max(matrix.shape[1] for matrix in some.values())), title="after task")
    if not errors:
        return x, svg.Axis.percent("accuracy, %"), "Accuracy in %", 100.0
    highest = max(float(matrix.max()) for matrix in some.values())
    return x, svg.Axis.numbers("mean absolute error", [highest]), "Mean absolute error", 1.0


def _points(values: Matrix, first: int = 0) -> list[tuple[float, float]]:
    return [(first + k + 0.5, value) for k, value in enumerate(values.tolist())]


def _without_matrix(runs: Sequence[RunContents]) -> list[str]:
    return told(
        (run, "no task evaluated yet" if run.summary is None else "no matrix in its folder")
        for run in runs
        if run.matrix is None
    )
