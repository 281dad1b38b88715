"""What a run leaves behind: matrices and pictures after every task, summary and final tables at the end. Rank 0 only.

Joins what the loop measured with how report/ shows it; no formulas (report/matrix.py) and no layout (report/) here.
"""

import logging
from collections.abc import Sequence
from time import monotonic
from typing import Any

import numpy as np

from reprise.buffer import RehearsalBuffer
from reprise.report import matrix, plots, summary_schema
from reprise.report.run_folder import RunFolder
from reprise.report.sinks import Sink
from reprise.report.summary import print_summary
from reprise.report.timeline import ENGINE, ENGINE_PARTS, Timeline, overheads
from reprise.report.trace import Event, chrome, last_steps
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import UserError
from reprise.runtime.spans import Spans
from reprise.train.checkpoint import Progress

logger = logging.getLogger(__name__)

_DRAW_EVERY_S = 30.0  # drawing takes the better part of a second, during which all ranks wait for rank 0


class Results:
    """Writes into `folder`. title: what the pictures are headed with. reconstructs: R holds errors, not accuracies.

    sink: also gets the pictures. tasks: of the whole run, after the last of which everything is drawn.
    """

    def __init__(self, folder: RunFolder, title: str, sink: Sink, tasks: int, *, reconstructs: bool = False) -> None:
        self.folder = folder
        self._sink = sink
        self._tasks = tasks
        self._rows_drawn = 0
        self.reconstructs = reconstructs
        self.title = title
        self._drawn = monotonic()

    def after_task(self, progress: Progress) -> None:
        """Rewrite the matrices so far; their pictures too where tasks take long, and after the last.

        A disk that refuses costs the run nothing but these: the next task's rows hold all before them.
        """
        try:
            self._write(progress)
        except UserError as error:
            logger.error("%s", error)

    def _write(self, progress: Progress) -> None:
        if self.reconstructs:
            self.folder.write_error_matrix(progress.class_il)
        else:
            self.folder.write_accuracy_matrix(progress.class_il)
        if progress.task_il:
            self.folder.write_accuracy_matrix(progress.task_il, task_il=True)
        if monotonic() - self._drawn > _DRAW_EVERY_S or len(progress.class_il) == self._tasks:
            self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        known = progress.task_il or None
        errors = self.reconstructs
        matrix_png = self.folder.error_matrix_png if errors else self.folder.matrix_png
        plots.accuracy_matrix_png(progress.class_il, matrix_png, self.title, known, errors=errors)
        plots.curves_png(progress.class_il, self.folder.curves_png, self.title, known, errors=errors)
        for picture in (matrix_png, self.folder.curves_png):
            self._sink.picture(picture, progress.steps)
        self._drawn, self._rows_drawn = monotonic(), len(progress.class_il)

    def finish(
        self, progress: Progress, summary: dict[str, Any], timeline: Timeline, trace: Sequence[Sequence[Event]]
    ) -> None:
        """Write summary.json, draw everything, print it. A picture that cannot be drawn does not end the run.

        timeline: as `timeline_of` gives it. trace: the events of each rank; [] without --trace.
        """
        evaluated = bool(progress.class_il)
        if evaluated:
            self._write(progress)
        self.folder.write_summary(summary)
        try:
            if self._rows_drawn < len(progress.class_il):
                self._draw(progress)
            if timeline:
                self.folder.write_timeline(timeline)
                plots.timeline_png(timeline, self.folder.timeline_png, self.title)
            if trace:
                self.folder.write_trace(chrome(trace))
        except UserError as error:
            logger.error("%s", error)
        print_summary(
            summary,
            progress.class_il if evaluated else None,
            progress.task_il or None,
            self.folder.path,
            self.folder.pictures(),
            errors=self.reconstructs,
            parts=overheads(timeline),
        )


def summarise(
    progress: Progress,
    spans: Spans,
    buffer: RehearsalBuffer | None,
    samples_stored: int,
    comm: Communicator,
    *,
    strategy: str,
    seed: int,
    reconstructs: bool = False,
) -> dict[str, Any]:
    """The content of summary.json. samples_stored: on all ranks. Times are this rank's, of the present session."""
    measured = np.array(progress.class_il) if progress.class_il else None
    values: dict[str, float] = {}
    if measured is not None:
        values = matrix.of_errors(measured) if reconstructs else matrix.of_accuracies(measured, progress.untrained)
    if progress.task_il:
        values["average_accuracy_task_il"] = matrix.average_accuracy(progress.task_il)
    timings = spans.stats()
    step, wait = timings.get("step"), timings.get("rehearsal")
    return {
        **{key: values.get(key) for key in (*summary_schema.ACCURACIES, *summary_schema.ERRORS)},
        "tasks": progress.tasks_done,
        "seed": seed,
        "world_size": comm.size,
        "launcher": comm.launcher,
        "strategy": strategy,
        "buffer_implementation": buffer.implementation if buffer is not None else "none",
        "buffer_transport": buffer.transport if buffer is not None else "none",
        "images_per_second": progress.images / progress.train_seconds if progress.train_seconds else 0.0,
        "train_seconds": progress.train_seconds,
        "step_ms": _percentiles(step),
        "wait_ms": _percentiles(wait),
        "wait_share": wait["total_ms"] / step["total_ms"] if step and wait else 0.0,
        "buffer_bytes_per_rank": buffer.bytes_per_rank if buffer is not None else 0,
        "samples_stored": samples_stored,
    }


def timeline_of(spans: Spans, buffer: RehearsalBuffer | None) -> dict[str, dict[str, float]]:
    """Where this rank's time went: the parts of a step, in their order, then the engine's work beside it."""
    parts = spans.stats()
    if parts and buffer is not None:
        engine = buffer.timings()
        parts |= {f"{ENGINE}{name}": engine[name] for name in ENGINE_PARTS if name in engine}
    return parts


def trace_of(spans: Spans, buffer: RehearsalBuffer | None) -> list[Event]:
    """What this rank did in its last steps, as far as `spans` kept it."""
    engine = {} if buffer is None else buffer.recent_timings()
    return last_steps(spans.recent(), engine, one_thread=buffer is not None and buffer.implementation == "python")


def _percentiles(span: dict[str, float] | None) -> dict[str, float]:
    return {"p50": span["p50_ms"], "p95": span["p95_ms"]} if span else {"p50": 0.0, "p95": 0.0}
