"""The memory of a job whose ranks change while it runs: kept by those that go on, dealt out anew over those there are.

`keep` before the ranks meet anew, `take_up` afterwards. A rank whose process has ended leaves its samples in its node's
shared memory: the first rank of the node that goes on keeps them along with its own. What nobody has kept is lost, and
counted.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reprise.buffer.deal import Counted, Deal, deal
from reprise.buffer.policies import POLICIES
from reprise.buffer.policies.random_words import Int64s
from reprise.buffer.rehearsal import RehearsalBuffer
from reprise.buffer.schema import Columns, Spec, as_words, share_of
from reprise.runtime.dist import Communicator

_ROUND_BYTES = 64 << 20


@dataclass(frozen=True)
class Kept:
    """What a rank brings. columns, counted: of each shard it has kept, by the rank that it was of; its own is `rank`.
    held: how many samples each other rank had stored, as far as this one knew.
    """

    rank: int
    step: int
    columns: dict[int, Columns]
    counted: dict[int, Counted]
    held: dict[int, int]


@dataclass(frozen=True)
class Losses:
    """Samples, over all ranks: kept; of them adopted from ranks that are gone, by rank; lost with ranks, by rank."""

    kept: int
    adopted: dict[int, int]
    lost: dict[int, int]


def keep(buffer: RehearsalBuffer) -> Kept:
    """Copy this rank's samples, and those of ranks that are gone which it is to adopt; closes the buffer."""
    spec = buffer.spec
    state = buffer.state_dict()["engine"]
    shards, held = {spec.rank: state["shard"]}, {}
    for estate in buffer.estates():
        held[estate.rank] = estate.held
        if estate.columns is None:
            continue
        labels = estate.columns["y"].numpy()
        policy = POLICIES[spec.policy].recover(labels, estate.writes, estate.inverse_inclusion, estate.mass)
        shards[estate.rank] = {"submitted": estate.mass, "policy": policy, "columns": estate.columns}
    buffer.close()
    columns = {rank: shard["columns"] for rank, shard in shards.items()}
    counted = {
        rank: Counted.of(shard, share_of(spec.capacity, rank, spec.world_size)) for rank, shard in shards.items()
    }
    return Kept(spec.rank, int(state["step"]), columns, counted, held)


def take_up(buffer: RehearsalBuffer, kept: Kept | None, comm: Communicator) -> Losses:
    """Fill a new, empty buffer with its part of what all ranks have kept; None: this rank is new. Collective."""
    spec = buffer.spec
    own = None if kept is None else replace(kept, columns={})
    came = {rank: one for rank, one in enumerate(comm.allgather_object(own, name="rehearsal.regroup")) if one}
    # Of a shard that two have kept, the first one's counts: ranks that went at the same time were seen to go apart.
    holder: dict[int, int] = {}
    for rank, one in came.items():
        for old in one.counted:
            holder.setdefault(old, rank)
    shards = sorted((rank, old) for old, rank in holder.items())
    dealt = deal(spec.policy, [came[rank].counted[old] for rank, old in shards], comm.size)
    columns = _exchange(dealt, shards, kept.columns if kept else {}, spec, comm)
    state = {"submitted": int(dealt.submitted[comm.rank]), "policy": dealt.policies[comm.rank], "columns": columns}
    buffer.go_on(state, max(one.step for one in came.values()))
    return _losses(came, holder)


def _losses(came: dict[int, Kept], holder: dict[int, int]) -> Losses:
    owners = {one.rank for one in came.values()}
    sizes = {old: len(came[rank].counted[old].labels) for old, rank in holder.items()}
    held: dict[int, int] = {}
    for one in came.values():
        for old, count in one.held.items():
            held[old] = max(held.get(old, 0), count)
    lost = {old: count - sizes.get(old, 0) for old, count in held.items() if old not in owners}
    adopted = {old: size for old, size in sizes.items() if old not in owners}
    return Losses(sum(sizes.values()), adopted, {old: count for old, count in lost.items() if count > 0})


def _exchange(
    dealt: Deal, shards: list[tuple[int, int]], own: dict[int, Columns], spec: Spec, comm: Communicator
) -> dict[str, Tensor]:
    """Send every sample to its new rank. shards: (rank that has it, rank that it was of), in the order of the deal."""
    mine = [(number, old) for number, (rank, old) in enumerate(shards) if rank == comm.rank]
    outgoing = [[(old, dealt.slots(to, number)) for number, old in mine] for to in range(comm.size)]
    # What comes from each rank is one stretch of what comes shard after shard.
    counts = [0] * comm.size
    for number, (rank, _) in enumerate(shards):
        counts[rank] += len(dealt.slots(comm.rank, number))
    places = np.split(dealt.places(comm.rank), np.cumsum(counts)[:-1])
    columns = {}
    for name, field in spec.stored_columns.items():
        column = field.empty(sum(counts), torch.device("cpu"))
        sources = {old: as_words(own[old][name]) for _, old in mine}
        target = as_words(column)
        pieces = [_Outgoing([(sources[old], slots) for old, slots in to], target) for to in outgoing]
        rows = max(1, _ROUND_BYTES // max(field.nbytes, 1) // comm.size)
        longest = max([*counts, *(len(piece) for piece in pieces)])
        rounds = -(-max(comm.allgather_object(longest, name="rehearsal.rounds")) // rows)
        for start in range(0, rounds * rows, rows):
            batch = [piece.rows(start, rows) for piece in pieces]
            received, splits = comm.alltoall(torch.cat(batch), [len(part) for part in batch], name="rehearsal.regroup")
            for part, place in zip(received.split(splits.tolist()), places, strict=True):
                target.index_copy_(0, torch.from_numpy(place[start : start + len(part)]), part)
        columns[name] = column
    return columns


class _Outgoing:
    """The rows of several shards, one after the other, gathered a stretch at a time. like: a tensor of such rows."""

    def __init__(self, parts: list[tuple[Tensor, Int64s]], like: Tensor) -> None:
        self._parts = parts
        self._like = like

    def __len__(self) -> int:
        return sum(len(slots) for _, slots in self._parts)

    def rows(self, start: int, count: int) -> Tensor:
        chosen = []
        for source, slots in self._parts:
            wanted = slots[max(start, 0) : max(start + count, 0)]
            chosen.append(source.index_select(0, torch.from_numpy(wanted)))
            start -= len(slots)
        return torch.cat(chosen) if chosen else self._like[:0]
