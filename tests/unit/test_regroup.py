"""The memory dealt out anew over ranks that have changed, ranks as threads; real processes are in test_elastic.py."""

import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from reprise import cpp_loader
from reprise.buffer import Field, RehearsalBuffer, keep, take_up
from reprise.buffer.policies import POLICIES
from reprise.buffer.policies.random_words import RandomWords

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))  # thread_comm is shared with the contract suite
from thread_comm import run_ranks

FIELDS = {"id": Field((), torch.int64), "x": Field((3,), torch.float16)}
IMPLEMENTATIONS = ("python", "standard") if cpp_loader.available() else ("python",)


def make(comm, policy, implementation="python"):
    return RehearsalBuffer(FIELDS, 24, (4,), policy=policy, implementation=implementation, dist=comm)


def shard(buffer):
    return buffer.state_dict()["engine"]["shard"]


def fill(buffer, comm, batches):
    for batch in range(batches):
        ids = torch.arange(batch * 12 + comm.rank, batch * 12 + 12, comm.size)
        buffer.wait()
        buffer.submit(id=ids, x=(ids.view(-1, 1) % 7).half().expand(-1, 3), y=ids % 4, task=ids // 9)


def kept_of(ranks, policy, implementation="python", batches=10, folder=None):
    def work(comm):
        buffer = make(comm, policy, implementation)
        fill(buffer, comm, batches)
        if folder:
            buffer.save(folder)
        ids = shard(buffer)["columns"]["id"].tolist()
        comm.barrier()
        return ids, keep(buffer)

    return [list(column) for column in zip(*run_ranks(ranks, work), strict=True)]


def taken_up(ranks, kept, policy, implementation="python"):
    def work(comm):
        buffer = make(comm, policy, implementation)
        losses = take_up(buffer, kept[comm.rank] if comm.rank < len(kept) else None, comm)
        contents = shard(buffer)
        fill(buffer, comm, 2)  # it goes on
        buffer.close()
        return contents, losses

    contents, losses = zip(*run_ranks(ranks, work), strict=True)
    assert all(one == losses[0] for one in losses)
    return contents, losses[0]


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return np.array_equal(np.asarray(one), np.asarray(other))


def adopt(heir, *gone):
    columns = {rank: its for one in (heir, *gone) for rank, its in one.columns.items()}
    counted = {rank: its for one in (heir, *gone) for rank, its in one.counted.items()}
    return replace(heir, columns=columns, counted=counted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 3), (1, 2), (3, 2), (3, 1)])
def test_ranks_that_meet_anew_hold_what_they_would_restore_from_a_saved_buffer(
    tmp_path, before, after, policy, implementation
):
    """Where a saved buffer on other ranks goes, and that probabilities go on, is in test_snapshot.py."""
    ids, kept = kept_of(before, policy, implementation, folder=tmp_path)
    if after < before:
        kept = [*kept[: after - 1], adopt(*kept[after - 1 :])]
    contents, losses = taken_up(after, kept, policy, implementation)
    everything = sorted(chain(*ids))
    assert sorted(id_ for one in contents for id_ in one["columns"]["id"].tolist()) == everything
    assert losses.kept == len(everything)
    assert losses.adopted == {rank: len(ids[rank]) for rank in range(after, before)}
    assert not losses.lost
    for one in contents:
        numbers = one["columns"]["id"]
        assert torch.equal(one["columns"]["x"], (numbers.view(-1, 1) % 7).half().expand(-1, 3))
        assert torch.equal(one["columns"]["y"], numbers % 4)
        assert torch.equal(one["columns"]["task"], numbers // 9)
    if after != before:

        def restored(comm):
            arguments = {"draws": (4,), "policy": policy, "implementation": implementation, "dist": comm}
            with RehearsalBuffer.restore(tmp_path, fields=FIELDS, capacity=24, **arguments) as buffer:
                state = shard(buffer)
                comm.barrier()
                return state

        assert equal(dict(enumerate(contents)), dict(enumerate(run_ranks(after, restored))))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_nobody_has_kept_is_lost_and_counted(implementation):
    ids, kept = kept_of(3, "reservoir", implementation)
    contents, losses = taken_up(2, kept[:2], "reservoir", implementation)
    assert losses.lost == {2: len(ids[2])}
    assert losses.kept == len(ids[0]) + len(ids[1]) == sum(len(one["columns"]["y"]) for one in contents)
    assert not losses.adopted


def test_what_two_have_kept_counts_once():
    ids, kept = kept_of(3, "class_balanced")
    contents, losses = taken_up(2, [adopt(kept[0], kept[2]), adopt(kept[1], kept[2])], "class_balanced")
    stored = [id_ for one in contents for id_ in one["columns"]["id"].tolist()]
    assert sorted(stored) == sorted(chain(*ids))
    assert losses.adopted == {2: len(ids[2])}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_memory_that_was_never_used_is_dealt_out_too(implementation):
    _, kept = kept_of(2, "fifo", implementation, batches=0)
    contents, losses = taken_up(3, kept, "fifo", implementation)
    assert [len(one["columns"]["y"]) for one in contents] == [0, 0, 0]
    assert losses.kept == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("batches", [0, 1, 3, 11, 40])
def test_a_policy_is_recovered_from_the_samples_it_has_stored(policy, batches):
    share, random = 16, np.random.default_rng(batches)
    own, words = POLICIES[policy](share), RandomWords(5, 0)
    labels, writes = np.zeros(share, dtype=np.int64), np.zeros(share, dtype=np.int64)
    for step in range(batches):
        batch = random.integers(0, 5, 6)
        rows, slots = own.insert(batch, 6, step, words)
        labels[slots] = batch[rows]
        writes[slots] += 2
    slots = np.arange(own.stored)
    state = POLICIES[policy].recover(labels[slots], writes[slots], own.inverse_inclusion(slots), own.mass())
    found = POLICIES[policy](share)
    found.load_state_dict(state)
    assert found.stored == own.stored
    assert found.mass() == own.mass()
    assert np.array_equal(found.ages(), own.ages())
    assert np.allclose(found.inverse_inclusion(slots), own.inverse_inclusion(slots))
