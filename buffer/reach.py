"""How this rank reads the samples of the others: decided once, by all ranks together, when a buffer is made.

On one node through shared memory, between nodes through UCX, and where neither reaches through collectives, which the
Python engine does. All ranks must come to the same answer, so everything it depends on is exchanged first, once in a
job: ranks stay where they are. Nothing is allocated for samples or connected here.
"""

import contextlib
import os
import secrets
import socket
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from reprise.buffer import native_engine
from reprise.buffer.native_engine import Reach
from reprise.buffer.schema import Spec
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import SharedUserError, UserError
from reprise.runtime.registry import nearest

T = TypeVar("T")
TRANSPORTS = ("auto", "shm", "ucx", "collectives")


def check(transport: str, implementation: str) -> None:
    """Raise UserError for a transport that is unknown or cannot go with the implementation."""
    if transport not in TRANSPORTS:
        hint = nearest(str(transport), TRANSPORTS)
        raise UserError(f"unknown transport '{transport}'{hint or ';'} choose one of: {', '.join(TRANSPORTS)}")
    if implementation == "python" and transport in ("shm", "ucx"):
        raise UserError(f"transport '{transport}' needs the C++ engine; 'python' reads other ranks through collectives")


def decide(spec: Spec, comm: Communicator, implementation: str, transport: str) -> Reach:
    """Find out how ranks reach each other; a collective with several ranks and scope global.

    Raises SharedUserError when the transport asked for does not reach everybody.
    """
    why_python = "" if implementation == "python" else native_engine.why_not()
    if not spec.exchanges:
        return Reach("none", why_python)
    if implementation == "python":
        return Reach("collectives")
    ranks = _ranks(comm)
    names = tuple(f"rank {rank} ({one.host}:{one.pid})" for rank, one in enumerate(ranks))
    for name, one in zip(names, ranks, strict=True):
        if one.why_no_engine:
            return Reach("collectives", f"{name}: {one.why_no_engine}", names)
    if transport == "collectives":
        return Reach("collectives", "transport 'collectives' was asked for", names)
    # A machine on which anybody is hidden is as many machines as it has ranks.
    broken = {one.machine for one in ranks if one.why_hidden}
    machines = [f"{one.machine} {rank}" if one.machine in broken else one.machine for rank, one in enumerate(ranks)]
    if transport != "ucx" and len(set(machines)) == 1:
        return Reach("shm", "", names, frozenset(range(comm.size)))
    why_apart = next(
        (
            f"{name} cannot read its neighbour's memory ({one.why_hidden})"
            for name, one in zip(names, ranks, strict=True)
            if one.why_hidden
        ),
        f"ranks are on {len(set(machines))} nodes",
    )
    if transport == "shm":
        raise SharedUserError(f"transport 'shm' does not reach all ranks: {why_apart}; use transport 'auto'")
    for name, reason in zip(names, _why_no_network(comm), strict=True):
        if reason:
            if transport == "ucx":
                raise SharedUserError(f"transport 'ucx': {name}: {reason}")
            return Reach("collectives", f"{why_apart}, and {name}: {reason}", names)
    key = int(ranks[0].beacon[1], 16)
    if transport == "ucx":
        # Where all are on one node nothing needs to listen beyond it.
        interface = "lo" if len({one.machine for one in ranks}) == 1 else ""
        return Reach("ucx", "", names, frozenset({comm.rank}), interface, key)
    mapped = frozenset(rank for rank in range(comm.size) if machines[rank] == machines[comm.rank])
    return Reach("ucx" if len(set(machines)) == comm.size else "shm+ucx", "", names, mapped, "", key)


@dataclass(frozen=True)
class _Rank:
    host: str
    pid: int
    machine: str  # ranks with the same may map each other's memory
    beacon: tuple[int, str]  # descriptor and contents of a piece of memory
    why_no_engine: str
    why_hidden: str = ""  # why it cannot read its neighbour's memory

    @staticmethod
    def own(beacon: tuple[int, str], why_no_engine: str) -> "_Rank":
        return _Rank(socket.gethostname(), os.getpid(), _machine(), beacon, why_no_engine)


def _machine() -> str:
    """What processes that see each other in /proc have in common, and may look at each other's descriptors."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    except OSError:
        return f"{socket.gethostname()}:{os.getpid()}"


def _once_in_a_job(find: Callable[[Communicator], T]) -> Callable[[Communicator], T]:
    """Keep what a collective has found with the communicator."""
    found: weakref.WeakKeyDictionary[Communicator, T] = weakref.WeakKeyDictionary()

    def look(comm: Communicator) -> T:
        if comm not in found:
            found[comm] = find(comm)
        return found[comm]

    return look


@_once_in_a_job
def _ranks(comm: Communicator) -> list[_Rank]:
    with _beacon() as beacon:  # its contents serve as the job's secret too
        ranks = comm.collect(lambda: _Rank.own(beacon, native_engine.why_not()), name="rehearsal.ranks")
        neighbour = _next_on_machine(ranks, comm.rank)
        hidden = comm.collect(lambda: _why_hidden(ranks[neighbour]), name="rehearsal.neighbours")
    return [replace(one, why_hidden=reason) for one, reason in zip(ranks, hidden, strict=True)]


@_once_in_a_job
def _why_no_network(comm: Communicator) -> list[str]:
    # Asked late: looking for UCX loads it, which a process that does not need it should be spared.
    return comm.collect(native_engine.why_no_network, name="rehearsal.network")


def _next_on_machine(ranks: list[_Rank], own: int) -> int:
    beside = [rank for rank, one in enumerate(ranks) if one.machine == ranks[own].machine]
    return beside[(beside.index(own) + 1) % len(beside)]


@contextlib.contextmanager
def _beacon() -> Iterator[tuple[int, str]]:
    """A piece of memory like the samples', for others to find: what keeps them from it keeps them from those too."""
    text = secrets.token_hex(8)
    descriptor = os.memfd_create("reprise-beacon", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        yield descriptor, text
    finally:
        os.close(descriptor)


def _why_hidden(neighbour: _Rank) -> str:
    descriptor, text = neighbour.beacon
    try:
        found = Path(f"/proc/{neighbour.pid}/fd/{descriptor}").read_text()
    except OSError as error:
        return error.strerror or str(error)
    return "" if found == text else "it is another process there"
