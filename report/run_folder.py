"""The folder of one run, `results/<name>/`: which files it has, what it keeps of an earlier run, how they are written.

Rank 0 only. Small files are rewritten whole and atomically; metrics and log are appended to by their own writers,
pictures are drawn by plots.py, checkpoints are train's. The paths of all of them are here.
"""

import csv
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from reprise.report import sinks, summary_schema
from reprise.report.timeline import Timeline
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write, disk_errors

TIMELINE_FILE = "timeline.json"
TRACE_FILE = "trace.json"


class RunFolder:
    """Creates the folder and fails early, in one line, where nothing could be saved later.

    What an earlier run left there stays untouched until `start_over` or `go_on_from` is called: only once nothing is
    left that could refuse the new run, and before anything opens a file in the folder, the log included.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with disk_errors("create the run's folder", self.path):
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"cannot use '{self.path}' as a run's folder: it is a file; choose another --save-dir")
            self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path / ".writable") as probe:
            probe.write("a full disk shows only when bytes are written\n")
        with disk_errors("write", self.path):
            (self.path / ".writable").unlink()

    def start_over(self) -> None:
        """Begin a new run: delete the files it will write itself, so that no old summary stands beside new metrics.

        Checkpoints of an earlier run are kept, apart in checkpoints.old-<n>. Everything else stays where it is.
        """
        with disk_errors("clear", self.path):
            for pattern in _WRITTEN_BY_A_RUN:
                for old in self.path.glob(pattern):
                    old.unlink()
            if self.checkpoints.exists() and any(self.checkpoints.iterdir()):  # empty it may be a mounted disk
                self.checkpoints.rename(self._unused_old())

    def go_on_from(self, rows: int, later: Sequence[Path]) -> int:
        """Continue this folder's own run: keep the first `rows` metrics, and put `later` checkpoints apart, in
        checkpoints/old-<n>. Returns how many metrics there are.
        """
        with disk_errors("clear", self.path):
            for name in (summary_schema.FILE_NAME, self.timeline_png.name, TIMELINE_FILE, TRACE_FILE):
                (self.path / name).unlink(missing_ok=True)
            for partial in self.checkpoints.glob(".*.partial"):
                shutil.rmtree(partial)
            if later:
                apart = next(p for n in count(1) if not (p := self.checkpoints / f"old-{n}").exists())
                apart.mkdir()
                for folder in later:
                    folder.rename(apart / folder.name)
        return sinks.keep_rows(rows, self.metrics_csv, self.metrics_jsonl)

    def _unused_old(self) -> Path:
        return next(p for n in count(1) if not (p := self.path / f"checkpoints.old-{n}").exists())

    @staticmethod
    def finished(path: Path) -> bool:
        """Whether the run of the folder `path` came to its end."""
        return os.path.isfile(path / summary_schema.FILE_NAME)  # False, too, for what cannot be a name

    @property
    def log(self) -> Path:
        """For runtime.log.setup."""
        return self.path / "log.txt"

    @property
    def metrics_csv(self) -> Path:
        """For CsvSink."""
        return self.path / "metrics.csv"

    @property
    def metrics_jsonl(self) -> Path:
        """For JsonlSink."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder for TensorBoardSink."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder for train's checkpoints."""
        return self.path / "checkpoints"

    @property
    def matrix_png(self) -> Path:
        """For plots.accuracy_matrix_png."""
        return self.path / "accuracy_matrix.png"

    @property
    def error_matrix_png(self) -> Path:
        """For plots.accuracy_matrix_png, where it draws errors."""
        return self.path / "error_matrix.png"

    @property
    def curves_png(self) -> Path:
        """For plots.curves_png."""
        return self.path / "curves.png"

    @property
    def timeline_png(self) -> Path:
        """For plots.timeline_png."""
        return self.path / "timeline.png"

    def write_start(self, config_yaml: str, argv: list[str], environment: dict[str, Any]) -> None:
        """Write config.yaml (the resolved configuration), command.txt and environment.json, before training."""
        with atomic_write(self.path / "config.yaml") as stream:
            stream.write(config_yaml)
        with atomic_write(self.path / "command.txt") as stream:
            stream.write(shlex.join(argv) + "\n")
        with atomic_write(self.path / "environment.json") as stream:
            json.dump(environment, stream, indent=2)
            stream.write("\n")

    def write_class_order(self, content: Mapping[str, Any]) -> None:
        """Write class_order.json: data set, seed, and its own numbers of the classes, all in order and task by task."""
        with atomic_write(self.path / "class_order.json") as stream:
            json.dump(content, stream)
            stream.write("\n")

    def write_accuracy_matrix(self, matrix: ArrayLike, task_il: bool = False) -> None:
        """Rewrite accuracy_matrix.csv (or accuracy_matrix_task_il.csv) with the (n, T) rows known so far.

        Fractions, at full precision: reading them back gives the same floats.
        """
        self._write_matrix(matrix, "accuracy_matrix_task_il.csv" if task_il else "accuracy_matrix.csv")

    def write_error_matrix(self, matrix: ArrayLike) -> None:
        """Rewrite error_matrix.csv: the same for reconstruction, with mean absolute errors."""
        self._write_matrix(matrix, "error_matrix.csv")

    def _write_matrix(self, matrix: ArrayLike, name: str) -> None:
        rows = np.asarray(matrix, dtype=np.float64)
        assert rows.ndim == 2, f"{name}: the matrix has shape {rows.shape}, expected (n, T)"
        with atomic_write(self.path / name) as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["trained_task", *(f"task_{j}" for j in range(rows.shape[1]))])
            table.writerows([i, *row] for i, row in enumerate(rows.tolist()))

    def write_trace(self, content: Mapping[str, Any]) -> None:
        """Write trace.json, for ui.perfetto.dev or chrome://tracing."""
        with atomic_write(self.path / TRACE_FILE) as stream:
            json.dump(content, stream)
            stream.write("\n")

    def write_timeline(self, spans: Timeline) -> None:
        """Write timeline.json."""
        with atomic_write(self.path / TIMELINE_FILE) as stream:
            json.dump(spans, stream, indent=2)
            stream.write("\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, last of all: its presence means that the run has finished. ValueError if incomplete."""
        summary_schema.check(summary)
        with atomic_write(self.path / summary_schema.FILE_NAME) as stream:
            json.dump(summary, stream, indent=2, allow_nan=False)
            stream.write("\n")

    def pictures(self) -> list[Path]:
        """The pictures that exist."""
        drawn = (self.matrix_png, self.error_matrix_png, self.curves_png, self.timeline_png)
        return [path for path in drawn if path.exists()]


_WRITTEN_BY_A_RUN = (
    "config.yaml",
    "command.txt",
    "environment.json",
    "class_order.json",
    "log.txt",
    "metrics.csv",
    "metrics.jsonl",
    sinks.WANDB_ID_FILE,
    "accuracy_matrix.csv",
    "accuracy_matrix_task_il.csv",
    "error_matrix.csv",
    "accuracy_matrix.png",
    "error_matrix.png",
    "curves.png",
    "timeline.png",
    TIMELINE_FILE,
    TRACE_FILE,
    summary_schema.FILE_NAME,
    "tensorboard/events.out.tfevents.*",
)
