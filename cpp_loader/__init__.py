"""The C++ engine, as far as it is there.

Says whether the compiled module `reprise.cpp_loader._core` can be imported and, if not, why. What to do without it is
not decided here: that is the buffer's business, the only caller.
"""

import ctypes
import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reprise.cpp_loader._core import Engine

UCX = "libucp.so.0"

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


def ucx_library() -> str:
    """What to open UCX by: the library that the process or the system has, else that of the libucx package."""
    try:
        ctypes.CDLL(UCX)
        return UCX
    except OSError:
        package = find_spec("libucx")
        folder = Path(package.origin).parent if package and package.origin else None
        return str(folder / "lib" / UCX) if folder else UCX


def why_no_network() -> str:
    """Why samples of ranks on other nodes cannot be read; empty when they can."""
    if _why_not:
        return f"the C++ module does not load ({_why_not})"
    return str(_core.why_no_network(ucx_library()))


def engine() -> "type[Engine]":
    """The engine's class; ask `available()` first."""
    found: type[Engine] = _core.Engine
    return found
