"""Contract 6: `weight` is the inverse of a sample's inclusion probability, relative to the mean over all stored."""

import pytest
import torch
from streams import PER_RANK, feed, identities, started

EVERYTHING = 100_000


def everything(buffer):
    (draw,) = buffer.wait()
    assert len(draw) == (len(buffer) if buffer.spec.scope == "local" else buffer.global_size)
    return draw


@pytest.mark.parametrize("policy", ["class_balanced", "reservoir", "fifo"])
@pytest.mark.parametrize("candidates", [None, 4])
def test_weights_are_one_for_a_uniform_history(make, comm, policy, candidates):
    """The same stream on all ranks, classes equally frequent: nobody is over-represented."""
    buffer = started(make(capacity=20 * comm.size, policy=policy, candidates=candidates, draws=(EVERYTHING,)))
    for step in range(10):
        ids = identities(comm.rank, 8 * step, 8)
        feed(buffer, ids, torch.arange(8) % 2 if candidates is None else torch.zeros(8, dtype=torch.int64))
        weight = everything(buffer)["weight"]
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, torch.ones_like(weight))


def test_the_weight_of_a_rank_follows_from_how_much_of_its_stream_it_keeps(make, comm):
    """Rank k has seen 10 (k + 1) samples per slot."""
    share = 5
    buffer = started(make(capacity=share * comm.size, policy="reservoir", draws=(EVERYTHING,)))
    for step in range(10):
        feed(buffer, identities(comm.rank, 1000 * step, share * (comm.rank + 1)))
        draw = everything(buffer)
    mean = sum(rank + 1 for rank in range(comm.size)) / comm.size
    torch.testing.assert_close(draw["weight"], (draw["rank"] + 1) / mean)
    assert float(draw["weight"].mean()) == pytest.approx(1.0, rel=1e-5)


def test_the_weight_of_a_class_follows_from_how_much_of_it_is_kept(make, comm):
    """On every rank 60 of class 0, 30 of class 5, and 4 of class -2 that are all kept."""
    labels = torch.tensor([0] * 60 + [5] * 30 + [-2] * 4)
    buffer = started(make(capacity=24 * comm.size, draws=(EVERYTHING,)))
    for first in range(0, 94, 10):
        ids = identities(comm.rank, first, min(10, 94 - first))
        feed(buffer, ids, labels[ids % PER_RANK])
        draw = everything(buffer)
    relative = torch.where(draw["y"] == 0, 60 / 10, torch.where(draw["y"] == 5, 30 / 10, 1.0))
    torch.testing.assert_close(draw["weight"], (relative / (94 / 24)).float())


def test_weights_are_one_on_average_over_everything_stored_at_any_time(make, comm):
    buffer = started(make(capacity=31 * comm.size, draws=(EVERYTHING,), candidates=6))
    for step in range(25):
        ids = identities(comm.rank, 20 * step, (5 * step + 3 * comm.rank) % 13)
        feed(buffer, ids, ids % (1 + step // 3) ** 2 % 7)
        draw = everything(buffer)
        if len(draw):
            assert float(draw["weight"].mean()) == pytest.approx(1.0, rel=1e-5)
            assert float(draw["weight"].min()) > 0


def test_a_weighted_mean_over_draws_is_that_of_the_whole_stream(make, comm):
    """An estimate over an unbalanced, unequal history; without the weights it would be far off."""
    share, values, replicates = 12, torch.tensor([0.0, 1.0, 5.0]), 60
    weighted, plain = torch.zeros(replicates), torch.zeros(replicates)
    odds = torch.tensor([0.7, 0.25, 0.05])
    totals = torch.zeros(2, dtype=torch.float64)
    for seed in range(replicates):
        generator = torch.Generator().manual_seed(1000 * seed + comm.rank)
        buffer = started(make(capacity=share * comm.size, draws=(EVERYTHING,), seed=seed))
        for step in range(4):
            size = 30 * (comm.rank + 1)
            y = torch.multinomial(odds, size, replacement=True, generator=generator)
            totals += torch.tensor([float(values[y].sum()), size])
            feed(buffer, identities(comm.rank, 1000 * step, size), y)
            draw = everything(buffer)
        weighted[seed] = (draw["weight"] * values[draw["y"]]).mean()
        plain[seed] = values[draw["y"]].mean()
        buffer.close()
    total, count = comm.allreduce(totals, op="sum").tolist()
    error = float(weighted.std() / replicates**0.5)
    assert abs(float(weighted.mean()) - total / count) < 3 * error
    assert abs(float(plain.mean()) - total / count) > 10 * error
