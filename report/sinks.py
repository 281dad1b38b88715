"""Where measured numbers go, one row at a time: CSV and JSONL always, TensorBoard and Weights & Biases when asked.

Only rank 0 builds sinks, and only main.py chooses which. Rows hold plain floats: reading a device tensor is the
training loop's decision. CSV and JSONL are written line by line, never rewritten, so the cost does not grow with a run.
"""

import csv
import io
import json
import logging
import math
import os
import secrets
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write, disk_errors

logger = logging.getLogger(__name__)

WANDB_ID_FILE = "wandb_id.txt"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One number. `task` and `epoch` count from 0; `step` is optimisation steps since the start of the run."""

    task: int
    epoch: int
    step: int
    split: str
    metric: str
    value: float


class Sink(Protocol):
    """Somewhere rows and pictures go. Called from one thread."""

    def log(self, row: MetricRow) -> None:
        """Take one row."""

    def picture(self, path: Path, step: int) -> None:
        """Take a PNG file as it is now, under the file's name."""

    def close(self) -> None:
        """Write what is pending; calling it twice is fine."""


class SinkList:
    """Hands every row to every sink, in order. rows: how many there are, those of a run that goes on included."""

    def __init__(self, sinks: list[Sink], rows: int = 0) -> None:
        self._sinks = sinks
        self.rows = rows

    def log(self, row: MetricRow) -> None:
        """Take one row."""
        self.rows += 1
        for sink in self._sinks:
            sink.log(row)

    def picture(self, path: Path, step: int) -> None:
        """Take one picture."""
        for sink in self._sinks:
            sink.picture(path, step)

    def close(self) -> None:
        """Close every sink, also when closing one of them fails; then raise that failure."""
        with ExitStack() as stack:
            for sink in reversed(self._sinks):
                stack.callback(sink.close)


def chart_of(row: MetricRow) -> str | None:
    """The chart that a row belongs to where there are charts: `train/loss`, `eval/accuracy/task_3`, `cl/forgetting`.

    None for what makes no chart: how many samples of each of perhaps thousands of classes are stored.
    """
    if row.metric.startswith("stored/"):
        return None
    split, _, task = row.split.rpartition("_task_")
    return f"eval/{row.metric}/task_{task}" if split == "test" else f"{row.split}/{row.metric}"


class CsvSink:
    """metrics.csv: a header, then one line per row. An existing file is continued."""

    def __init__(self, path: Path) -> None:
        header = ",".join(field.name for field in fields(MetricRow))
        self._file = _LineFile(path)
        first = self._file.first_line
        if first is None:
            self._file.append(header)
        elif first != header:
            self._file.close()
            raise UserError(f"'{path}' starts with '{first[:40]}', expected '{header}'; move it away or rename the run")

    def log(self, row: MetricRow) -> None:
        """Append one line."""
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(astuple(row))
        self._file.append(line.getvalue())

    def picture(self, path: Path, step: int) -> None:
        """Nothing: it lies beside this file."""

    def close(self) -> None:
        """Close the file; UserError when the disk has refused some of it to the end."""
        self._file.close()


class JsonlSink:
    """metrics.jsonl: one JSON object per row. An existing file is continued. NaN and infinity are written as null."""

    def __init__(self, path: Path) -> None:
        self._file = _LineFile(path)

    def log(self, row: MetricRow) -> None:
        """Append one line."""
        entry = asdict(row)
        if not math.isfinite(row.value):
            entry["value"] = None  # JSON has no NaN; readers such as jq stop at one
        self._file.append(json.dumps(entry))

    def picture(self, path: Path, step: int) -> None:
        """Nothing: it lies beside this file."""

    def close(self) -> None:
        """Close the file; UserError when the disk has refused some of it to the end."""
        self._file.close()


def keep_rows(rows: int, metrics_csv: Path, metrics_jsonl: Path) -> int:
    """Remove all but the first `rows` rows: a run that goes on from a checkpoint logs the others again.

    Returns how many there are: fewer, where the last ones never reached the disk.
    """
    found = 0
    for path, header in ((metrics_csv, 1), (metrics_jsonl, 0)):
        if path.exists():
            with disk_errors("read", path):
                kept = path.read_bytes().splitlines(keepends=True)[: header + rows]
            with atomic_write(path, "wb") as stream:
                stream.writelines(kept)
            found = max(found, len(kept) - header)
    return found


class TensorBoardSink:
    """Charts over steps, and pictures, as event files in `folder`.

    after: the step that a run goes on from; TensorBoard forgets what an earlier process logged of later ones.
    """

    def __init__(self, folder: Path, after: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"TensorBoard is not installed ({error}); pip install 'reprise[tensorboard]'") from error
        with disk_errors("write", folder):
            self._writer = SummaryWriter(str(folder), purge_step=None if after is None else after + 1)

    def log(self, row: MetricRow) -> None:
        """Add one scalar."""
        if chart := chart_of(row):
            self._writer.add_scalar(chart, row.value, row.step)

    def picture(self, path: Path, step: int) -> None:
        """Add one image."""
        from matplotlib.image import imread

        self._writer.add_image(path.stem, imread(path), step, dataformats="HWC")

    def close(self) -> None:
        """Write the pending events and close the file."""
        self._writer.close()


class WandbSink:
    """Charts over `step`, and pictures, in Weights & Biases.

    Offline unless WANDB_API_KEY or WANDB_MODE says otherwise; `folder` then keeps what `wandb sync` uploads.
    A failure of the service is logged once and ends this sink, never the training. A run that goes on is the same run
    there, as `folder` keeps its id; rows: how many it has logged that count, of which the service may know more.
    """

    def __init__(self, project: str, name: str, config: dict[str, Any], folder: Path, rows: int = 0) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"Weights & Biases is not installed ({error}); pip install 'reprise[wandb]'") from error
        offline = not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"))
        self._run: Any = None
        self._row = rows
        identity = _wandb_id(folder)
        try:
            self._run = wandb.init(
                id=identity,
                resume=None if offline else "allow",
                project=project,
                name=name,
                config=config,
                dir=str(folder),
                mode="offline" if offline else None,
                settings=wandb.Settings(console="off"),  # log.txt has it; wrapping stdout breaks the progress bar
            )
            self._run.define_metric("*", step_metric="step")
            self._known = self._run.step
        except Exception as error:
            self._give_up("start", error)

    def log(self, row: MetricRow) -> None:
        """Hand over one row; does nothing after a failure."""
        number, self._row = self._row, self._row + 1
        chart = chart_of(row)
        if self._run is None or number < self._known or chart is None:
            return
        values = {chart: row.value, "task": row.task, "epoch": row.epoch, "step": row.step}
        try:
            self._run.log(values, step=number)
        except Exception as error:
            self._give_up("log", error)

    def picture(self, path: Path, step: int) -> None:
        """Hand over one picture; does nothing after a failure."""
        if self._run is None or self._row < self._known:
            return
        try:
            import wandb

            self._run.log({path.stem: wandb.Image(str(path)), "step": step}, step=self._row)
        except Exception as error:
            self._give_up("take a picture", error)

    def close(self) -> None:
        """Finish the run; does nothing after a failure."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:
            self._give_up("finish", error)

    def _give_up(self, action: str, error: Exception) -> None:
        # Everything the service can raise is caught: a run of many hours must not end because a website does.
        self._run = None
        logger.warning("Weights & Biases could not %s (%s); this run goes on without it", action, error)


def _wandb_id(folder: Path) -> str:
    """The run's id: a sweep's agent chooses it, else it is drawn once and kept in the run's folder."""
    if chosen := os.environ.get("WANDB_RUN_ID"):
        return chosen
    path = folder / WANDB_ID_FILE
    if not path.exists():
        with atomic_write(path) as stream:
            stream.write(secrets.token_hex(4))
    with disk_errors("read", path):
        return path.read_text()


class _LineFile:
    """A text file that always ends in a whole line: one cut off by a crash is removed, a failed one taken back.

    Lines that a full disk refuses are kept and tried again with the next one, and at the end: training goes on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line is in the file when append returns, unless the disk refuses it.
            self._stream = open(path, "a+b", buffering=0)  # noqa: SIM115, closed by close()
            self._stream.seek(0)
            content = self._stream.read()
            self._size = content.rfind(b"\n") + 1
            self._stream.truncate(self._size)
        self._pending = b""
        self.first_line = content[: self._size].splitlines()[0].decode(errors="replace") if self._size else None

    def append(self, line: str) -> None:
        refused_before = bool(self._pending)
        self._pending += line.encode() + b"\n"
        try:
            self._write()
        except UserError as error:
            if not refused_before:
                logger.error("%s; its rows are kept in memory and tried again", error)

    def close(self) -> None:
        """Raises UserError when there are rows that could not be written."""
        try:
            if not self._stream.closed:
                self._write()
        finally:
            self._stream.close()

    def _write(self) -> None:
        data, written = self._pending, 0
        with disk_errors("write", self._path):
            try:
                while written < len(data):
                    written += self._stream.write(data[written:])
            except OSError:
                self._stream.truncate(self._size)
                raise
        self._size += len(data)
        self._pending = b""
