"""Contract 3 through whole buffers: what is stored after a stream. Policies alone: tests/unit/test_policies.py."""

import pytest
import torch
from chi_square import REJECT, inclusion_p, varying_inclusion_p
from streams import PER_RANK, contents, feed, identities

REPLICATES = 150
FIRST_SEED = 1000


def counts_of(stored, total):
    return torch.bincount(torch.tensor(sorted(stored)) % PER_RANK, minlength=total)


def offer(buffer, comm, first, count, batch_size, labels=None):
    for start in range(first, first + count, batch_size):
        ids = identities(comm.rank, start, min(batch_size, first + count - start))
        feed(buffer, ids, None if labels is None else labels[ids % PER_RANK])


def reservoir_counts(make, comm, total, share, candidates, halfway):
    counts = torch.zeros(total, dtype=torch.int64)
    for seed in range(FIRST_SEED, FIRST_SEED + REPLICATES):
        arguments = {
            "capacity": share * comm.size,
            "policy": "reservoir",
            "draws": (),
            "seed": seed,
            "candidates": candidates,
            "scope": "local",
        }
        buffer = make(**arguments)
        offer(buffer, comm, 0, total // 2, 8)
        buffer = halfway(buffer, arguments)
        offer(buffer, comm, total // 2, total - total // 2, 8)
        counts += counts_of(contents(buffer), total)
        buffer.close()
    return comm.allreduce(counts, op="sum").numpy()


@pytest.mark.parametrize("candidates", [None, 4])
def test_reservoir_stores_each_submitted_sample_with_probability_share_over_seen(make, comm, candidates):
    counts = reservoir_counts(make, comm, 64, 10, candidates, lambda buffer, _: buffer)
    assert inclusion_p(counts, REPLICATES * comm.size, 10) > REJECT


def test_reservoir_goes_on_uniformly_from_a_loaded_state(make, comm):
    """anchors.md A.3-11: others restore `seen = stored` and over-replace ever after."""

    def reload(buffer, arguments):
        fresh = make(**arguments)
        fresh.load_state_dict(buffer.state_dict())
        return fresh

    counts = reservoir_counts(make, comm, 64, 10, None, reload)
    assert inclusion_p(counts, REPLICATES * comm.size, 10) > REJECT


def test_the_statistic_rejects_a_buffer_whose_counter_was_lost(make, comm):
    def lose(buffer, arguments):
        state = buffer.state_dict()
        state["engine"]["shard"]["policy"]["submitted"] = 10
        fresh = make(**arguments)
        fresh.load_state_dict(state)
        return fresh

    if len(make(policy="reservoir").state_dict()["engine"]["shard"]["policy"]) != 2:
        pytest.skip("this implementation keeps its state differently")
    counts = reservoir_counts(make, comm, 64, 10, None, lose)
    assert inclusion_p(counts, REPLICATES * comm.size, 10) < REJECT


def test_class_balanced_keeps_small_classes_whole_and_the_others_even(make, comm):
    labels = torch.tensor([0] * 40 + [1] * 3 + [-7] * 40 + [2**60] * 40 + [4] * 2)
    buffer = make(capacity=35 * comm.size)
    offer(buffer, comm, 0, len(labels), 6, labels)
    counts = buffer.class_counts()
    assert (counts[1], counts[4]) == (3, 2)
    assert sorted(counts[label] for label in (0, -7, 2**60)) == [10, 10, 10]
    assert {40, 41, 42, 123, 124} <= {sample % PER_RANK for sample in contents(buffer)}


def test_class_balanced_is_even_on_each_rank_for_the_classes_it_has_seen(make, comm):
    labels = torch.arange(200) % (3 + comm.rank)
    buffer = make(capacity=31 * comm.size)
    offer(buffer, comm, 0, 200, 9, labels)
    sizes = buffer.class_counts().values()
    assert len(sizes) == 3 + comm.rank
    assert sum(sizes) == 31
    assert max(sizes) - min(sizes) <= 1


def test_class_balanced_is_a_reservoir_inside_each_class(make, comm):
    """One class after the other, as in a class-incremental stream (rehearsal.md 5.3: forgetting by recency)."""
    labels = torch.arange(3).repeat_interleave(20)
    counts = torch.zeros(60, dtype=torch.int64)
    for seed in range(FIRST_SEED, FIRST_SEED + REPLICATES):
        buffer = make(capacity=12 * comm.size, draws=(), seed=seed, scope="local")
        offer(buffer, comm, 0, 60, 9, labels)
        counts += counts_of(contents(buffer), 60)
        buffer.close()
    counts = comm.allreduce(counts, op="sum")
    for label in range(3):
        assert inclusion_p(counts[labels == label].numpy(), REPLICATES * comm.size, 4) > REJECT


def test_fifo_stores_exactly_the_newest(make, comm):
    buffer = make(capacity=17 * comm.size, policy="fifo")
    for first in range(0, 100, 10):
        feed(buffer, identities(comm.rank, first, 10))
        newest = range(max(0, first + 10 - 17), first + 10)
        assert contents(buffer) == {comm.rank * PER_RANK + i for i in newest}


def test_a_batch_larger_than_the_share_is_stored_as_if_its_samples_came_one_by_one(make, comm):
    buffer = make(capacity=7 * comm.size, policy="fifo")
    feed(buffer, identities(comm.rank, 0, 50))
    assert contents(buffer) == {comm.rank * PER_RANK + i for i in range(43, 50)}
    for policy in ("reservoir", "class_balanced"):
        buffer = make(capacity=7 * comm.size, policy=policy)
        feed(buffer, identities(comm.rank, 0, 50))
        assert len(contents(buffer)) == 7
        assert max(sample % PER_RANK for sample in contents(buffer)) > 7


@pytest.mark.parametrize("policy", ["class_balanced", "reservoir", "fifo"])
def test_at_most_c_samples_of_a_batch_are_offered_each_equally_likely(make, comm, policy):
    counts, batches = torch.zeros(12, dtype=torch.int64), 250
    buffer = make(capacity=5 * batches * comm.size, candidates=5, policy=policy, draws=(), scope="local")
    for batch in range(batches):
        feed(buffer, identities(comm.rank, 12 * batch, 12))
        assert len(buffer) == 5 * (batch + 1)
    counts = torch.bincount(torch.tensor(sorted(contents(buffer))) % PER_RANK % 12, minlength=12)
    counts = comm.allreduce(counts, op="sum").numpy()
    assert varying_inclusion_p(counts, batches * comm.size) > REJECT
    assert inclusion_p(counts, batches * comm.size, 5) > REJECT
    first_only = [batches * comm.size] * 5 + [0] * 7
    assert inclusion_p(first_only, batches * comm.size, 5) < 1e-6
