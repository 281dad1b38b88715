"""The C++ engine, as far as it is there.

Says whether the compiled module `reprise.cpp_loader._core` can be imported and, if not, why. What to do without it is
not decided here: that is the buffer's business, the only caller.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reprise.cpp_loader._core import Engine

_why_not = ""
try:
    _core = importlib.import_module("reprise.cpp_loader._core")
except ImportError as error:
    _why_not = str(error)


def available() -> bool:
    """Whether the compiled engine was built and loads on this machine."""
    return not _why_not


def why_not() -> str:
    """The text of the ImportError that keeps the engine from loading; empty when it is available."""
    return _why_not


def engine() -> "type[Engine]":
    """The engine's class; ask `available()` first."""
    found: type[Engine] = _core.Engine
    return found
