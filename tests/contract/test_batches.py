"""augment() and rows(): contiguous batches built from the caller's rows and the draws, in two sets of memory."""

import gc
from time import perf_counter_ns

import pytest
import torch
from streams import (
    MANY_FIELDS,
    PER_RANK,
    assert_consistent,
    encode,
    feed,
    identities,
    label_of,
    raw,
    started,
    task_of,
)


def augment(buffer, ids):
    return buffer.augment(y=label_of(ids), task=task_of(ids), **encode(ids))


def test_the_batch_holds_the_arguments_then_the_draws_one_after_the_other(make, comm):
    """rehearsal.md 6.2-2: rows of one draw copied by the places of the other, past the end where sizes differ."""
    buffer = make(fields=MANY_FIELDS, draws=(5, 3), seed=2)
    twin = make(fields=MANY_FIELDS, draws=(5, 3), seed=2)
    for step in range(8):
        ids = identities(comm.rank, 6 * step, 6)
        batch = augment(buffer, ids)
        draws = twin.wait()
        twin.submit(y=label_of(ids), task=task_of(ids), **encode(ids))
        assert batch.sizes == (6, len(draws[0]), len(draws[1]))
        assert len(batch) == sum(batch.sizes)
        assert_consistent(batch)
        assert torch.equal(batch["i64"][:6], ids)
        for name in batch:
            assert batch[name].is_contiguous()
            assert len(batch[name]) == len(batch)
            assert torch.equal(raw(batch[name][6:]), torch.cat([raw(draw[name]) for draw in draws]))
        assert batch["weight"][:6].tolist() == [1.0] * 6
        assert batch["rank"][:6].tolist() == [comm.rank] * 6
    assert batch.sizes == (6, 5, 3)


def test_the_first_batch_is_the_arguments_alone(make, comm):
    ids = identities(comm.rank, 0, 4)
    batch = augment(make(fields=MANY_FIELDS), ids)
    assert batch.sizes == (4, 0)
    assert torch.equal(batch["i64"], ids)


def test_rows_are_passed_on_without_a_copy(make, comm):
    buffer = make(fields=MANY_FIELDS)
    for step in range(5):
        ids = identities(comm.rank, 6 * step, 6)
        rows = buffer.rows(6)
        assert set(rows) == {*MANY_FIELDS, "y"}
        for name, value in {**encode(ids), "y": label_of(ids)}.items():
            assert rows[name].dtype == value.dtype
            rows[name].copy_(value)
        pointers = {name: value.data_ptr() for name, value in rows.items()}
        batch = buffer.augment(**rows, task=task_of(ids))
        assert {name: batch[name].data_ptr() for name in rows} == pointers
        assert_consistent(batch)
        assert torch.equal(batch["i64"][:6], ids)
    assert batch.sizes == (6, 8)


def fill(rows, ids):
    for name, value in {**encode(ids), "y": label_of(ids)}.items():
        rows[name].copy_(value)


def test_rows_of_any_size_are_passed_on_without_a_copy(make, comm):
    """Smaller batches at the end of an epoch, larger ones after it."""
    buffer, total = make(fields=MANY_FIELDS, draws=(5,)), 0
    for size in (6, 6, 2, 6, 11, 1, 11, 2, 0, 30, 6, 30):
        ids = identities(comm.rank, total, size)
        rows = buffer.rows(size)
        fill(rows, ids)
        pointers = {name: value.data_ptr() for name, value in rows.items()}
        batch = buffer.augment(**rows, task=task_of(ids))
        if size:
            assert {name: batch[name].data_ptr() for name in rows} == pointers
        assert batch.sizes[0] == size
        assert_consistent(batch)
        total += size
    assert (buffer.seen, len(buffer)) == (total, 64)


def test_rows_may_be_asked_for_again(make, comm):
    """The last ones count; earlier ones may be passed on all the same, if nobody wrote to the others."""
    buffer = make(fields=MANY_FIELDS, draws=(5,))
    for step, sizes in enumerate([(6, 6), (6, 9), (9, 6), (6, 40), (6, 6)]):
        ids = identities(comm.rank, 100 * step, sizes[-1])
        asked = [buffer.rows(size) for size in sizes]
        fill(asked[-1], ids)
        assert_consistent(buffer.augment(**asked[-1], task=task_of(ids)))
        early = buffer.rows(4)
        ids = identities(comm.rank, 100 * step + 50, 4)
        fill(early, ids)
        buffer.rows(50 * step)
        assert_consistent(buffer.augment(**early, task=task_of(ids)))


def test_rows_may_be_passed_on_after_other_calls(make, comm):
    """Another draw was delivered in between, or everything was awaited: the rows are then copied, or still in place."""
    buffer = make(fields=MANY_FIELDS, draws=(5,))
    for step in range(12):
        ids, between = identities(comm.rank, 100 * step, 6), identities(comm.rank, 100 * step + 50, 3)
        rows = buffer.rows(6)
        fill(rows, ids)
        if step % 3 == 0:
            buffer.drain()
            assert buffer.seen == 9 * step
        elif step % 3 == 1:
            buffer.wait()
            buffer.submit(y=label_of(between), task=task_of(between), **encode(between))
        else:
            buffer.submit(y=label_of(between), task=task_of(between), **encode(between))
            buffer.wait()
        batch = buffer.augment(**rows, task=task_of(ids))
        assert torch.equal(batch["i64"][:6], ids)
        assert_consistent(batch)
        if step % 3 == 0:
            buffer.submit(y=label_of(between), task=task_of(between), **encode(between))
            buffer.wait()


def test_rows_may_be_submitted_like_any_batch(make, comm):
    buffer = started(make(fields=MANY_FIELDS, draws=(99,), scope="local"))
    for step in range(6):
        ids = identities(comm.rank, 6 * step, 6)
        rows = buffer.rows(6)
        fill(rows, ids)
        buffer.submit(**rows, task=task_of(ids))
        (draw,) = buffer.wait()
        assert_consistent(draw)
        assert set(draw["i64"].tolist()) == set(range(comm.rank * PER_RANK, int(ids[-1]) + 1))


def test_new_samples_have_weight_one_and_this_rank_whatever_became_of_earlier_batches(make, comm):
    """A training loop may scale the weights of a batch in place, as batches are its own until the next one."""
    buffer = make(draws=(4,))
    for step in range(6):
        batch = buffer.augment(id=identities(comm.rank, 5 * step, 5), y=torch.zeros(5, dtype=torch.int64))
        assert batch["weight"][:5].tolist() == [1.0] * 5
        assert batch["rank"][:5].tolist() == [comm.rank] * 5
        batch["weight"].mul_(0.5)
        batch["rank"].fill_(99)


def test_weights_of_a_batch_in_rows_may_be_changed_in_place(make, comm):
    """They are no part of what is being stored."""
    buffer = make(draws=(4,))
    for step in range(6):
        rows = buffer.rows(5)
        rows["id"].copy_(identities(comm.rank, 5 * step, 5))
        rows["y"].zero_()
        batch = buffer.augment(**rows)
        batch["weight"].mul_(0.5)
    assert buffer.seen == 30


def test_draws_and_batches_stay_readable_after_close(make, comm):
    buffer = make(fields=MANY_FIELDS, draws=(6,))
    for step in range(3):
        ids = identities(comm.rank, 6 * step, 6)
        batch = augment(buffer, ids)
    (draw,) = buffer.wait()
    copies = [{name: raw(value) for name, value in rows.items()} for rows in (batch, draw)]
    held = [dict(rows.items()) for rows in (batch, draw)]
    buffer.close()
    del buffer, batch, draw
    gc.collect()
    for tensors, copy in zip(held, copies, strict=True):
        assert all(torch.equal(raw(tensor), copy[name]) for name, tensor in tensors.items())
        assert torch.equal(tensors["y"], label_of(tensors["i64"]))


def test_the_batch_before_stays_intact_until_the_next_augment_returns(make, comm):
    buffer = make(fields=MANY_FIELDS)
    before, copies = None, {}
    for step in range(6):
        ids = identities(comm.rank, 6 * step, 6)
        rows = buffer.rows(6)
        for value in rows.values():
            value.view(torch.uint8).fill_(0)
        if before is not None:
            assert all(torch.equal(raw(before[name]), copy) for name, copy in copies.items())
        before = augment(buffer, ids)
        copies = {name: raw(value) for name, value in before.items()}


def test_fewer_rows_than_were_asked_for_may_be_used(make, comm):
    """The last batch of an epoch is smaller than what the loader had reserved."""
    buffer = make(fields=MANY_FIELDS)
    for step, size in enumerate([6, 4, 6, 1, 0, 6]):
        ids = identities(comm.rank, 6 * step, size)
        rows = buffer.rows(6)
        for name, value in {**encode(ids), "y": label_of(ids)}.items():
            rows[name][:size].copy_(value)
        batch = buffer.augment(**{name: value[:size] for name, value in rows.items()}, task=task_of(ids))
        assert batch.sizes[0] == size
        assert_consistent(batch)


def test_the_batch_size_may_change_at_any_step(make, comm):
    buffer, total = make(fields=MANY_FIELDS, draws=(4,)), 0
    for size in (3, 9, 0, 1, 20, 2, 40, 5):
        if size % 2:
            buffer.rows(size + 3)  # asked for and not used
        batch = augment(buffer, identities(comm.rank, total, size))
        assert batch.sizes[0] == size
        assert_consistent(batch)
        total += size
    assert buffer.seen == total


def test_the_batch_before_may_be_submitted_again(make, comm):
    """Rows of one set are arguments while the other is filled."""
    buffer = make(fields=MANY_FIELDS, draws=(4,))
    ids = identities(comm.rank, 0, 6)
    batch = augment(buffer, ids)
    again = buffer.augment(y=batch["y"][:6], task=batch["task"][:6], **{name: batch[name][:6] for name in MANY_FIELDS})
    assert torch.equal(again["i64"][:6], ids)
    assert_consistent(again)


def test_augment_and_submit_may_be_mixed(make, comm):
    buffer = make(draws=(500,), capacity=500 * comm.size)
    first = buffer.augment(id=identities(comm.rank, 0, 4), y=torch.zeros(4, dtype=torch.int64))
    assert buffer.wait()[0]["id"].numel() == 4 * comm.size
    feed(buffer, identities(comm.rank, 4, 4))
    second = buffer.augment(id=identities(comm.rank, 8, 4), y=torch.zeros(4, dtype=torch.int64))
    assert (first.sizes, second.sizes) == ((4, 0), (4, 8 * comm.size))


def test_negative_rows_are_refused(make):
    with pytest.raises(ValueError, match="rows"):
        make().rows(-1)


def test_counters_say_what_was_submitted_and_stored(make, comm):
    buffer = make(capacity=10 * comm.size + 1)
    share = 10 + (comm.rank == 0)
    for step in range(4):
        feed(buffer, identities(comm.rank, 7 * step, 7), torch.tensor([5, 5, -1, 5, 5, 8, 5]))
        buffer.wait()
    assert (buffer.seen, len(buffer)) == (28, share)
    assert buffer.capacity == buffer.global_size == 10 * comm.size + 1
    assert set(buffer.class_counts()) == {5, -1, 8}
    assert sorted(buffer.class_counts().values()) == ([3, 4, 4] if share == 11 else [3, 3, 4])


@pytest.mark.parametrize("capacity_per_rank", [5, 5.75])
def test_the_shares_of_all_ranks_add_up_to_the_capacity(make, comm, capacity_per_rank):
    """rehearsal.md 6.2-11: rounding down loses the budget at scale."""
    capacity = int(capacity_per_rank * comm.size)
    buffer = make(capacity=capacity, policy="fifo", scope="local")
    feed(buffer, identities(comm.rank, 0, 50))
    assert len(buffer) == capacity // comm.size + (comm.rank < capacity % comm.size)
    assert buffer.global_size == capacity


def test_timings_count_every_call(make, comm):
    """rehearsal.md 5.7, anchors.md A.3-10: the reference reports zeros."""
    buffer = make()
    for step in range(5):
        feed(buffer, identities(comm.rank, 4 * step, 4))
        buffer.wait()
    buffer.drain()
    stats = buffer.timings()
    assert {"submit", "insert", "plan", "fetch", "wait"} <= stats.keys()
    for name in ("submit", "wait"):
        assert stats[name]["count"] == 5
        assert 0 < stats[name]["p50_ms"] <= stats[name]["p95_ms"]


def test_the_last_timings_say_when_each_part_began_and_ended(make, comm):
    buffer = make()
    before = perf_counter_ns()
    for step in range(5):
        feed(buffer, identities(comm.rank, 4 * step, 4))
        buffer.wait()
    buffer.drain()
    after = perf_counter_ns()
    recent, stats = buffer.recent_timings(), buffer.timings()
    assert recent.keys() == stats.keys()
    for name, times in recent.items():
        assert len(times) == stats[name]["count"], name
        flat = [at for interval in times for at in interval]
        assert flat[0] >= before, name
        assert flat[-1] <= after, name
        assert sum(end - begin for begin, end in times) / 1e6 == pytest.approx(stats[name]["total_ms"], abs=1e-4)
        if name != "queue":
            assert flat == sorted(flat), name


def test_the_context_manager_closes(make, comm):
    with make() as buffer:
        feed(buffer, identities(comm.rank, 0, 4))
    with pytest.raises(RuntimeError, match="closed"):
        buffer.wait()


def test_ranks_say_where_a_sample_lies(make, comm):
    buffer = make(draws=(1000,))
    buffer.wait()
    feed(buffer, identities(comm.rank, 0, 4))
    (draw,) = buffer.wait()
    assert torch.equal(draw["rank"], draw["id"] // PER_RANK)
    assert sorted(draw["rank"].unique().tolist()) == list(range(comm.size))


def test_what_is_stored_is_read_piece_by_piece_as_it_was_submitted(make, comm):
    buffer = make(fields=MANY_FIELDS, capacity=11 * comm.size)
    assert list(buffer.stored(4)) == []
    for step in range(5):
        augment(buffer, identities(comm.rank, 6 * step, 6))
    before = buffer.seen
    pieces = list(buffer.stored(4))
    assert [len(piece["y"]) for piece in pieces] == [4, 4, 3]
    held = torch.cat([piece["i64"] for piece in pieces])
    assert len(held.unique()) == len(buffer) == 11
    assert torch.isin(held, identities(comm.rank, 0, 30)).all()
    for piece in pieces:
        assert set(piece) == {*MANY_FIELDS, "y", "task"}
        assert_consistent({**piece, "rank": piece["i64"] // PER_RANK})  # type: ignore[arg-type]
    pieces[0]["i64"].zero_()
    assert torch.equal(next(buffer.stored(11))["i64"], held)
    assert buffer.seen == before
