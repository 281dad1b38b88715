"""Being told to stop: SIGTERM, and SIGUSR1 as SLURM sends it before a job's time is over.

The first signal is only noted, so that whoever trains can finish a step and save; a second one ends the process.
"""

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
REQUEUE = 85  # exit code of a run that was told to stop and can go on: errno ERESTART of Linux


class StoppedError(Exception):
    """A run has saved what it had, because a signal asked it to stop."""


class StopRequest:
    """Context manager that notes the signals of this process. Outside the main thread it notes nothing."""

    def __init__(self) -> None:
        self.signal = 0  # number of the first one; 0: none has come
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal() itself returned

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
