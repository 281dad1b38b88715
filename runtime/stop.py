"""Being told to stop: SIGTERM, and SIGUSR1 as SLURM sends it before a job's time is over.

The first signal is only noted, so that whoever trains can finish a step and save; a second one ends the process.
Launchers pass a signal on to processes that have got it already, so those that follow at once are the same one.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_S = 5.0
REQUEUE = 85  # exit code of a run that was told to stop and can go on: errno ERESTART of Linux


class StoppedError(Exception):
    """A run has saved what it had, because a signal asked it to stop."""


class StopRequest:
    """Context manager that notes the signals of this process. Outside the main thread it notes nothing."""

    def __init__(self) -> None:
        self.signal = 0  # number of the first one; 0: none has come
        self._at = 0.0
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
        if not self.signal:
            self.signal, self._at = number, time.monotonic()
        elif time.monotonic() - self._at > SAME_S:
            os._exit(128 + number)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """For starting a process that is to ignore them all its life: what is ignored is inherited."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS} if here else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outlive_one() -> None:
    """For a helper of a process that finishes its step (a loader's worker): what is sent to all of a job is for that
    process. A later SIGTERM, as by who wants to be rid of the helper, still ends it.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, StopRequest()._note)
