"""Who may say what: rank 0 speaks at the chosen level, other ranks only to warn; log.txt keeps rank 0's words.

Modules call `logging.getLogger(__name__)` and nothing else; main.py calls `setup`. Other libraries are heard from
WARNING up. On a terminal the lines go through one rich console, which the progress bar shares, so that neither
overwrites the other.
"""

import logging
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from reprise.runtime.errors import UserError
from reprise.runtime.files import disk_errors
from reprise.runtime.registry import nearest

if TYPE_CHECKING:
    from rich.console import Console

LEVELS = ("debug", "info", "warning", "error")
# `python main.py` is "__main__" to logging, `python -m reprise.main` too; imported it is "reprise.main".
_OUR_LOGGERS = ("reprise", "__main__")
_PLAIN_FORMAT = "%(asctime)s %(levelname)s %(message)s"

_handlers: list[logging.Handler] = []


def setup(level: str, rank: int, file: Path | None = None) -> None:
    """Send log records and Python warnings of this process where they belong. A later call replaces an earlier one.

    `level` (one of LEVELS, any case) is rank 0's on stderr; other ranks write WARNING and above, each line with
    its rank. `file` (rank 0 only; appended to) gets the same and never less than INFO, whatever the terminal shows.
    Raises UserError for an unknown level or a file that cannot be written.
    """
    threshold = _threshold(level)
    handlers: list[logging.Handler] = []
    if rank == 0:
        handlers.append(_terminal_handler(threshold))
        if file is not None:
            handlers.append(_file_handler(file, min(threshold, logging.INFO)))
    else:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[0].setLevel(max(threshold, logging.WARNING))
        handlers[0].setFormatter(logging.Formatter(f"[rank {rank}] %(levelname)s %(message)s"))

    root = logging.getLogger()
    for old in _handlers:
        root.removeHandler(old)
        old.close()
    _handlers[:] = handlers
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _OUR_LOGGERS:
        logging.getLogger(name).setLevel(min(handler.level for handler in handlers))
    logging.captureWarnings(True)


@cache
def console() -> "Console":
    """The process's rich console on stderr; log lines and progress bars must share it.

    Launchers pipe their workers' output, so a bar could never be drawn under them. REPRISE_TERMINAL names a terminal
    (`REPRISE_TERMINAL=$(tty) horovodrun ...`) that rank 0 draws on directly; log lines go there too.
    """
    from rich.console import Console

    terminal = os.environ.get("REPRISE_TERMINAL")
    if not terminal or sys.stderr.isatty():
        return Console(stderr=True)
    try:
        return Console(file=open(terminal, "w", encoding="utf-8"))
    except OSError as error:
        logging.getLogger(__name__).warning("cannot draw on REPRISE_TERMINAL '%s': %s", terminal, error.strerror)
        return Console(stderr=True)


def _threshold(level: str) -> int:
    name = level.lower()
    if name not in LEVELS:
        hint = nearest(name, LEVELS)
        raise UserError(f"log level '{level}' is unknown{hint or ';'} choose one of: {', '.join(LEVELS)}")
    return int(getattr(logging, name.upper()))


def _terminal_handler(threshold: int) -> logging.Handler:
    handler: logging.Handler
    if console().is_terminal:
        from rich.logging import RichHandler

        handler = RichHandler(console=console(), show_path=False, log_time_format="[%X]", omit_repeated_times=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_PLAIN_FORMAT, datefmt="%H:%M:%S"))
    handler.setLevel(threshold)
    return handler


def _file_handler(file: Path, threshold: int) -> logging.Handler:
    with disk_errors("write", file):
        handler = _LogFile(file, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter(_PLAIN_FORMAT))
    handler.setLevel(threshold)
    return handler


class _LogFile(logging.FileHandler):
    """log.txt. A full disk is said once, and ends the file and not the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        self.setLevel(logging.CRITICAL + 1)
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()  # fails again on what could not be written
        logging.getLogger(__name__).error("%s ends here: %s", self.baseFilename, error)
