"""Who the other ranks are (host, process id, cores), so that a failure can be reported with the name of the dead one.

Only processes of this node can be looked up. Exchanged once, by the communicator, when it starts.
"""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

_PATIENCE_S = 2.0  # connections break while a process dies, a little before it is gone
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Peer:
    """One rank's process. cores: the CPU cores it may run on, by number."""

    rank: int
    host: str
    pid: int
    cores: frozenset[int]

    @staticmethod
    def own(rank: int) -> "Peer":
        return Peer(rank, socket.gethostname(), os.getpid(), frozenset(_cores()))

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}:{self.pid})"


def gone(peers: Sequence[Peer], patience_s: float = _PATIENCE_S) -> list[Peer]:
    """Those of `peers` whose process has ended, all of this node; waits up to `patience_s` for the first of them."""
    deadline = time.monotonic() + patience_s
    while True:
        dead = [peer for peer in peers if not _alive(peer.pid)]
        if dead or time.monotonic() >= deadline:
            return dead
        time.sleep(_LOOK_EVERY_S)


def fair_share_of_cores(own: Peer, peers: Sequence[Peer]) -> int:
    """Cores for one rank, at least 1: its own, divided among the ranks of its node that may run on the same ones.

    A launcher that already binds each rank to cores of its own leaves them all to it.
    """
    sharers = sum(1 for peer in peers if peer.host == own.host and peer.cores & own.cores)
    return max(1, len(own.cores) // max(1, sharers))


def _alive(pid: int) -> bool:
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return bool(status not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))  # a zombie: killed, not yet collected


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
