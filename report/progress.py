"""How far the epoch is: a bar on a terminal, a line now and then anywhere else. Rank 0 only, values given by the loop.

Nothing here touches a tensor: the loop passes floats on its log steps and only the step number in between, so that
progress never makes the host wait for a device.
"""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from reprise.runtime.log import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger(__name__)


class EpochProgress:
    """One epoch's progress, a context manager; `enabled=False` (ranks other than 0) makes every call free.

    `total` is this epoch's steps, `description` what is trained, e.g. "task 2/5, epoch 3/10". On a terminal the bar
    disappears at the end; elsewhere a step with values logs a line if the last one is `line_seconds` old. Either way
    the epoch ends in one logged line, so log.txt reads the same; an epoch cut short by an error has none.
    """

    def __init__(
        self,
        enabled: bool,
        total: int,
        description: str,
        line_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._enabled = enabled
        self._total = total
        self._description = description
        self._line_seconds = line_seconds
        self._clock = clock
        self._step = 0
        self._loss: float | None = None
        self._images_per_second: float | None = None
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> "EpochProgress":
        if self._enabled:
            self._started = self._last_line = self._clock()
            if console().is_terminal:
                self._bar = self._start_bar()
        return self

    def update(self, step: int, loss: float | None = None, images_per_second: float | None = None) -> None:
        """`step` steps of the epoch are done. Give values on log steps only; the last ones stay on display."""
        if not self._enabled:
            return
        self._step = step
        if loss is not None:
            self._loss = loss
        if images_per_second is not None:
            self._images_per_second = images_per_second
        if self._bar is not None:
            progress, bar = self._bar
            progress.update(bar, completed=step, values=self._values())
        elif (loss is not None or images_per_second is not None) and step < self._total:
            now = self._clock()
            if now - self._last_line >= self._line_seconds:
                self._last_line = now
                self._log_line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()
        if self._enabled and kind is None:
            self._log_line()

    def _start_bar(self) -> "tuple[Progress, TaskID]":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console(),
            transient=True,
            expand=True,
            refresh_per_second=5,
        )
        progress.start()
        return progress, progress.add_task(self._description, total=self._total, values="")

    def _log_line(self) -> None:
        parts = [f"step {self._step}/{self._total}", self._values(), f"{self._clock() - self._started:.1f} s"]
        logger.info("%s: %s", self._description, ", ".join(part for part in parts if part))

    def _values(self) -> str:
        parts = []
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        if self._images_per_second is not None:
            parts.append(f"{self._images_per_second:,.0f} images/s")
        return ", ".join(parts)
