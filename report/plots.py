"""The pictures of a run: the accuracy matrix, accuracy over tasks, where a step's time went. PNG files, no window.

Built from matplotlib's Figure objects: no pyplot, so no global state and no display. Colours come from palettes that
colour-blind readers can tell apart (cividis; Okabe and Ito).
Called by train/results.py on rank 0, also for a run in progress.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reprise.report.matrix import average_of_seen
from reprise.report.time_curve import TimeCurve
from reprise.report.timeline import STEP, Timeline, beside, within
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_GREY = "#BBBBBB"
_NUMBERS_UP_TO = 20  # tasks; above that a number in a cell is too small to read


def accuracy_matrix_png(
    matrix: ArrayLike, path: str | Path, title: str, matrix_task_il: ArrayLike | None = None, *, errors: bool = False
) -> None:
    """Draw R (n <= T rows, fractions) as a heat map in percent, class-incremental and, where given, task-incremental.

    errors: R holds mean absolute errors of reconstructions, drawn as they are; light is good there, too.
    The stepped line separates tasks trained so far (below) from those still to come.
    """
    first = "reconstruction, less is better" if errors else "class-incremental"
    panels = {first: np.asarray(matrix, dtype=np.float64)}
    if matrix_task_il is not None:
        panels["task-incremental"] = np.asarray(matrix_task_il, dtype=np.float64)
    num_rows, num_tasks = panels[first].shape
    cell = float(np.clip(4.0 / num_tasks, 0.36 if num_tasks <= _NUMBERS_UP_TO else 6.5 / num_tasks, 0.8))
    width, height = max(num_tasks * cell, 2.2), max(num_rows * cell, 1.4)
    figure = _figure(len(panels) * (width + 0.7) + 1.1, height + 1.5, title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        top = float(rows.max()) or 1.0 if errors else 1.0
        palette = "cividis_r" if errors else "cividis"
        image = axis.imshow(rows, cmap=palette, vmin=0, vmax=top, aspect="equal")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("mean absolute error on task" if errors else "accuracy on task")
        _task_ticks(axis.xaxis, num_tasks)
        _task_ticks(axis.yaxis, num_rows)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        _draw_seen_border(axis, num_rows, num_tasks)
        if num_tasks <= _NUMBERS_UP_TO:
            _draw_numbers(axis, rows, cell, errors=errors)
    axes[0].set_ylabel("after training task")
    bar = figure.colorbar(image, ax=axes, format=None if errors else _percent_formatter(), pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    _save(figure, path)


def curves_png(
    matrix: ArrayLike, path: str | Path, title: str, matrix_task_il: ArrayLike | None = None, *, errors: bool = False
) -> None:
    """Draw each task's accuracy from its own training on, and the average over the tasks seen so far.

    `matrix` is R with n <= T rows; `matrix_task_il`, where given, adds its average as a dashed line. errors: R
    holds mean absolute errors of reconstructions.
    """
    rows = np.asarray(matrix, dtype=np.float64)
    num_rows, num_tasks = rows.shape
    figure = _figure(8.6 if num_tasks <= 12 else 10.2, 4.6, title)
    axis = figure.subplots()
    colours = _task_colours(num_tasks)
    marker_size = 4 if num_tasks <= _NUMBERS_UP_TO else 0
    for j in range(min(num_rows, num_tasks)):
        after = np.arange(j, num_rows)
        axis.plot(
            after, rows[j:, j], color=colours[j], marker="o", markersize=marker_size, linewidth=1.3, label=f"task {j}"
        )
    average_style: dict[str, Any] = {"color": "black", "linewidth": 2.6, "zorder": 5}
    axis.plot(np.arange(num_rows), average_of_seen(rows), **average_style, label="average of seen tasks")
    if matrix_task_il is not None:
        average = average_of_seen(np.asarray(matrix_task_il, dtype=np.float64))
        axis.plot(np.arange(num_rows), average, **average_style, linestyle=(0, (2, 1.5)), label="the same, task known")
    axis.set_xlabel("after training task")
    axis.set_ylabel("mean absolute error, less is better" if errors else "accuracy")
    axis.set_ylim(*((0, None) if errors else (-0.02, 1.03)))
    axis.set_xlim(-0.3, num_tasks - 0.7)
    _task_ticks(axis.xaxis, num_tasks)
    if not errors:
        axis.yaxis.set_major_formatter(_percent_formatter())
    _plain_frame(axis)
    handles, labels = axis.get_legend_handles_labels()
    if num_tasks > _NUMBERS_UP_TO:  # the colours' order says enough; forty names do not fit
        few = [0, (len(handles) - 1) // 2, *range(min(num_rows, num_tasks) - 1, len(handles))]
        handles, labels = [handles[k] for k in few], [labels[k] for k in few]
    columns = 1 if len(handles) <= 14 else 2
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, ncols=columns)
    _save(figure, path)


def accuracy_against_time_png(curves: Mapping[str, TimeCurve], path: str | Path) -> None:
    """Draw runs as lines from task to task: the average over the tasks seen, against the training time until then."""
    figure = _figure(8.6, 4.6, "What was learnt after how much training time")
    axis = figure.subplots()
    errors = next(iter(curves.values())).errors
    for name, curve in curves.items():
        if curve.errors != errors:
            raise UserError(f"'{name}' and the runs before it do not both reconstruct; draw them in a picture each")
    for k, (name, curve) in enumerate(curves.items()):
        colour, marker = _OKABE_ITO[k % len(_OKABE_ITO)], "os^Dv"[k % 5]
        axis.plot(curve.seconds, curve.averages, color=colour, marker=marker, linewidth=1.8, label=name)
    axis.set_xlabel("training time, s (one mark per task)")
    axis.set_ylabel("mean absolute error, tasks seen" if errors else "average accuracy, tasks seen")
    axis.set_xlim(0, None)
    axis.set_ylim(*((0, None) if errors else (-0.02, 1.03)))
    if not errors:
        axis.yaxis.set_major_formatter(_percent_formatter())
    _plain_frame(axis, grid="both")
    axis.legend(frameon=False)
    _save(figure, path)


def timeline_png(spans: Timeline, path: str | Path, title: str) -> None:
    """Draw where a step's time went: the mean step as one stacked bar, below it p50 and p95.

    The phases follow each other within a step and are given in that order; where the whole step is there, what the
    phases leave of it is drawn as "other". The buffer's own work is beside the step: it is below only. Times are
    milliseconds on this rank's host.
    """
    phases, engine, whole = within(spans), beside(spans), STEP
    steps = spans[whole]["count"] if whole in spans else max((entry["count"] for entry in phases.values()), default=0)
    if steps == 0:
        phases = {}
    means = {name: entry["total_ms"] / steps for name, entry in phases.items()}
    colours = {name: _OKABE_ITO[k % len(_OKABE_ITO)] for k, name in enumerate(phases)}
    if whole in spans and (other := spans[whole]["mean_ms"] - sum(means.values())) > 0:
        means["other"], colours["other"] = other, _GREY
    total = sum(means.values())

    lines = len(phases) + 1 + len(engine)
    figure = _figure(8.6, 2.3 + 0.34 * lines, title)
    top, bottom = figure.subplots(2, 1, height_ratios=[1, 0.5 + 0.42 * lines])
    left = 0.0
    for k, (name, mean) in enumerate(means.items()):
        hatch = "///" if len(_OKABE_ITO) <= k and name != "other" else None
        top.barh(0, mean, left=left, color=colours[name], edgecolor="white", linewidth=1, hatch=hatch)
        if mean >= 0.07 * total:
            share = f"{100 * mean / total:.0f} %"
            box = {"facecolor": colours[name], "edgecolor": "none", "pad": 1.5}  # keeps a hatch out of the number
            ink = _ink(colours[name])
            top.text(left + mean / 2, 0, share, ha="center", va="center", color=ink, fontsize=9, bbox=box)
        left += mean
    top.set_yticks([0], labels=["mean step"])
    top.set_xlim(0, total or 1)
    rest = "; grey: outside the phases below" if "other" in means else ""
    top.set_xlabel(f"ms (sum {total:.3g} ms, {steps:,.0f} steps{rest})")

    shown = dict(phases)
    if whole in spans and phases:
        shown[f"whole {whole}"] = spans[whole]
    shown |= engine
    for k, (name, entry) in enumerate(shown.items()):
        colour = colours.get(name, "#444444")
        hatch = "///" if len(_OKABE_ITO) <= k < len(phases) else None
        bottom.barh(k, entry["p50_ms"], color=colour, height=0.62, hatch=hatch, edgecolor="white", linewidth=0)
        bottom.plot([entry["p50_ms"], entry["p95_ms"]], [k, k], color="#444444", linewidth=1.4)
        bottom.plot(entry["p95_ms"], k, marker="|", color="#444444", markersize=9, markeredgewidth=1.6)
        label = f"{entry['p50_ms']:.3g} / {entry['p95_ms']:.3g}"
        bottom.annotate(
            label, (entry["p95_ms"], k), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    bottom.set_yticks(range(len(shown)), labels=list(shown))
    bottom.invert_yaxis()
    bottom.set_xlim(0, 1.2 * max((entry["p95_ms"] for entry in shown.values()), default=1.0))
    bottom.set_xlabel("ms: bar = median (p50), mark = p95, numbers = p50 / p95")
    for axis in (top, bottom):
        _plain_frame(axis, grid="x")
        axis.tick_params(axis="y", length=0)
    _save(figure, path)


def scatter_png(points: Mapping[str, Sequence[Any]], values: Sequence[float], path: str | Path, title: str) -> None:
    """Draw `values` against each parameter of `points` (same order), a panel each; without one, over their order.

    Numbers that span more than a factor of 20 get a logarithmic axis, texts a place each.
    """
    shown: Mapping[str, Sequence[Any]] = points or {"trial": range(len(values))}
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    figure = _figure(3.2 * columns + 0.8, 2.6 * rows + 0.6, title)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axis, (name, given) in zip(axes, shown.items(), strict=False):
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
        axis.scatter(list(given) if numbers else [str(value) for value in given], values, color=_OKABE_ITO[0], s=28)
        if numbers and min(given) > 0 and max(given) / min(given) > 20:
            axis.set_xscale("log")
        axis.set_xlabel(name)
        axis.tick_params(axis="x", labelrotation=0 if numbers else 30)
        _plain_frame(axis)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    _save(figure, path)


def _figure(width: float, height: float, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    lines = textwrap.wrap(title, width=max(int(width * 8.5), 20), max_lines=3, placeholder=" …")
    figure.set_figheight(height + 0.2 * len(lines[1:]))
    figure.suptitle("\n".join(lines), fontsize=12, fontweight="bold", parse_math=False)  # names may hold "$"
    return figure


def _save(figure: "Figure", path: str | Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=150)


def _draw_numbers(axis: "Axes", rows: NDArray[np.float64], cell: float, *, errors: bool) -> None:
    from matplotlib import colormaps

    decimals = 1 if cell >= 0.5 else 0
    palette, top = (colormaps["cividis_r"], float(rows.max()) or 1.0) if errors else (colormaps["cividis"], 1.0)
    for (i, j), value in np.ndenumerate(rows):
        text = f"{value:.2g}" if errors else f"{100 * value:.{decimals}f}"
        axis.text(j, i, text, ha="center", va="center", fontsize=min(10, 22 * cell), color=_ink(palette(value / top)))


def _draw_seen_border(axis: "Axes", num_rows: int, num_tasks: int) -> None:
    xs, ys = [], []
    for i in range(num_rows):
        edge = min(i + 1, num_tasks) - 0.5
        xs += [edge, edge]
        ys += [i - 0.5, i + 0.5]
    axis.plot(xs, ys, color="white", linewidth=2.2)


def _task_ticks(axis: Any, count: int) -> None:
    """Ticks at whole task numbers, at most about 20 of them, from 0 as in the CSV files."""
    axis.set_ticks(range(0, count, math.ceil(count / 20)))


def _task_colours(num_tasks: int) -> list[Any]:
    from matplotlib import colormaps

    # A palette of separate colours while it lasts (its yellow is too faint for a line), then one in the tasks' order.
    if num_tasks < len(_OKABE_ITO):
        return list(_OKABE_ITO[:num_tasks])
    return list(colormaps["viridis"](np.linspace(0, 0.93, num_tasks)))


def _plain_frame(axis: "Axes", grid: str = "y") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#E2E2E2", linewidth=0.8)  # type: ignore[arg-type]
    axis.set_axisbelow(True)


def _percent_formatter() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1, decimals=0, symbol=" %")


def _ink(background: Any) -> str:
    """Black or white, whichever reads better on the colour (relative luminance, ITU-R BT.709)."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(background)
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"
