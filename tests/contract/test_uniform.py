"""Contract 2: a draw is r different stored samples of all ranks, every one equally likely. By chi-square, fixed seeds.

The reference never draws index 0, favours some classes twice and loops for ever when r exceeds what exists
(rehearsal.md 6.2-6 and 6.2-8, anchors.md A.3-8 and A.3-9).
"""

import numpy as np
import pytest
import torch
from chi_square import REJECT, equal_p, inclusion_p, independent_p
from streams import PER_RANK, ask, feed, identities, started

ENOUGH = 500_000  # drawn samples


def stored_on(rank, size):
    """Unequal shards; with several ranks the first one is empty."""
    return 1500 if size == 1 else rank * 1500


def filled(make, comm, **changes):
    most = max(stored_on(rank, comm.size) for rank in range(comm.size))
    buffer = started(make(capacity=most * comm.size, **changes))
    feed(buffer, identities(comm.rank, 0, stored_on(comm.rank, comm.size)))
    return buffer


def global_numbers(ids, size):
    """0 .. total - 1, rank after rank."""
    offsets = np.cumsum([0] + [stored_on(rank, size) for rank in range(size)])
    return offsets[ids // PER_RANK] + ids % PER_RANK


def test_every_stored_sample_of_every_rank_is_drawn_equally_often(make, comm):
    total = sum(stored_on(rank, comm.size) for rank in range(comm.size))
    draw_size = total // 3
    steps = -(-ENOUGH // (draw_size * comm.size))
    buffer = filled(make, comm, draws=(draw_size,), seed=11)
    counts = torch.zeros(total, dtype=torch.int64)
    for _ in range(steps):
        (draw,) = buffer.wait()
        ids = draw["id"].numpy()
        assert len(np.unique(ids)) == draw_size
        counts += torch.from_numpy(np.bincount(global_numbers(ids, comm.size), minlength=total))
        ask(buffer)
    counts = comm.allreduce(counts, op="sum").numpy()
    assert counts.sum() >= ENOUGH
    assert counts[0] > 0
    assert counts[-1] > 0
    assert inclusion_p(counts, steps * comm.size, draw_size) > REJECT


def test_the_statistic_rejects_the_references_draw():
    """Index 0 never drawn, and the first classes twice as often (anchors.md A.3-8, A.3-9)."""
    random = np.random.default_rng(1)
    size, total, steps = 100, 307, 2000
    for odds in (np.r_[0, np.ones(total - 1)], np.r_[np.full(20, 2), np.ones(total - 20)]):
        counts = np.zeros(total, dtype=np.int64)
        for _ in range(steps):
            counts[random.choice(total, size, replace=False, p=odds / odds.sum())] += 1
        assert inclusion_p(counts, steps, size) < 1e-6


def test_every_sample_is_drawn_equally_often_while_the_buffer_fills(make, comm):
    """Age of a drawn sample among those stored at that moment, in tenths: equally often each tenth."""
    buffer = started(make(capacity=10_000 * comm.size, draws=(40,), policy="fifo", seed=3))
    tenths = torch.zeros(10, dtype=torch.int64)
    ranks = torch.zeros(comm.size, dtype=torch.int64)
    for step in range(150):
        feed(buffer, identities(comm.rank, 20 * step, 20))
        (draw,) = buffer.wait()
        if step >= 3 * comm.size:
            per_rank = 20 * (step + 1)
            tenths += torch.bincount(draw["id"] % PER_RANK * 10 // per_rank, minlength=10)
            ranks += torch.bincount(draw["rank"], minlength=comm.size)
    assert equal_p(comm.allreduce(tenths, op="sum").numpy()) > REJECT
    if comm.size > 1:
        assert equal_p(comm.allreduce(ranks, op="sum").numpy()) > REJECT


def test_a_draw_larger_than_what_is_stored_returns_everything_once_in_random_order(make, comm):
    """anchors.md A.3-8: the reference loops for ever."""
    buffer = started(make(draws=(1000,) * 4, seed=15))
    stored = 6
    feed(buffer, identities(comm.rank, 0, stored))
    total = stored * comm.size
    everything = {rank * PER_RANK + i for rank in range(comm.size) for i in range(stored)}
    places = torch.zeros(total, total, dtype=torch.int64)  # sample x place
    for _ in range(100 // comm.size):  # every rank draws: the counts add up
        for draw in buffer.wait():
            ids = draw["id"]
            assert len(ids) == total
            assert set(ids.tolist()) == everything
            places[ids // PER_RANK * stored + ids % PER_RANK, torch.arange(total)] += 1
        ask(buffer)
    places = comm.allreduce(places, op="sum").numpy()
    for sample in (0, total // 2, total - 1):
        assert equal_p(places[sample]) > REJECT


def test_the_place_of_a_sample_within_a_draw_is_random_too(make, comm):
    """A strategy that uses the first k rows of a draw must get a uniform choice again."""
    buffer = started(make(draws=(6,) * 4, seed=6))
    feed(buffer, identities(comm.rank, 0, 5 if comm.size > 1 else 20))
    total = 5 * comm.size if comm.size > 1 else 20
    counts = torch.zeros(6, total, dtype=torch.int64)
    for _ in range(200 // comm.size):
        for draw in buffer.wait():
            ids = draw["id"]
            counts[torch.arange(len(ids)), (ids // PER_RANK - 0) * 5 + ids % PER_RANK] += 1
        ask(buffer)
    for place in comm.allreduce(counts, op="sum").numpy():
        assert equal_p(place) > REJECT


def test_draws_of_one_step_are_independent(make, comm):
    pairs = 5
    buffer = started(make(draws=(1, 1) * pairs, seed=7, scope="local"))
    feed(buffer, identities(comm.rank, 0, 6))
    table = torch.zeros(6, 6, dtype=torch.int64)
    for _ in range(2500 // pairs):
        drawn = [int(draw["id"]) % PER_RANK for draw in buffer.wait()]
        for first, second in zip(drawn[::2], drawn[1::2], strict=True):
            table[first, second] += 1
        ask(buffer)
    table = comm.allreduce(table, op="sum").numpy()
    assert independent_p(table) > REJECT
    assert equal_p(table.ravel()) > REJECT
    assert independent_p(table + np.eye(6, dtype=np.int64) * 25 * comm.size) < REJECT  # 2 % more doubles would show


def test_draws_of_different_steps_and_ranks_are_independent(make, comm):
    """rehearsal.md 6.1-12: with one seed on all ranks they all used to draw the same numbers."""
    draws = 6
    buffer = started(make(draws=(1,) * draws, seed=8))
    feed(buffer, identities(comm.rank, 0, 6 if comm.rank == 0 else 0))
    drawn = []
    for _ in range(200 if comm.size == 1 else 75):
        drawn.append([int(draw["id"]) for draw in buffer.wait()])
        ask(buffer)
    everyone = comm.allgather(torch.tensor(drawn)).numpy()  # rank, step, draw

    def table(left, right):
        counts = np.zeros((6, 6), dtype=np.int64)
        np.add.at(counts, (left.ravel(), right.ravel()), 1)
        return counts

    assert independent_p(sum(table(ids[:-1], ids[1:]) for ids in everyone)) > REJECT
    assert independent_p(table(everyone[0], everyone[0])) < 1e-6  # what one seed for all ranks would give
    for other in everyone[1:]:
        assert independent_p(table(everyone[0], other)) > REJECT


def test_scope_local_draws_from_this_rank_only(make, comm):
    """rehearsal.md 6.2-7: without global sampling the reference asks one rank for everything."""
    buffer = started(make(scope="local", draws=(10,)))
    feed(buffer, identities(comm.rank, 0, 20 + comm.rank))
    seen = set()
    for _ in range(60):
        (draw,) = buffer.wait()
        assert len(draw) == 10
        assert bool((draw["rank"] == comm.rank).all())
        seen |= set(draw["id"].tolist())
        ask(buffer)
    assert seen == set(identities(comm.rank, 0, 20 + comm.rank).tolist())


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_draw_of_no_samples_is_allowed(make, comm, scope):
    buffer = started(make(draws=(0, 3), scope=scope))
    feed(buffer, identities(comm.rank, 0, 10))
    none, three = buffer.wait()
    assert (len(none), len(three)) == (0, 3)


def test_an_empty_buffer_gives_empty_draws(make):
    buffer = started(make())
    ask(buffer)
    assert len(buffer.wait()[0]) == 0
    assert buffer.global_size == len(buffer) == 0
