"""The studies of benchmarks/paper.py: what is trained, on which settings, what comes out of it and what has to.

Settings are those of the papers where a laptop has room for them: b = 56 new samples per step, r = 7 of the memory,
c = 14 offered to it, 30 % of the data kept (CCGrid 2024); on handwritten digits in five tasks, not ImageNet in four.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import psutil

from reprise.benchmarks import scale_model
from reprise.benchmarks.studies import Statement
from reprise.report.timeline import overheads
from reprise.runtime.files import atomic_write

INTRODUCTION = """Each table is from real runs on handwritten digits, five tasks of two classes, unless it says that it
is computed. `±` is the standard deviation over seeds. Accuracies are means over all tasks after the last one.
"""
B, R, C, RATIO = 56, 7, 14, 30
_TASKS = ("--dataset", "digits", "--tasksets-config", "increment=2", "--warmup-epochs", "0")


@dataclass(frozen=True)
class Job:
    """One run of main.py. cell: its place in the table; runs that differ by seed alone share it. at_once: how many such
    runs may share the machine; 1 where they are timed.
    """

    cell: tuple[str, ...]
    seed: int
    options: tuple[str, ...]
    ranks: int = 1
    at_once: int = 1


@dataclass(frozen=True)
class Result:
    """What a job left: its summary.json and timeline.json, and the median of its last steps on rank 0."""

    job: Job
    summary: dict[str, Any]
    timeline: dict[str, dict[str, float]]
    step_ms: float


@dataclass(frozen=True)
class Finding:
    """What a study shows. text: what was done, for the page. plot: draws it, None where there is nothing to draw."""

    title: str
    text: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    statements: list[Statement]
    plot: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Study:
    jobs: Callable[[Sequence[int], bool], list[Job]]
    judge: Callable[[list[Result]], Finding]


def _memory(ratio: float = RATIO, r: int = R, c: int = C) -> tuple[str, ...]:
    config = f"rehearsal_ratio={ratio} num_representatives={r} num_candidates={c}"
    return ("--model", "Er", "--buffer-config", config)


def _by_cell(results: Sequence[Result]) -> dict[tuple[str, ...], list[Result]]:
    cells: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        cells.setdefault(result.job.cell, []).append(result)
    return cells


def _accuracies(results: Sequence[Result]) -> list[float]:
    return [result.summary["average_accuracy"] for result in results]


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):.3f}"


def _draw(path: Path, draw: Callable[[Any], None]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.3)
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=130)


# ---- three approaches


APPROACHES = ("incremental", "scratch", "rehearsal")
SIDE = 28  # pixels: a convolution's time grows with its images, as the prediction below has it
_CONVOLUTIONAL = ("--backbone", "mnistnet", "--transform-config", f"size={SIDE}")
R_OF_FEW_STEPS = 28  # a task has 100 steps here, and thousands on ImageNet


def _approach_jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
    base = (*_TASKS, *_CONVOLUTIONAL, "--batch-size", str(B), "--epochs", "20", "--lr", "0.1")
    options = {
        "incremental": ("--model", "Vanilla"),
        "scratch": ("--model", "Vanilla", "--model-config", "reset_state_dict=true"),
        "rehearsal": _memory(r=R_OF_FEW_STEPS),
    }
    options["scratch"] += ("--tasksets-config", "increment=2 concatenate_tasksets=true")
    # In turn, and not approach by approach: a machine that others use is not equally quick all the time.
    return [Job((name,), seed, (*base, *options[name])) for seed in seeds for name in APPROACHES]


def _approach_finding(results: list[Result]) -> Finding:
    cells = {name: _by_cell(results)[name,] for name in APPROACHES}
    accuracy = {name: mean(_accuracies(cell)) for name, cell in cells.items()}
    seconds = {name: mean(one.summary["train_seconds"] for one in cell) for name, cell in cells.items()}
    # Other work on the machine only ever adds: the least of them is the nearest to the truth.
    step = {name: min(one.step_ms for one in cell) for name, cell in cells.items()}
    rows = [
        (
            name,
            _spread(_accuracies(cells[name])),
            f"{seconds[name]:.1f} s",
            f"{seconds[name] / seconds['incremental']:.2f}",
            f"{step[name]:.1f} ms",
        )
        for name in APPROACHES
    ]
    predicted, measured = (B + R_OF_FEW_STEPS) / B, step["rehearsal"] / step["incremental"]
    longer, tasks = seconds["scratch"] / seconds["incremental"], cells["scratch"][0].summary["tasks"]
    middle = (accuracy["incremental"] + accuracy["scratch"]) / 2
    statements = [
        Statement(
            "rehearsal's accuracy is nearer to from-scratch than to incremental",
            f"{accuracy['rehearsal']:.3f}, the middle is {middle:.3f}",
            accuracy["rehearsal"] > middle,
        ),
        Statement(
            f"rehearsal's step over an incremental one is (b + r) / b = {predicted:.3f} ± 5 %",
            f"{measured:.3f}",
            abs(measured / predicted - 1) <= 0.05,
        ),
        Statement(
            f"from scratch takes (T + 1) / 2 = {(tasks + 1) / 2:g} times incremental, ± 15 %",
            f"{longer:.2f}",
            abs(longer / ((tasks + 1) / 2) - 1) <= 0.15,
        ),
    ]
    text = f"""The small convolutional network, on images of {SIDE} pixels a side, b = {B}, r = {R_OF_FEW_STEPS}, c =
{C} and {RATIO} % kept. Incremental: every task on its own data alone. From scratch: every task anew on
all data so far. A step is the least of the runs' medians. On ImageNet, ResNet-50 on 32 GPUs, the paper
has 80.2 % for rehearsal and 90.9 % from scratch (top 5), in half the time."""

    def draw(axes: Any) -> None:
        for name in APPROACHES:
            axes.scatter([seconds[name]] * len(cells[name]), _accuracies(cells[name]), label=name, s=36)
        axes.set(xlabel="training time, s", ylabel="accuracy, all tasks", ylim=(0, 1), xlim=(0, None))
        axes.legend()

    header = ("", "accuracy", "training time", "of incremental", "step")
    return Finding("Three approaches", text, header, rows, statements, lambda path: _draw(path, draw))


# ---- one setting varied: the memory's size, r, c


def _varied(
    name: str, values: Sequence[int], option: Callable[[int], tuple[str, ...]]
) -> Callable[[Sequence[int], bool], list[Job]]:
    base = (*_TASKS, "--backbone", "mlp", "--batch-size", str(B), "--lr", "0.1")

    def jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
        epochs = ("--epochs", "20" if quick else "40")  # of five steps: a task has 270 images, not 300,000
        at_once = psutil.cpu_count() or 1
        return [Job((f"{name}={v}",), s, (*base, *epochs, *option(v)), at_once=at_once) for v in values for s in seeds]

    return jobs


def _varied_finding(
    title: str, text: str, values: Sequence[int], judge: Callable[[dict[int, list[float]]], Statement]
) -> Callable[[list[Result]], Finding]:
    def finding(results: list[Result]) -> Finding:
        cells = dict(zip(values, _by_cell(results).values(), strict=True))
        accuracies = {value: _accuracies(cell) for value, cell in cells.items()}
        rows = [
            (
                str(value),
                _spread(accuracies[value]),
                _spread([one.summary["forgetting"] for one in cell]),
                f"{cell[0].summary['samples_stored']:,}",
            )
            for value, cell in cells.items()
        ]

        def draw(axes: Any) -> None:
            axes.errorbar(
                [str(value) for value in values],
                [mean(accuracies[value]) for value in values],
                [stdev(accuracies[value]) if len(accuracies[value]) > 1 else 0 for value in values],
                marker="o",
                capsize=4,
            )
            axes.set(xlabel=title, ylabel="accuracy, all tasks")

        header = (title, "accuracy", "forgetting", "samples stored")
        return Finding(title, text, header, rows, [judge(accuracies)], lambda path: _draw(path, draw))

    return finding


def _more_is_better(accuracies: dict[int, list[float]]) -> Statement:
    least, most = min(accuracies), max(accuracies)
    low, high = mean(accuracies[least]), mean(accuracies[most])
    return Statement(f"{most} is better than {least}", f"{high:.3f} beside {low:.3f}", high > low)


def _within(limit: float) -> Callable[[dict[int, list[float]]], Statement]:
    def judge(accuracies: dict[int, list[float]]) -> Statement:
        means = [mean(values) for values in accuracies.values()]
        spread = max(means) - min(means)
        return Statement(f"all within {limit:g} of each other", f"{spread:.3f}", spread <= limit)

    return judge


SIZES, REPRESENTATIVES, CANDIDATES = (5, 10, 20, 30), (7, 14, 28, 56), (7, 14, 28, 56)


# ---- weak scaling


_PARTS = ("load", "wait", "train", "populate", "augment")


def _scaling_jobs(seeds: Sequence[int], quick: bool) -> list[Job]:
    base = (*_TASKS, *_CONVOLUTIONAL, "--batch-size", "8", "--training-only")
    rehearsal = _memory(r=4, c=8)
    jobs = []
    for ranks in (1, 2, 4, 8):
        # As many steps at any number of ranks: each rank has a share of the data, and passes over it more often.
        epochs = ("--epochs", str(ranks if quick else 3 * ranks))
        for name, options in (("Vanilla", ("--model", "Vanilla")), ("Er", rehearsal)):
            jobs += [Job((str(ranks), name), seed, (*base, *epochs, *options), ranks) for seed in seeds[:1]]
    return jobs


def _scaling_finding(results: list[Result]) -> Finding:
    rows, share = [], {}
    for result in results:
        ranks, name = result.job.cell
        means = overheads(result.timeline)
        if name == "Er":
            share[int(ranks)] = result.summary["wait_share"]
        cells = [f"{means[part]:.2f}" if means.get(part) else "-" for part in _PARTS]
        whole = result.timeline["step"]["mean_ms"]
        rows.append((ranks, name, f"{result.summary['images_per_second']:,.0f}", f"{whole:.2f}", *cells))
    worst = max(share.values())
    statements = [Statement("waiting for the draw stays below 5 % of a step", f"{worst:.1%} at most", worst < 0.05)]
    text = f"""8 new samples per rank and step, 4 of the memory; every rank takes as many steps whatever their number.
Milliseconds of a mean step of rank 0: load, wait and train are parts of it, populate and augment the engine's work
beside it. This was made on {psutil.cpu_count()} cores: more ranks share them, so images per second do not grow."""
    header = ("ranks", "", "images/s", "step", *_PARTS)
    return Finding("Weak scaling, and where the time goes", text, header, rows, statements)


# ---- 8 to 4,096 ranks, computed


NETWORK, PER_NODE = "ib-200g", 8
PUBLISHED = {16: 75 / 75, 32: 45 / 45, 64: 21 / 35, 128: 30 / 25}
"""GPUs -> rehearsal's over incremental's time reserved for a ResNet-50 run in the paper's job scripts, in minutes."""


def _model_finding(results: list[Result]) -> Finding:
    model = scale_model.predict(
        scale_model.Costs(), workloads=("imagenet",), networks=(NETWORK,), ranks_per_node=(PER_NODE,)
    )
    points, compute = model["points"], model["compute_ms"]
    rows = [
        (
            f"{point['ranks']:,}",
            f"{point['blocked_p50_us']:.0f} µs",
            f"{point['prepared_p95_us'] / 1000:.2f} ms",
            f"{point['requests_per_step']:.2f}",
            f"{1 + point['blocked_p50_us'] / 1000 / compute:.3f}",
            f"{PUBLISHED[point['ranks']]:.2f}" if point["ranks"] in PUBLISHED else "",
        )
        for point in points
    ]
    last = points[-1]
    statements = [
        Statement(
            "a draw is ready before the step is over, at every number of ranks",
            f"{last['prepared_p95_us'] / 1000:.2f} ms of {compute:g} at {last['ranks']:,}",
            all(point["prepared_p95_us"] < 1000 * compute for point in points),
        )
    ]
    text = f"""Computed by benchmarks/scale_model.py for ImageNet's records, {PER_NODE} ranks per node, {compute:g} ms
of compute per step, network `{NETWORK}`; nothing in this table was run at that size. The last column is all that is
public of the reference's times: the limits of its batch jobs, rehearsal's over incremental's."""

    def draw(axes: Any) -> None:
        ranks = np.array([point["ranks"] for point in points])
        axes.plot(ranks, [point["prepared_p95_us"] / 1000 for point in points], "o-", label="draw ready, p95")
        axes.plot(ranks, [point["blocked_p95_us"] / 1000 for point in points], "s-", label="blocked, p95")
        axes.axhline(compute, color="grey", label="compute of a step")
        axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="ms per step")
        axes.legend()

    header = ("ranks", "blocked, p50", "draw ready, p95", "ranks asked", "step over a bare one", "published")
    title = "8 to 4,096 ranks, computed"
    return Finding(title, text, header, rows, statements, lambda path: _draw(path, draw))


STUDIES = {
    "approaches": Study(_approach_jobs, _approach_finding),
    "size": Study(
        _varied("size", SIZES, lambda value: _memory(ratio=value)),
        _varied_finding("Memory, % of the data", f"A perceptron, b = {B}, r = {R}, c = {C}.", SIZES, _more_is_better),
    ),
    "representatives": Study(
        _varied("r", REPRESENTATIVES, lambda value: _memory(r=value)),
        _varied_finding(
            "Representatives per step, r",
            f"A perceptron, b = {B}, c = {C}, {RATIO} % kept.",
            REPRESENTATIVES,
            _more_is_better,
        ),
    ),
    "candidates": Study(
        _varied("c", CANDIDATES, lambda value: _memory(c=value)),
        _varied_finding(
            "Candidates per step, c", f"A perceptron, b = {B}, r = {R}, {RATIO} % kept.", CANDIDATES, _within(0.1)
        ),
    ),
    "scaling": Study(_scaling_jobs, _scaling_finding),
    "model": Study(lambda seeds, quick: [], _model_finding),
}
