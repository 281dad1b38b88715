"""What a sweep found: trials.csv, sweep.png and a table, best trial first. Read from the trials' folders alone."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reprise.report import summary_schema
from reprise.report.plots import scatter_png
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write
from reprise.sweeps.local import LocalSweep
from reprise.sweeps.space import Values

_ROWS_SHOWN = 20


@dataclass(frozen=True)
class Trial:
    """One trial. summary: what it wrote, None where it is not done. metric: None also where a run does not have it."""

    number: int
    values: Values
    summary: dict[str, Any] | None
    metric: float | None


def read(local: LocalSweep) -> list[Trial]:
    """All trials, in order. UserError where a summary is damaged."""
    trials = []
    for number in range(len(local.sweep)):
        summary = summary_schema.read(local.trial_folder(number)) if local.done(number) else None
        metric = summary[local.sweep.metric.key] if summary else None
        trials.append(Trial(number, local.sweep[number], summary, metric))
    return trials


def ranked(trials: Sequence[Trial], goal: str) -> list[Trial]:
    """Those that have the metric, best first; the earlier of equals first."""
    sign = -1 if goal == "maximize" else 1
    return sorted((trial for trial in trials if trial.metric is not None), key=lambda trial: sign * (trial.metric or 0))


def write(local: LocalSweep, trials: Sequence[Trial]) -> list[Path]:
    """Write trials.csv and draw sweep.png into the sweep's folder; returns their paths. Atomic."""
    sweep, table_csv, picture = local.sweep, local.folder / "trials.csv", local.folder / "sweep.png"
    measured = [key for key in summary_schema.MEASURED if key != sweep.metric.key]
    with atomic_write(table_csv) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["trial", "folder", "done", sweep.metric.key, *trials[0].values, *measured])
        for trial in trials:
            summary = trial.summary or {}
            table.writerow(
                [
                    trial.number,
                    local.trial_folder(trial.number).name,
                    trial.summary is not None,
                    trial.metric,
                    *trial.values.values(),
                    *(summary.get(key) for key in measured),
                ]
            )
    done = ranked(trials, sweep.metric.goal)
    if not done:
        return [table_csv]
    varied = zip(_short(sweep.varied), sweep.varied, strict=True)
    points = {name: [trial.values[key] for trial in done] for name, key in varied}
    scatter_png(points, [trial.metric or 0.0 for trial in done], picture, f"{sweep.name}: {sweep.metric.key}")
    return [table_csv, picture]


def show(local: LocalSweep, trials: Sequence[Trial], written: Sequence[Path], console: Console) -> None:
    """Print the best trials and where the rest is."""
    sweep = local.sweep
    best = ranked(trials, sweep.metric.goal)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("trial", sweep.metric.key, *_short(sweep.varied)):
        table.add_column(escape(title), justify="right", overflow="fold")
    for trial in best[:_ROWS_SHOWN]:
        table.add_row(str(trial.number), _number(trial.metric), *(_number(trial.values[key]) for key in sweep.varied))
    console.print(table)
    missing = sum(trial.summary is None for trial in trials)
    if len(best) > _ROWS_SHOWN:
        console.print(f"and {len(best) - _ROWS_SHOWN} more, in {written[0]}")
    if missing:
        console.print(f"{missing} of {len(trials)} trials are not done; the same command again goes on with them")
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)


def check_metric(trials: Sequence[Trial], key: str) -> None:
    """UserError where no finished trial has the metric, as a classifier has no average_error."""
    done = [trial for trial in trials if trial.summary is not None]
    if done and not any(trial.metric is not None for trial in done):
        raise UserError(f"metric {key}: these runs do not measure it; their summary.json holds what they do")


def _short(options: Sequence[str]) -> list[str]:
    """Options without the dictionary they are in, where that leaves them apart."""
    short = [option.rpartition(".")[2] for option in options]
    return short if len(set(short)) == len(short) else list(options)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:.4g}"
    return escape(str(value))
