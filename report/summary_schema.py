"""The keys and types of summary.json: what a run writes, what the comparison of runs and other people's scripts read.

Not for printing (summary.py) nor for computing (matrix.py, main.py).
"""

import json
import math
from pathlib import Path
from typing import Any

from reprise.runtime.errors import UserError

FILE_NAME = "summary.json"

# Fractions; null only when the run evaluated nothing (--training-only), or reconstructs.
ACCURACIES = (
    "average_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "average_accuracy_task_il",
)
# In the units of the targets; null unless the run reconstructs.
ERRORS = ("average_error", "error_increase")
_INTEGERS = ("tasks", "seed", "world_size", "buffer_bytes_per_rank", "samples_stored")
_STRINGS = ("launcher", "strategy", "buffer_implementation", "buffer_transport")
NUMBERS = ("images_per_second", "train_seconds", "wait_share")
# What runs can be compared by: one number each.
MEASURED = (*ACCURACIES, *ERRORS, *NUMBERS)
_PERCENTILES = ("step_ms", "wait_ms")
KEYS = frozenset((*ACCURACIES, *ERRORS, *_INTEGERS, *_STRINGS, *NUMBERS, *_PERCENTILES))


def check(summary: Any) -> None:
    """Raise ValueError naming the first key that is missing, unknown, of the wrong type, or not finite.

    A run without a buffer says "none" for `buffer_implementation` and `buffer_transport`, and 0 bytes and samples.
    """
    if not isinstance(summary, dict):
        raise ValueError(f"expected a mapping of {len(KEYS)} keys, got {type(summary).__name__}")
    if missing := KEYS - summary.keys():
        raise ValueError(f"missing {', '.join(sorted(missing))}")
    if unknown := summary.keys() - KEYS:
        raise ValueError(f"unknown {', '.join(sorted(unknown))}")
    for key in (*ACCURACIES, *ERRORS):
        if summary[key] is not None:
            _check_number(key, summary[key])
    for key in NUMBERS:
        _check_number(key, summary[key])
    for key in _INTEGERS:
        if not isinstance(summary[key], int) or isinstance(summary[key], bool):
            raise ValueError(f"{key} is {summary[key]!r}, expected an integer")
    for key in _STRINGS:
        if not isinstance(summary[key], str) or not summary[key]:
            raise ValueError(f"{key} is {summary[key]!r}, expected a name")
    for key in _PERCENTILES:
        entry = summary[key]
        if not isinstance(entry, dict) or entry.keys() != {"p50", "p95"}:
            raise ValueError(f"{key} is {entry!r}, expected p50 and p95")
        for name, value in entry.items():
            _check_number(f"{key}.{name}", value)


def read(run_folder: Path) -> dict[str, Any]:
    """The summary of a finished run; UserError when it is missing, unreadable or not a summary."""
    path = run_folder / FILE_NAME
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        check(summary)
    except FileNotFoundError as error:
        raise UserError(f"'{path}' does not exist; name the folder of a finished run, e.g. results/demo-er") from error
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}; name the folder of a finished run") from error
    except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
        raise UserError(f"'{path}' is no summary of a run ({error}); run it again or leave it out") from error
    return dict(summary)


def _check_number(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, expected a finite number")
