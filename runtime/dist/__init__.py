"""Processes and collectives: Horovod, torch.distributed, or one process alone, from how this process was started.

`comm = dist.init()` once, in main.py; `dist.current()` wherever else a communicator is needed. The interface is
base.Communicator. Nothing outside this package imports Horovod or torch.distributed.

REPRISE_DIST=horovod|torch|solo overrides the choice. REPRISE_TIMEOUT is the limit of a collective in seconds.
"""

import math
import os
import socket

from reprise.runtime.dist.base import Communicator
from reprise.runtime.dist.launcher import Launch, detect
from reprise.runtime.dist.watchdog import Watchdog
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest

__all__ = ["ENGINES", "Communicator", "current", "init", "is_initialized", "regroup"]

ENGINES = ("horovod", "torch", "solo")
DEFAULT_TIMEOUT_S = 300.0

_current: Communicator | None = None


def init(*, deterministic: bool = False, timeout: float | None = None) -> Communicator:
    """Start communicating; a collective. Later calls return the same communicator until its shutdown().

    deterministic: averaging the same gradients gives the same bits in every run of this world size. timeout: limit
    of a collective in seconds, default REPRISE_TIMEOUT or 300. Raises UserError when the launcher announces several
    processes that cannot reach each other; never runs them as separate jobs unless REPRISE_DIST=solo asks for that.
    """
    global _current
    if is_initialized():
        assert _current is not None
        assert _current.deterministic or not deterministic, "init(deterministic=True) must be the first init() of all"
        return _current
    launch = detect()
    engine = _engine(launch)
    watchdog = Watchdog(_limit_s(timeout), f"rank {launch.rank} of {launch.size} on {socket.gethostname()}")
    if engine == "horovod":
        from reprise.runtime.dist.horovod_engine import HorovodCommunicator

        _current = HorovodCommunicator(launch, watchdog, deterministic=deterministic)
    elif engine == "torch":
        from reprise.runtime.dist.torch_engine import TorchCommunicator

        _current = TorchCommunicator(launch, watchdog, deterministic=deterministic)
    else:
        from reprise.runtime.dist.solo import SoloCommunicator

        _current = SoloCommunicator(launch.launcher, watchdog, deterministic=deterministic)
    return _current


def regroup(comm: Communicator) -> Communicator:
    """Meet the ranks that there are now, after `comm` has lost one or others want to join. Collective.

    Only where `comm.elastic`. Everything that was made with `comm` is useless afterwards.
    """
    assert comm.elastic, "the launcher of this job replaces no ranks"
    comm.leave()
    return init(deterministic=comm.deterministic, timeout=comm.limit_s)


def current() -> Communicator:
    """The communicator of this process; starts one, as init() does, where there is none."""
    return init()


def is_initialized() -> bool:
    """Whether init() was called and the communicator has not been shut down."""
    return _current is not None and not _current.closed


def _engine(launch: Launch) -> str:
    asked = os.environ.get("REPRISE_DIST")
    if asked is not None:
        if asked not in ENGINES:
            hint = nearest(asked, ENGINES)
            raise UserError(f"REPRISE_DIST='{asked}' is unknown{hint or ';'} choose one of: {', '.join(ENGINES)}")
        return asked
    if os.environ.get("HOROVOD_ELASTIC") == "1":
        return "horovod"  # also when it starts with one process
    if launch.launcher == "torchrun":
        return "torch"
    return "solo" if launch.size == 1 else "horovod"


def _limit_s(timeout: float | None) -> float:
    if timeout is None:
        text = os.environ.get("REPRISE_TIMEOUT", str(DEFAULT_TIMEOUT_S))
        source = "REPRISE_TIMEOUT"
    else:
        text, source = str(timeout), "timeout"
    try:
        limit_s = float(text)
    except ValueError:
        limit_s = math.nan
    if not (math.isfinite(limit_s) and limit_s > 0):
        raise UserError(f"{source}='{text}' is not a number of seconds above 0; leave it out for {DEFAULT_TIMEOUT_S:g}")
    return limit_s
