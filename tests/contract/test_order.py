"""Contract 1: the draw of step t + 1 sees batch t. Also what happens to callers that submit and wait out of step."""

import pytest
import torch
from streams import PER_RANK, ask, feed, identities, started


def everything_up_to(ranks, step, batch_size):
    return {rank * PER_RANK + i for rank in range(ranks) for i in range(step * batch_size)}


def test_a_draw_holds_all_samples_up_to_the_batch_before_when_waiting_first(make, comm):
    buffer = make(capacity=400 * comm.size, draws=(400 * comm.size,))
    for step in range(1, 12):
        (draw,) = buffer.wait()
        assert set(draw["id"].tolist()) == everything_up_to(comm.size, step - 1, 5)
        assert len(draw) == (step - 1) * 5 * comm.size
        feed(buffer, identities(comm.rank, (step - 1) * 5, 5))


def test_a_draw_holds_all_samples_up_to_the_batch_before_when_submitting_first(make, comm):
    """The draw delivered after submit(t) is the one that training on batch t uses, so it must not hold batch t."""
    buffer = make(capacity=400 * comm.size, draws=(400 * comm.size,))
    for step in range(1, 12):
        feed(buffer, identities(comm.rank, (step - 1) * 5, 5))
        (draw,) = buffer.wait()
        assert set(draw["id"].tolist()) == everything_up_to(comm.size, step - 1, 5)


@pytest.mark.parametrize("draws", [(3,), (3, 2, 4), (0,), ()])
def test_the_first_wait_returns_draws_of_no_rows(make, draws):
    first = make(draws=draws).wait()
    assert [len(draw) for draw in first] == [0] * len(draws)
    for draw in first:
        assert {name: (value.shape, value.dtype) for name, value in draw.items()} == {
            "id": ((0,), torch.int64),
            "y": ((0,), torch.int64),
            "task": ((0,), torch.int64),
            "weight": ((0,), torch.float32),
            "rank": ((0,), torch.int64),
        }


def test_a_second_wait_without_a_submit_raises(make, comm):
    buffer = started(make())
    with pytest.raises(RuntimeError, match="submit"):
        buffer.wait()
    feed(buffer, identities(comm.rank, 0, 4))
    assert len(buffer.wait()[0]) == min(8, 4 * comm.size)
    with pytest.raises(RuntimeError, match="submit"):
        buffer.wait()


def test_several_submits_without_a_wait_leave_a_recent_draw(make, comm):
    """rehearsal.md 6.2-14: answers that nobody fetches pile up without bound."""
    everything = 400 * comm.size
    buffer = started(make(capacity=everything, draws=(everything,)))
    for step in range(6):
        feed(buffer, identities(comm.rank, 5 * step, 5))
    (draw,) = buffer.wait()
    assert len(draw) in (25 * comm.size, 30 * comm.size)
    feed(buffer, identities(comm.rank, 30, 5))
    (draw,) = buffer.wait()
    assert len(draw) >= 30 * comm.size


def test_a_batch_of_no_rows_only_asks_for_the_next_draw(make, comm):
    buffer = started(make(draws=(4,)))
    ask(buffer)
    assert len(buffer.wait()[0]) == 0
    feed(buffer, identities(comm.rank, 0, 20))
    seen = []
    for _ in range(10):
        seen.append(buffer.wait()[0]["id"].tolist())
        ask(buffer)
    assert (buffer.seen, len(buffer)) == (20, 20)
    assert all(len(ids) == 4 for ids in seen)
    assert len({tuple(ids) for ids in seen}) == 10


def test_ranks_may_submit_batches_of_different_sizes(make, comm):
    buffer = started(make(capacity=100 * comm.size, draws=(100 * comm.size,)))
    total = 0
    for step in range(5):
        mine = (comm.rank + step) % 3
        feed(buffer, identities(comm.rank, total, mine))
        total += mine
        (draw,) = buffer.wait()
    sizes = [sum((rank + step) % 3 for step in range(5)) for rank in range(comm.size)]
    assert len(draw) == sum(sizes[rank] for rank in range(comm.size))
    assert buffer.global_size == sum(sizes)
    assert buffer.seen == total
