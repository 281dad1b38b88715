"""Samplers: every rank the same number of steps, every sample used as promised, at any number of ranks."""

import pytest

from reprise.runtime.errors import UserError
from reprise.scenarios.sampler import EvalSampler, TrainSampler

RANKS = (1, 2, 3, 4, 7)


def train_samplers(num_samples: int, batch_size: int, world_size: int, epoch: int = 0) -> list[TrainSampler]:
    samplers = [
        TrainSampler(num_samples, batch_size, rank=rank, world_size=world_size, seed=5, task=2)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return samplers


@pytest.mark.parametrize("world_size", RANKS)
@pytest.mark.parametrize("num_samples", [28, 100, 101, 113, 196])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_all_ranks_take_the_same_steps_with_batches_of_equal_size(
    world_size: int, num_samples: int, batch_size: int
) -> None:
    """rehearsal.md 2.5: shards of the reference overlap and differ in length."""
    batches = [list(sampler) for sampler in train_samplers(num_samples, batch_size, world_size)]
    sizes = [[len(batch) for batch in of_rank] for of_rank in batches]
    assert all(of_rank == sizes[0] for of_rank in sizes)
    assert len(train_samplers(num_samples, batch_size, world_size)[0]) == len(sizes[0])
    assert all(size == batch_size for size in sizes[0][:-1])
    used = [index for of_rank in batches for batch in of_rank for index in batch]
    assert len(used) == len(set(used))
    assert set(used) <= set(range(num_samples))
    left_out = num_samples - len(used)
    dropped_singles = (num_samples % (batch_size * world_size)) // world_size == 1
    assert left_out <= world_size - 1 + (world_size if dropped_singles else 0)


@pytest.mark.parametrize("world_size", RANKS)
@pytest.mark.parametrize("num_samples", [168, 172])
def test_all_ranks_together_train_on_what_one_rank_with_the_global_batch_would(
    world_size: int, num_samples: int
) -> None:
    alone = list(TrainSampler(num_samples, 4 * world_size, rank=0, world_size=1, seed=5, task=2))
    together = [list(sampler) for sampler in train_samplers(num_samples, 4, world_size)]
    full_steps = num_samples // (4 * world_size)
    for step in range(full_steps):
        assert [index for of_rank in together for index in of_rank[step]] == alone[step]
    if num_samples % (4 * world_size) >= 2 * world_size:
        last = [index for of_rank in together for index in of_rank[full_steps]]
        assert last == alone[full_steps][: len(last)]


def test_the_last_step_of_one_sample_is_left_out_because_batch_norm_cannot_train_on_it() -> None:
    assert [len(batch) for batch in train_samplers(9, 4, 1)[0]] == [4, 4]
    assert [len(batch) for batch in train_samplers(10, 4, 1)[0]] == [4, 4, 2]
    assert [len(batch) for batch in train_samplers(19, 4, 2)[1]] == [4, 4]
    assert [len(batch) for batch in train_samplers(1, 1, 1)[0]] == [1]
    assert [len(batch) for batch in train_samplers(3, 1, 1)[0]] == [1, 1, 1]


def test_samples_left_out_of_one_epoch_are_trained_on_in_others() -> None:
    left_out = []
    for epoch in range(200):
        used = {i for sampler in train_samplers(11, 2, 4, epoch) for batch in sampler for i in batch}
        left_out.append(frozenset(range(11)) - used)
    assert {len(rest) for rest in left_out} == {3}
    assert frozenset().union(*left_out) == frozenset(range(11))


def test_order_depends_on_seed_task_and_epoch_and_on_nothing_else() -> None:
    def order(seed: int = 1, task: int = 0, epoch: int = 0) -> list[list[int]]:
        sampler = TrainSampler(64, 8, rank=0, world_size=1, seed=seed, task=task)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order() == order()
    assert len({str(order()), str(order(seed=2)), str(order(task=1)), str(order(epoch=1))}) == 4


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "world_size", "words"),
    [
        (10, 11, 1, ["11", "10", "--batch-size", "at most 10"]),
        (10, 4, 3, ["4", "10", "3 rank", "at most 3"]),
        (3, 1, 4, ["3 training samples", "4 ranks", "at most 3"]),
        (0, 1, 1, ["0 training samples", "1 ranks"]),
    ],
)
def test_a_batch_larger_than_the_data_set_is_refused(
    num_samples: int, batch_size: int, world_size: int, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        TrainSampler(num_samples, batch_size, rank=0, world_size=world_size, seed=0, task=0)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("world_size", RANKS)
@pytest.mark.parametrize("num_samples", [0, 1, 3, 6, 50, 53])
def test_evaluation_counts_every_sample_exactly_once(world_size: int, num_samples: int) -> None:
    """anchors.md A.3-2 and rehearsal.md 6.1-11: the reference drops the tail and counts padding twice."""
    samplers = [EvalSampler(num_samples, 8, rank=rank, world_size=world_size) for rank in range(world_size)]
    shares = [[index for batch in sampler for index in batch] for sampler in samplers]
    assert sorted(index for share in shares for index in share) == list(range(num_samples))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for sampler in samplers:
        sizes = [len(batch) for batch in sampler]
        assert len(sampler) == len(sizes)
        assert all(1 <= size <= 8 for size in sizes)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (3, 1), (1, 4), (4, 2)])
@pytest.mark.parametrize("num_samples", [97, 120])
def test_an_epoch_goes_on_where_it_was_on_any_number_of_ranks(before, after, num_samples):
    """Every sample once but those that no step of all ranks is left for; the same steps on the same number of ranks."""

    def samplers(ranks):
        arguments = {"world_size": ranks, "seed": 5, "task": 3}
        return [TrainSampler(num_samples, 4, rank=rank, **arguments) for rank in range(ranks)]

    for done in range(8):
        first, later = samplers(before), samplers(after)
        batches = []
        for sampler in first:
            sampler.set_epoch(2)
            batches += list(sampler)[:done]
        trained = [index for batch in batches for index in batch]
        left = []
        for sampler in later:
            sampler.set_epoch(2, len(trained))
            left.append(list(sampler))
            assert len(left[-1]) == len(sampler) == len(left[0])
        everything = trained + [index for steps in left for batch in steps for index in batch]
        assert len(set(everything)) == len(everything) > num_samples - 2 * max(before, after)
        if before == after:
            for sampler, steps in zip(first, left, strict=True):
                assert list(sampler)[done:] == steps


def test_the_fraction_of_an_epoch_does_not_depend_on_where_it_was_interrupted():
    whole = TrainSampler(97, 4, rank=0, world_size=2, seed=0, task=0)
    whole.set_epoch(0)
    fractions = [whole.fraction(step) for step in range(len(whole))]
    assert fractions[0] == 0
    assert fractions == [step / len(whole) for step in range(len(whole))]
    for done in range(len(whole)):
        whole.set_epoch(0, done * 8)
        assert [whole.fraction(step) for step in range(len(whole))] == fractions[done:]
    assert whole.steps == len(fractions)


def test_an_epoch_that_is_over_has_no_steps_left():
    sampler = TrainSampler(97, 4, rank=0, world_size=2, seed=0, task=0)
    for done in (96, 97):
        sampler.set_epoch(0, done)
        assert len(sampler) == 0
        assert list(sampler) == []
