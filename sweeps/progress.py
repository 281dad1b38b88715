"""How far a sweep is: a bar on a terminal, and a line for every trial that ended."""

import threading
from pathlib import Path
from types import TracebackType

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from reprise.report.summary import stdout


class SweepProgress:
    """A context manager. Its methods may be called from any thread."""

    def __init__(self, trials: int, done: int) -> None:
        self.console = stdout()
        columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self._task = self._bar.add_task("", total=trials, completed=done)
        self._ended = threading.Lock()
        if done:
            self.console.print(f"{done} of {trials} trials are done already")

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def trial_ended(self, trial: int, seconds: float, reason: str, log: Path) -> None:
        """Say how a trial ended. reason: "" where it is done."""
        how = f"failed after {seconds:.0f} s, {reason}; see {log}" if reason else f"done in {seconds:.0f} s"
        with self._ended:
            self.console.print(f"trial {trial}: {escape(how)}", highlight=False, soft_wrap=True)
            if not reason:
                self._bar.advance(self._task)
