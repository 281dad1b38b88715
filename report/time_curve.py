"""What a finished run had learnt after how much training time, read back from its folder. Drawn by plots.py."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reprise.report.matrix import average_of_seen
from reprise.runtime.errors import UserError


@dataclass(frozen=True)
class TimeCurve:
    """One point per task. seconds: of training until it was learnt, evaluation not counted. averages: over the tasks
    seen by then, accuracies as fractions, or mean absolute errors where `errors`.
    """

    seconds: tuple[float, ...]
    averages: tuple[float, ...]
    errors: bool


def read(run_folder: Path) -> TimeCurve:
    """The curve of a run; UserError when its files are missing, unreadable, or of a run that evaluated nothing."""
    errors = os.path.isfile(run_folder / "error_matrix.csv")
    try:
        matrix = read_matrix(run_folder / ("error_matrix.csv" if errors else "accuracy_matrix.csv"))
        header, *metrics = _rows(run_folder / "metrics.csv")
        named = [dict(zip(header, row, strict=True)) for row in metrics]
        seconds = {int(row["task"]): float(row["value"]) for row in named if row["metric"] == "train_seconds"}
        averages = average_of_seen(matrix)
        if missing := [task for task in range(len(averages)) if task not in seconds]:
            raise UserError(
                f"'{run_folder}' does not say how long task {missing[0]} took: an older version made it, or it was "
                "resumed from another folder, which has the times; draw that one, or train anew"
            )
        times = tuple(seconds[task] for task in range(len(averages)))
    except FileNotFoundError as error:
        raise UserError(f"'{error.filename}' does not exist; name the folder of a run that evaluates") from error
    except OSError as error:
        raise UserError(f"cannot read '{error.filename}': {error.strerror}") from error
    except (ValueError, KeyError) as error:
        raise UserError(f"the files of '{run_folder}' are damaged ({error}); run it again") from error
    return TimeCurve(times, tuple(averages.tolist()), errors)


def read_matrix(path: Path) -> NDArray[np.float64]:
    """The matrix (n, T) that a run folder wrote. OSError or ValueError where it cannot be read."""
    return np.array([[float(cell) for cell in row[1:]] for row in _rows(path)[1:]])


def _rows(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))
