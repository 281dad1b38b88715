"""The plan of a draw: from fill counts to ranks and slots. That draws are uniform end to end is in tests/contract."""

import numpy as np
import pytest
from scipy import stats

from reprise.buffer.plan import plan_draws
from reprise.buffer.policies.random_words import RandomWords


def plan(fill, draws, step=1, seed=1):
    return plan_draws(np.array(fill, dtype=np.int64), draws, step, RandomWords(seed, 0))


def samples(planned):
    return list(zip(planned.ranks.tolist(), planned.slots.tolist(), strict=True))


@pytest.mark.parametrize("fill", [[5], [0, 4], [4, 0], [3, 0, 0, 2], [0, 0, 7, 0], [1, 1, 1]])
def test_a_large_draw_names_every_slot_of_every_rank_once(fill):
    planned = plan(fill, (100,))
    assert sorted(samples(planned)) == [(rank, slot) for rank, count in enumerate(fill) for slot in range(count)]
    assert planned.sizes == (sum(fill),)


@pytest.mark.parametrize("fill", [[0], [0, 0, 0]])
def test_nothing_stored_gives_empty_draws(fill):
    planned = plan(fill, (3, 2))
    assert (samples(planned), planned.sizes) == ([], (0, 0))


def test_no_draws_at_all_gives_an_empty_plan():
    planned = plan([5, 5], ())
    assert (samples(planned), planned.sizes) == ([], ())


def test_ranks_without_samples_are_never_asked():
    for step in range(300):
        assert set(plan([0, 9, 0, 30, 0], (5,), step).ranks.tolist()) <= {1, 3}


def test_each_draw_of_a_step_is_without_repeats_and_draws_may_overlap():
    overlaps = 0
    for step in range(200):
        planned = plan([6, 0, 10], (5, 0, 4), step)
        first, second = samples(planned)[:5], samples(planned)[5:]
        assert planned.sizes == (5, 0, 4)
        assert (len(set(first)), len(set(second))) == (5, 4)
        overlaps += len(set(first) & set(second))
    assert overlaps / 200 == pytest.approx(5 * 4 / 16, rel=0.1)


def test_every_slot_of_every_rank_is_equally_likely():
    """The first and the last slot of each rank included (anchors.md A.3-8); rejects shifting by one."""
    fill, size, steps = [7, 0, 1, 12], 4, 6000
    counts = np.zeros(20)
    edges = np.cumsum([0, *fill])
    for step in range(steps):
        planned = plan(fill, (size,), step)
        counts[edges[planned.ranks] + planned.slots] += 1

    def p(observed):
        share = size / 20
        statistic = ((observed - steps * share) ** 2).sum() / (steps * share * (1 - share)) * 19 / 20
        return stats.chi2.sf(statistic, 19)

    assert p(counts) > 0.01
    assert p(np.r_[0, counts[2:], counts[1] + counts[0]]) < 1e-6


def test_fill_counts_up_to_the_largest_capacity_are_handled():
    """rehearsal.md 6.2-8: the reference overflows beyond 2**31 samples."""
    fill = [2**31 - 1, 0, 2**31 - 1]
    planned = plan(fill, (2000,))
    assert len(set(samples(planned))) == 2000
    assert int(planned.slots.min()) >= 0
    assert int(planned.slots.max()) < 2**31 - 1
    assert int(planned.slots.max()) > 2**30
    assert 850 < int((planned.ranks == 2).sum()) < 1150


def test_the_plan_depends_on_seed_step_and_fill_alone():
    assert samples(plan([50, 60], (8,), 3)) == samples(plan([50, 60], (8,), 3))
    assert samples(plan([50, 60], (8,), 3)) != samples(plan([50, 60], (8,), 4))
    assert samples(plan([50, 60], (8,), 3)) != samples(plan([50, 60], (8,), 3, seed=2))
