"""Going on when the ranks of a job change while it runs (Horovod Elastic): what each keeps, what all then go on from.

Parameters are the same on all ranks after every step, so nothing has to be put aside for the case: whoever has taken
the most steps when a rank is lost has the state that all go on from. A step that somebody has begun counts as done, as
its samples may be stored already.
"""

import logging
from dataclasses import dataclass
from typing import Any

from reprise.buffer import Kept, Losses, RehearsalBuffer, keep
from reprise.cl_models.base import ContinualModel
from reprise.runtime.dist import Communicator
from reprise.train.checkpoint import Progress, on_host

logger = logging.getLogger(__name__)


@dataclass
class Carried:
    """What a rank brings to the next set of ranks. updates: steps whose update it has taken. names: of all ranks there
    were; rank: which of them it was.
    """

    progress: Progress
    updates: int
    state: dict[str, Any]
    memory: Kept | None
    names: list[str]
    rank: int
    spent: bool = False

    def spend(self) -> None:
        """The next set of ranks has it all: let go of the copies."""
        self.state, self.memory, self.spent = {}, None, True


@dataclass(frozen=True)
class Shared:
    """What all ranks go on from. lost: names, by former rank, of those that are gone; joined: how many are new."""

    progress: Progress
    state: dict[str, Any]
    lost: dict[int, str]
    joined: int


def carry(
    progress: Progress,
    updates: int,
    strategy: ContinualModel,
    buffer: RehearsalBuffer | None,
    comm: Communicator,
) -> Carried:
    """Keep what this rank has, and end its buffer."""
    memory = None if buffer is None else keep(buffer)
    return Carried(progress, updates, on_host(strategy.state_dict()), memory, comm.names, comm.rank)


def share(carried: Carried | None, comm: Communicator) -> Shared | None:
    """Agree on what to go on from; None: all ranks are new. Collective."""
    own = None if carried is None else (carried.progress, carried.updates, carried.names, carried.rank)
    came = {rank: one for rank, one in enumerate(comm.allgather_object(own, name="regroup")) if one is not None}
    if not came:
        return None
    progress = max((one[0] for one in came.values()), key=lambda one: one.age)
    root = max(came, key=lambda rank: (came[rank][1], -rank))
    state = comm.broadcast_object(carried.state if carried and comm.rank == root else {}, root=root, name="regroup")
    names = came[root][2]
    stayed = {one[3] for one in came.values()}
    return Shared(progress, state, {r: n for r, n in enumerate(names) if r not in stayed}, comm.size - len(came))


def report(shared: Shared, losses: Losses | None, comm: Communicator) -> None:
    """One line per event, on rank 0."""
    if comm.rank:
        return
    at = f"step {shared.progress.steps}"
    for rank, name in shared.lost.items():
        memory = ""
        if losses and rank in losses.adopted:
            memory = f"; its {losses.adopted[rank]} stored samples were adopted from its node's memory"
        if losses and rank in losses.lost:
            memory += f"; {losses.lost[rank]} stored samples are lost with it"
        logger.warning("%s was lost: going on at %s with %d rank(s)%s", name, at, comm.size, memory)
    if shared.joined:
        logger.warning("%d rank(s) have joined: going on at %s with %d", shared.joined, at, comm.size)
    if not shared.lost and not shared.joined:
        logger.warning("the ranks have met anew: going on at %s with %d", at, comm.size)
    if losses:
        logger.info("rehearsal buffer: %d samples dealt out anew over %d rank(s)", losses.kept, comm.size)
