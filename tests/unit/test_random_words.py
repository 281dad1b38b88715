"""The buffer's random words against an independent Philox in Python integers, and the choices made from them."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from reprise.buffer.policies.random_words import KEY_TAG, RandomWords, below, choose, distinct_below

VECTORS = json.loads((Path(__file__).parents[1] / "contract" / "philox_vectors.json").read_text())
MASK = 2**64 - 1


def philox(counter, key):
    """Philox 4x64-10 as published (Salmon et al. 2011), one block, nothing but integers."""
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [right >> 64 ^ counter[1] ^ key[0], right & MASK, left >> 64 ^ counter[3] ^ key[1], left & MASK]
        key = [key[0] + 0x9E3779B97F4A7C15 & MASK, key[1] + 0xBB67AE8584CAA73B & MASK]
    return counter


def reference_words(seed, rank, purpose, step, count, round_):
    blocks = -(-count // 4)
    key = [seed % 2**64, KEY_TAG]
    words = [w for i in range(blocks) for w in philox([1 + i, step, round_, purpose << 32 | rank], key)]
    return words[:count]


@pytest.mark.parametrize("known", VECTORS["published"], ids=lambda known: known["counter"][0])
def test_the_reference_generator_gives_the_published_answers(known):
    numbers = {name: [int(word, 16) for word in words] for name, words in known.items()}
    assert philox(numbers["counter"], numbers["key"]) == numbers["words"]


@pytest.mark.parametrize("known", VECTORS["streams"], ids=lambda known: f"{known['seed']}-{known['purpose']}")
def test_streams_give_the_recorded_words(known):
    words = RandomWords(known["seed"], known["rank"])
    got = words(known["purpose"], known["step"], len(known["words"]), known["round"])
    assert [f"{word:016x}" for word in got.tolist()] == known["words"]


def test_streams_equal_the_reference_generator_in_any_order_of_asking():
    words = RandomWords(-5, 3)
    asked = [(0, 1, 7, 0), (16, 1, 3, 2), (0, 1, 7, 0), (2, 2**40, 9, 1), (1, 1, 0, 0), (17, 5, 64, 0)]
    for purpose, step, count, round_ in asked:
        assert words(purpose, step, count, round_).tolist() == reference_words(-5, 3, purpose, step, count, round_)


@pytest.mark.parametrize("change", [{"seed": 2}, {"rank": 1}, {"purpose": 1}, {"step": 2}, {"round_": 1}])
def test_every_part_of_the_address_changes_every_word(change):
    def words(seed=1, rank=0, purpose=0, step=1, round_=0):
        return RandomWords(seed, rank)(purpose, step, 1000, round_)

    assert not (words() == words(**change)).any()


def test_below_is_the_high_half_of_the_product():
    random = np.random.default_rng(1)
    words = random.integers(0, 2**64, 2000, dtype=np.uint64)
    words[:3] = 0, MASK, 2**32
    bounds = random.integers(1, 2**63, 2000, dtype=np.uint64) >> random.integers(0, 62, 2000).astype(np.uint64)
    bounds = np.maximum(bounds, 1)
    expected = [int(w) * int(b) >> 64 for w, b in zip(words, bounds, strict=True)]
    assert below(words, bounds).tolist() == expected
    assert below(words, 7).tolist() == [int(w) * 7 >> 64 for w in words]


def test_below_is_uniform():
    counts = np.bincount(below(RandomWords(1, 0)(0, 1, 60_000), 30), minlength=30)
    assert len(counts) == 30
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize(
    ("population", "count"), [(10, 0), (10, 1), (10, 4), (10, 5), (10, 9), (10, 10), (10, 30), (0, 5), (0, 0), (1, 1)]
)
def test_choose_returns_different_members(population, count):
    words = RandomWords(4, 0)
    for step in range(200):
        chosen = choose(lambda n, round_, step=step: words(0, step, n, round_), population, count)
        assert len(set(chosen.tolist())) == len(chosen) == min(population, count)
        assert chosen.dtype == np.int64
        assert all(0 <= member < population for member in chosen.tolist())


@pytest.mark.parametrize(("population", "count"), [(7, 3), (7, 2), (5, 4), (6, 3), (20, 2)])
def test_choose_makes_every_ordered_choice_equally_likely(population, count):
    """Both ways of choosing (few words, and one word per member), and the place within the choice."""
    words = RandomWords(9, 2)
    seen: dict[tuple[int, ...], int] = {}
    choices = int(np.prod(np.arange(population, population - count, -1)))
    replicates = 40 * choices
    for step in range(replicates):
        chosen = tuple(choose(lambda n, round_, step=step: words(3, step, n, round_), population, count).tolist())
        seen[chosen] = seen.get(chosen, 0) + 1
    assert len(seen) == choices
    assert stats.chisquare(list(seen.values())).pvalue > 0.01


def test_choose_does_not_depend_on_the_population_for_its_cost():
    asked = []

    def words(count, round_):
        asked.append(count)
        return RandomWords(1, 0)(0, 1, count, round_)

    assert len(choose(words, 2**32 - 1, 64)) == 64
    assert asked == [64] * len(asked)
    assert len(asked) <= 2


def test_distinct_below_fills_each_group_without_repeats_up_to_all_of_it():
    bounds = np.array([3, 3, 3, 1, 5, 5, 5, 5, 5], dtype=np.int64)
    groups = np.array([0, 0, 0, 1, 2, 2, 2, 2, 2], dtype=np.int64)
    counts = np.zeros((9, 5), dtype=np.int64)
    words = RandomWords(8, 0)
    for step in range(1500):
        values = distinct_below(lambda round_, step=step: words(2, step, 9, round_), bounds, groups)
        for group, size in ((0, 3), (1, 1), (2, 5)):
            assert sorted(values[groups == group].tolist()) == list(range(size))
        counts[np.arange(9), values] += 1
    for row, bound in zip(counts, bounds, strict=True):
        if bound > 1:
            assert stats.chisquare(row[:bound]).pvalue > 0.01
