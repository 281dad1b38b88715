"""What the folder of one run holds, read back for the report page: also of a run that is still going on, or was killed.

A file that is not there is no error: an older version, other options or a run at its beginning have not written it.
A damaged one is. Written by run_folder.py, sinks.py and train/results.py; comparing runs is page.py's.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprise.report import summary_schema, time_curve
from reprise.report.matrix import average_of_seen
from reprise.report.run_folder import TIMELINE_FILE, RunFolder
from reprise.report.sinks import MetricRow
from reprise.report.timeline import Timeline
from reprise.runtime.config_text import read_yaml, yaml_value
from reprise.runtime.errors import UserError

_STATISTICS = ("count", "total_ms", "mean_ms", "p50_ms", "p95_ms")


@dataclass(frozen=True)
class RunContents:
    """One run under the `name` it is told apart by. None or empty: its folder has no such file.

    summary: None while it has not finished. config, environment: dotted key to value, as in YAML but for quotes.
    matrix, matrix_task_il: R of the (n, T) tasks evaluated so far; `errors`: R holds errors of reconstructions.
    """

    name: str
    folder: Path
    summary: dict[str, Any] | None
    config: dict[str, str]
    environment: dict[str, str]
    command: str
    matrix: NDArray[np.float64] | None
    matrix_task_il: NDArray[np.float64] | None
    errors: bool
    timeline: Timeline | None
    metrics: list[MetricRow]


def read(folder: Path, name: str) -> RunContents:
    """Read a run's folder. UserError of one line that names the file when one is damaged, or it is no run's folder."""
    running = os.path.isfile(folder / "config.yaml") and not RunFolder.finished(folder)
    errors = os.path.isfile(folder / "error_matrix.csv")
    return RunContents(
        name=name,
        folder=folder,
        summary=None if running else summary_schema.read(folder),
        config=_config(folder / "config.yaml"),
        environment=_flat(_json(folder / "environment.json") or {}),
        command=(_text(folder / "command.txt") or "").strip(),
        matrix=_matrix(folder / ("error_matrix.csv" if errors else "accuracy_matrix.csv")),
        matrix_task_il=_matrix(folder / "accuracy_matrix_task_il.csv"),
        errors=errors,
        timeline=_timeline(folder / TIMELINE_FILE),
        metrics=_metrics(folder / "metrics.csv"),
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:  # also JSONDecodeError and UnicodeDecodeError
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' is damaged ({reason}); run it again or leave it out") from error


def _text(path: Path) -> str | None:
    with _reading(path):
        return path.read_text(encoding="utf-8") if path.exists() else None


def _json(path: Path) -> dict[str, Any] | None:
    text = _text(path)
    if text is None:
        return None
    with _reading(path):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"expected a mapping, got {type(content).__name__}")
        return content


def _config(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    content = read_yaml(path, "every run writes it")
    with _reading(path):
        if not isinstance(content, dict) or not isinstance(content.get("run"), dict):
            raise ValueError("expected the section run")
        return _flat(content["run"])


def _flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if value and isinstance(value, str) else yaml_value(value)
    return flat


def _matrix(path: Path) -> NDArray[np.float64] | None:
    if not path.exists():
        return None
    with _reading(path):
        rows = time_curve.read_matrix(path)
        average_of_seen(rows)  # refuses what is no matrix of n <= T finite rows
        return rows


def _timeline(path: Path) -> Timeline | None:
    content = _json(path)
    if content is None:
        return None
    with _reading(path):
        stats = {name: {key: float(entry[key]) for key in _STATISTICS} for name, entry in content.items()}
        for name, entry in stats.items():
            if not all(math.isfinite(value) and value >= 0 for value in entry.values()):
                raise ValueError(f"{name} is {content[name]!r}, expected times and a count")
        return stats


def _metrics(path: Path) -> list[MetricRow]:
    whole, _, _ = (_text(path) or "").rpartition("\n")  # the row that a kill has cut off never was one
    if not whole:
        return []
    with _reading(path):
        header, *rows = csv.reader(io.StringIO(whole))
        if header != [field.name for field in fields(MetricRow)]:
            raise ValueError(f"it starts with {','.join(header)[:40]!r}")
        return [
            MetricRow(int(task), int(epoch), int(step), split, metric, float(value))
            for task, epoch, step, split, metric, value in rows
        ]
