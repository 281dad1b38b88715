"""The sections of the report page on how training went: epoch by epoch, within a step, and in the buffer.

Called by page.py.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from reprise.report import svg
from reprise.report.page_parts import NOTHING, Bar, Cell, Figure, Section, Table, colour, line_key, not_there, told
from reprise.report.run_contents import RunContents
from reprise.report.run_folder import TIMELINE_FILE
from reprise.report.timeline import ENGINE, STEP, Timeline, beside, overheads, within

_CLASSES_APART = 12  # more of them are drawn together, by the task that brought them
_STORED = "stored/class_"


def epochs(runs: Sequence[RunContents]) -> Section:
    """Throughput and training loss of all runs."""
    figures = []
    for metric, what, caption, written in (
        ("images_per_second", "new images/s, all ranks", "Throughput in each epoch", "{:,.0f}"),
        ("loss", "training loss", "Training loss in each epoch", "{:.4g}"),
    ):
        found = {k: values for k, run in enumerate(runs) if (values := _per_epoch(run, metric))}
        if not found:
            continue
        placed = {k: _placed(values, finished=runs[k].summary is not None) for k, values in found.items()}
        num_tasks = 1 + max(task for values in found.values() for task, _ in values)
        x = svg.Axis.tasks(num_tasks)
        y = svg.Axis.numbers(what, (value for points in placed.values() for _, value in points))
        lines = [svg.Line(points, colour(k), k) for k, points in placed.items()]
        last = {
            runs[k].name: {task: value for (task, _), value in sorted(values.items())} for k, values in found.items()
        }
        rows = [
            (str(task), "", [Cell(written.format(of[task]) if task in of else NOTHING) for of in last.values()])
            for task in range(num_tasks)
        ]
        figures.append(
            Figure(
                caption,
                svg.lines(lines, x, y, f"{caption}; the numbers of last epochs are below"),
                [(line_key(k), runs[k].name) for k in found],
                Table(f"{what}, last epoch of each task", ["task", *last], rows),
            )
        )
    missing = told((run, "no epochs in its metrics.csv") for run in runs if not _per_epoch(run, "loss"))
    return Section("epochs", "Epoch by epoch", missing=missing, figures=figures)


def _per_epoch(run: RunContents, metric: str) -> dict[tuple[int, int], float]:
    """(task, epoch) to the metric of training."""
    rows = (row for row in run.metrics if row.split == "train" and row.metric == metric)
    return {(row.task, row.epoch): row.value for row in rows if math.isfinite(row.value)}


def _placed(values: Mapping[tuple[int, int], float], *, finished: bool) -> list[tuple[float, float]]:
    """Epochs over tasks: all tasks are equally wide, so that runs with other numbers of epochs can be compared."""
    counts: dict[int, int] = {}
    for task, epoch in values:
        counts[task] = max(counts.get(task, 0), epoch + 1)
    if not finished:
        counts[max(counts)] = max(counts.values())  # how many the task at work will have is not in the metrics
    return [(task + (epoch + 0.5) / counts[task], value) for (task, epoch), value in sorted(values.items())]


def times(runs: Sequence[RunContents]) -> Section:
    """The mean step of each run as a bar, and what the buffer did meanwhile as another."""
    timed = {run.name: run.timeline for run in runs if run.timeline and run.timeline.get(STEP, {}).get("count")}
    most_parts_first = sorted(timed.values(), key=len, reverse=True)
    colours = _part_colours(dict.fromkeys(name for timeline in most_parts_first for name in timeline if name != STEP))
    bars = [(name, _bars(timeline, colours), _statistics(timeline)) for name, timeline in timed.items()]
    longest = max((bar.width for _, of_run, _ in bars for bar in of_run), default=0) or 1
    bars = [(name, [replace(bar, width=100 * bar.width / longest) for bar in of], table) for name, of, table in bars]
    missing = told(
        (run, not_there(run, f"no {TIMELINE_FILE} in its folder") if run.timeline is None else "no step was timed")
        for run in runs
        if run.name not in timed
    )
    intro = (
        "Rank 0, all bars to one scale. The buffer's own work goes on beside the steps; that of the plain Python "
        "implementation is part of them."
    )
    tables = [_overheads(timed)] if timed else []
    return Section("times", "Where a step's time went", intro if bars else "", missing, tables=tables, bars=bars)


def _overheads(timed: Mapping[str, Timeline]) -> Table:
    parts = {name: overheads(timeline) for name, timeline in timed.items()}
    rows = [
        (part, remark, [Cell(f"{of[part]:.3g}" if part in of else NOTHING) for of in parts.values()])
        for part, remark in (
            ("load", "for new samples"),
            ("wait", "for the draw, and joining it"),
            ("train", "all else in the step"),
            ("populate", "beside: inserting"),
            ("augment", "beside: planning and reading the draw"),
        )
    ]
    return Table("A mean step in the parts of the published breakdown, ms", ["", *parts], rows)


def _part_colours(parts: Iterable[str]) -> dict[str, str]:
    """One for each part, the same in every run."""
    names = list(parts)
    inside, outside = [n for n in names if not n.startswith(ENGINE)], [n for n in names if n.startswith(ENGINE)]
    colours = {n: f"c{k % svg.COLOURS}{' striped' if k >= svg.COLOURS else ''}" for k, n in enumerate(inside)}
    colours |= {name: svg.ramp(k, len(outside)) for k, name in enumerate(outside)}
    return {**colours, "other": "rest"}


def _bars(timeline: Timeline, colours: Mapping[str, str]) -> list[Bar]:
    """Their widths still in milliseconds."""
    step = timeline[STEP]
    inside, outside = (
        {name: entry["total_ms"] / step["count"] for name, entry in parts.items()}
        for parts in (within(timeline), beside(timeline))
    )
    inside["other"] = max(step["mean_ms"] - sum(inside.values()), 0.0)
    bars = [_bar("mean step", inside, colours)]
    return [*bars, _bar("beside it, until the next draw is there", outside, colours)] if outside else bars


def _bar(caption: str, means: Mapping[str, float], colours: Mapping[str, str]) -> Bar:
    total = sum(means.values())
    parts = [
        (colours[name], name.removeprefix(ENGINE), f"{mean:.3g} ms", 100 * mean / (total or 1))
        for name, mean in means.items()
    ]
    return Bar(f"{caption}: {total:.3g} ms", parts, total)


def _statistics(timeline: Timeline) -> Table:
    columns = {"mean ms": ("mean_ms", 1.0), "median ms": ("p50_ms", 1.0), "95 % under, ms": ("p95_ms", 1.0)}
    columns["total s"] = ("total_ms", 1e-3)
    rows = [
        (name, "", [Cell(f"{e['count']:,.0f}"), *(Cell(f"{e[key] * unit:.3g}") for key, unit in columns.values())])
        for name, e in timeline.items()
    ]
    return Table("", ["part", "times", *columns], rows)


def buffers(runs: Sequence[RunContents]) -> Section:
    """What the whole job's buffer held after each task."""
    stored = {run.name: _stored(run) for run in runs}
    most = max((sum(classes.values()) for tasks in stored.values() for classes in tasks.values()), default=0)
    grouped = {name: _groups(tasks) for name, tasks in stored.items()}
    num_groups = max(len(set(groups.values())) for groups in grouped.values())
    figures = [_buffer(name, stored[name], of, most, num_groups) for name, of in grouped.items() if stored[name]]
    missing = told((run, _why_empty(run)) for run in runs if not stored[run.name])
    intro = "Samples that all ranks together hold after each task." if figures else ""
    return Section("buffer", "What the buffer held", intro, missing, figures=figures)


def _why_empty(run: RunContents) -> str:
    without = run.summary is not None and run.summary["buffer_implementation"] == "none"
    return "no buffer" if without else not_there(run, "not in its metrics.csv")


def _stored(run: RunContents) -> dict[int, dict[int, float]]:
    """Task to class to samples stored after it."""
    tasks: dict[int, dict[int, float]] = {}
    for row in run.metrics:
        if row.split == "buffer" and row.metric.startswith(_STORED):
            tasks.setdefault(row.task, {})[int(row.metric.removeprefix(_STORED))] = row.value
    return tasks


def _groups(tasks: Mapping[int, Mapping[int, float]]) -> dict[int, str]:
    """Class to what it is drawn with: itself, or where they are many all that came with the same task; in order."""
    arrived: dict[int, int] = {}
    for task in sorted(tasks):
        for label, number in sorted(tasks[task].items()):
            if number > 0:
                arrived.setdefault(label, task)
    if len(arrived) > _CLASSES_APART:
        return {label: f"classes first seen in task {task}" for label, task in arrived.items()}
    return {label: f"class {label}" for label in arrived}


def _buffer(
    name: str, tasks: Mapping[int, Mapping[int, float]], groups: Mapping[int, str], most: float, num_groups: int
) -> Figure:
    """most: samples in any run, num_groups: the most groups of one, so that all runs share scale and colours."""
    num_tasks = max(tasks) + 1
    sums = {group: [0.0] * num_tasks for group in groups.values()}
    rows = []
    for task, classes in sorted(tasks.items()):
        held = {label: number for label, number in classes.items() if number > 0}
        for label, number in held.items():
            sums[groups[label]][task] += number
        numbers = (sum(held.values()), len(held), min(held.values(), default=0), max(held.values(), default=0))
        rows.append((str(task), "", [Cell(f"{number:,.0f}") for number in numbers]))
    colours = {group: svg.ramp(place, num_groups) for place, group in enumerate(sums)}
    chart = svg.columns(
        [svg.Layer(values, colours[group]) for group, values in sums.items()],
        replace(svg.Axis.tasks(num_tasks), title="after task"),
        svg.Axis.numbers("samples stored", [most]),
        "Samples stored after each task, by class; the numbers are below",
        stacked=True,
    )
    listed = list(sums)
    if len(listed) > _CLASSES_APART:  # the order of the colours says the rest
        listed = [listed[0], listed[-1]]
    legend = [(svg.key(colours[group], line=False), group) for group in listed]
    head = ["after task", "samples", "classes", "fewest of a class", "most of a class"]
    return Figure(name, chart, legend, Table("", head, rows))
