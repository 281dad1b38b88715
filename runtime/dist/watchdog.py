"""Ends a process that has been inside one collective for too long: a rank that never joins must not hang the job.

A blocked C call cannot be interrupted from Python, so the only way out is to end the process, after one line that says
where it was. Arming costs well under a microsecond: the thread is woken only when it has nothing to watch; otherwise
it sleeps until the oldest entry it knew could expire, and looks again. base.py arms it around every collective.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: starting again may work


class Watchdog:
    """Any thread may arm and disarm; entries may nest. One daemon thread, started by the first arm().

    limit_s: how long an entry may stay armed. who: how messages name this process ("rank 1 of 4 on node3"). where: how
    far it is ("step 137 of task 1"), set by whoever trains. others: what is known of the other processes, asked for when
    the limit has passed.
    """

    def __init__(self, limit_s: float, who: str) -> None:
        self.limit_s = limit_s
        self.where = ""
        self.others: Callable[[], str] = str
        self.who = who
        self._entries: dict[object, tuple[float, str]] = {}  # token -> (armed at, what); single operations are atomic
        self._wake = threading.Condition()
        self._parked = True  # the thread sleeps without a deadline, or has not been started
        self._thread: threading.Thread | None = None

    def arm(self, what: str) -> object:
        """Start watching; `what` ends up in the message. Returns the token for disarm()."""
        token = object()
        self._entries[token] = (time.monotonic(), what)
        if self._parked:
            self._unpark()
        return token

    def disarm(self, token: object) -> None:
        """Stop watching."""
        del self._entries[token]

    @contextmanager
    def watch(self, what: str) -> Iterator[None]:
        """arm() and disarm() around a block, for where a microsecond does not matter."""
        token = self.arm(what)
        try:
            yield
        finally:
            self.disarm(token)

    def _unpark(self) -> None:
        with self._wake:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="reprise-watchdog", daemon=True)
                self._thread.start()
            self._wake.notify()

    def _run(self) -> None:
        with self._wake:
            while True:
                # Parked is set before the entries are looked at: whoever arms after that look sees it and notifies.
                self._parked = True
                entries = list(self._entries.values())
                if not entries:
                    self._wake.wait()
                    continue
                self._parked = False
                armed_at, what = min(entries)
                waited = time.monotonic() - armed_at
                if waited >= self.limit_s:
                    self._end(what, waited)
                self._wake.wait(self.limit_s - waited)

    def _end(self, what: str, waited: float) -> NoReturn:
        where = f" in {self.where}" if self.where else ""
        try:
            known = self.others()
        except Exception as error:  # whatever it is, this process has to end now
            known = str(error)
        line = (
            f"reprise: {self.who}: {what}{where} has waited {waited:.0f} s for the other ranks, limit "
            f"{self.limit_s:g} s (--timeout or REPRISE_TIMEOUT): a rank is stuck or gone{known and f' ({known})'}; "
            f"ending with exit code {EXIT_CODE}\n"
        )
        # Not through sys.stderr: the blocked thread may hold its lock.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
        os._exit(EXIT_CODE)
