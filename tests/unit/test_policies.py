"""Policies alone, over thousands of replicates: inclusion by chi-square, sizes against brute force, invariants.

The reference overwrites at a constant rate, which forgets by recency (anchors.md A.3-9), cannot take new classes
(rehearsal.md 6.2-15), and other systems lose the counter at a restore (anchors.md A.3-11).
"""

import numpy as np
import pytest
from scipy import stats

from reprise.buffer.policies import POLICIES
from reprise.buffer.policies.base import last_writes, split_counts
from reprise.buffer.policies.random_words import CANDIDATES, EVICT, INSERT, RandomWords, below, choose, distinct_below

REJECT = 0.01


class Shelf:
    """A share as the shard uses it: which sample lies in which slot. Checks what every policy promises at each step."""

    def __init__(self, policy, share, seed=0, rank=0):
        self.policy = POLICIES[policy](share)
        self.words = RandomWords(seed, rank)
        self.slots = np.full(share, -1, dtype=np.int64)
        self.step = 0

    def offer(self, ids, labels=None, candidates=None):
        self.step += 1
        labels = np.zeros(len(ids), dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
        picked = np.arange(len(ids))
        if candidates is not None and candidates < len(ids):
            picked = np.sort(choose(lambda n, k: self.words(CANDIDATES, self.step, n, k), len(ids), candidates))
        rows, slots = self.policy.insert(labels[picked], len(ids), self.step, self.words)
        assert len(set(slots.tolist())) == len(slots) == len(rows)
        assert self.policy.stored <= self.policy.share
        self.slots[slots] = np.asarray(ids)[picked[rows]]
        assert bool((self.slots[: self.policy.stored] >= 0).all())
        assert bool((self.slots[self.policy.stored :] < 0).all())

    @property
    def stored(self):
        return self.slots[: self.policy.stored]


def sizes_of(total, batch_sizes):
    """`batch_sizes` in turn until exactly `total` samples are out."""
    sizes = []
    while sum(sizes) < total:
        sizes.append(min(batch_sizes[len(sizes) % len(batch_sizes)], total - sum(sizes)))
    return sizes


def inclusion_p(counts, replicates, size):
    """See tests/contract/chi_square.py: fixed-size choices."""
    members, share = len(counts), size / len(counts)
    assert counts.sum() == replicates * size
    statistic = ((counts - replicates * share) ** 2).sum() / (replicates * share * (1 - share))
    return float(stats.chi2.sf(statistic * (members - 1) / members, members - 1))


def reservoir_counts(total, share, batch_sizes, replicates, candidates=None, between=lambda shelf: None):
    counts = np.zeros(total, dtype=np.int64)
    for seed in range(replicates):
        shelf, first = Shelf("reservoir", share, seed), 0
        for size in sizes_of(total, batch_sizes):
            shelf.offer(np.arange(first, first + size), candidates=candidates)
            first += size
            between(shelf)
        counts[shelf.stored] += 1
    return counts


# ---- reservoir


@pytest.mark.parametrize(
    ("batch_sizes", "candidates"),
    [((8,), None), ((1, 7, 3, 20, 2), None), ((8,), 3), ((10,), 9), ((6,), 1), ((60,), None), ((60,), 20)],
)
def test_reservoir_stores_every_sample_equally_often(batch_sizes, candidates):
    """With candidates the total is one at which the share is full (total * c / b >= share)."""
    total, share, replicates = 60, 10, 2500
    counts = reservoir_counts(total, share, batch_sizes, replicates, candidates)
    assert inclusion_p(counts, replicates, share) > REJECT


def test_reservoir_is_uniform_over_a_stream_much_longer_than_the_share():
    counts = reservoir_counts(600, 5, (40, 25), 1500)
    assert inclusion_p(counts, 1500, 5) > REJECT


def test_reservoir_of_one_slot():
    counts = reservoir_counts(12, 1, (4,), 3000)
    assert inclusion_p(counts, 3000, 1) > REJECT


def test_reservoir_keeps_everything_until_it_is_full():
    shelf = Shelf("reservoir", 20)
    for first in range(0, 20, 4):
        shelf.offer(np.arange(first, first + 4))
        assert shelf.stored.tolist() == list(range(first + 4))


def test_reservoir_with_candidates_and_a_smaller_last_batch_stays_uniform_once_full():
    """Samples that came after the share was full: equally likely whatever the sizes of their batches."""
    total, share, replicates, full = 120, 8, 3000, 40
    counts = np.zeros(total, dtype=np.int64)
    for seed in range(replicates):
        shelf, first = Shelf("reservoir", share, seed), 0
        for size in [8] * 5 + sizes_of(total - full, (8, 8, 3, 5)):
            shelf.offer(np.arange(first, first + size), candidates=3)
            first += size
        counts[shelf.stored] += 1
    share_stored = share / total
    later = counts[full:]
    statistic = ((later - replicates * share_stored) ** 2).sum() / (replicates * share_stored * (1 - share_stored))
    assert stats.chi2.sf(statistic, len(later)) > REJECT


def reload(shelf):
    """What a restore does: nothing is left but the state."""
    state = shelf.policy.state_dict()
    shelf.policy = type(shelf.policy)(shelf.policy.share)
    shelf.policy.load_state_dict(state)


def test_reservoir_stays_uniform_when_restored_after_every_batch():
    """anchors.md A.3-11."""
    counts = reservoir_counts(60, 10, (8,), 2500, between=reload)
    assert inclusion_p(counts, 2500, 10) > REJECT
    assert np.array_equal(counts, reservoir_counts(60, 10, (8,), 2500))


def test_the_statistic_rejects_a_reservoir_that_loses_its_counter():
    """anchors.md A.3-11: `seen = stored` after a restore over-replaces ever after."""

    def lose(shelf):
        shelf.policy.submitted = min(shelf.policy.submitted, shelf.policy.share)

    assert inclusion_p(reservoir_counts(60, 10, (8,), 2500, between=lose), 2500, 10) < 1e-6


@pytest.mark.parametrize("bias", ["off by one", "candidates not scaled"])
def test_the_statistic_rejects_small_mistakes_in_the_acceptance(bias):
    total, share, replicates, random = 60, 10, 2500, np.random.default_rng(1)
    counts = np.zeros(total, dtype=np.int64)
    for _ in range(replicates):
        held = list(range(share))
        for sample in range(share, total):
            bound = sample if bias == "off by one" else sample // 2 + share // 2
            if (slot := random.integers(bound)) < share:
                held[slot] = sample
        counts[held] += 1
    assert inclusion_p(counts, replicates, share) < REJECT


def test_reservoirs_of_several_ranks_go_on_uniformly_at_another_number_of_ranks():
    """Also with the share and the counter split in mid-stream (anchors.md A.3-11): 2 -> 3 -> 1 ranks."""
    capacity, replicates, total = 12, 2000, 48 + 54 + 60
    counts = np.zeros(total, dtype=np.int64)

    def regroup(shelves, num_ranks, seed):
        stored = np.concatenate([shelf.stored for shelf in shelves])
        owners = np.arange(len(stored)) % num_ranks
        labels = np.zeros(len(stored), dtype=np.int64)
        states = [shelf.policy.state_dict() for shelf in shelves]
        merged = type(shelves[0].policy).merge(states, labels, owners, num_ranks)
        assert sum(state["submitted"] for state in merged) == sum(state["submitted"] for state in states)
        fresh = [Shelf("reservoir", capacity // num_ranks, seed, rank) for rank in range(num_ranks)]
        for rank, shelf in enumerate(fresh):
            shelf.policy.load_state_dict(merged[rank])
            shelf.slots[: shelf.policy.stored] = stored[owners == rank]
            shelf.step = shelves[0].step
        return fresh

    for seed in range(replicates):
        first, shelves = 0, [Shelf("reservoir", capacity // 2, seed, rank) for rank in range(2)]
        for num_ranks, per_stage in ((2, 48), (3, 54), (1, 60)):
            shelves = regroup(shelves, num_ranks, seed) if num_ranks != 2 else shelves
            for _ in range(per_stage // (6 * num_ranks)):
                for shelf in shelves:
                    shelf.offer(np.arange(first, first + 6))
                    first += 6
        assert first == total
        counts[np.concatenate([shelf.stored for shelf in shelves])] += 1
    assert inclusion_p(counts, replicates, capacity) > REJECT


def test_reservoir_weighs_every_sample_alike():
    shelf = Shelf("reservoir", 10)
    for first in range(0, 40, 8):
        shelf.offer(np.arange(first, first + 8))
    assert shelf.policy.inverse_inclusion(np.arange(10)).tolist() == [4.0] * 10
    assert shelf.policy.mass() == 40


# ---- class balanced


def water_level(ceilings, share):
    """How many of each class are kept at most: slots go one by one to a smallest class that still has samples."""
    sizes = dict.fromkeys(ceilings, 0)
    for _ in range(min(share, sum(ceilings.values()))):
        name = min((c for c in sizes if sizes[c] < ceilings[c]), key=lambda c: sizes[c])
        sizes[name] += 1
    return sizes


def sizes_by_class(shelf, labels):
    held = labels[shelf.stored]
    return {int(label): int((held == label).sum()) for label in np.unique(labels)}


def random_stream(random, total, num_classes):
    """Labels in which classes open late, some stay rare, and names are negative or huge."""
    names = np.array([-(2**62), 2**63 - 1, -1, 0, 5, 7_000_000_000, 11, -40, 12, 13])[:num_classes]
    odds = random.dirichlet(np.full(num_classes, 0.5))
    start = random.integers(0, total // 2, num_classes)
    start[0] = 0
    labels = np.empty(total, dtype=np.int64)
    for i in range(total):
        open_now = np.where(start <= i, odds + 1e-6, 0)
        labels[i] = names[random.choice(num_classes, p=open_now / open_now.sum())]
    return labels


@pytest.mark.parametrize("seed", range(25))
def test_class_balanced_sizes_are_at_all_times_those_of_the_water_level(seed):
    """Even among the classes with plenty (they differ by one at most), everything of the small ones."""
    random = np.random.default_rng(seed)
    total, share = 200, int(random.integers(12, 60))
    labels = random_stream(random, total, int(random.integers(1, 11)))
    shelf, first = Shelf("class_balanced", share, seed), 0
    while first < total:
        size = min(int(random.integers(0, 24)), total - first)
        shelf.offer(np.arange(first, first + size), labels[first : first + size])
        first += size
        seen = {int(label): int((labels[:first] == label).sum()) for label in np.unique(labels[:first])}
        sizes = sizes_by_class(shelf, labels[:first]) if first else {}
        expected = water_level(seen, share)
        assert sorted(sizes.values()) == sorted(expected.values())
        level = max(expected.values(), default=0)
        for label, count in sizes.items():
            assert min(seen[label], level - 1) <= count <= min(seen[label], level)


def test_class_balanced_matches_the_bookkeeping_of_its_slots():
    random = np.random.default_rng(3)
    labels = random_stream(random, 300, 8)
    shelf = Shelf("class_balanced", 40)
    for first in range(0, 300, 12):
        shelf.offer(np.arange(first, first + 12), labels[first : first + 12])
        policy = shelf.policy
        for slot, sample in enumerate(shelf.stored):
            seen = int((labels[: first + 12] == labels[sample]).sum())
            stored = int((labels[shelf.stored] == labels[sample]).sum())
            assert policy.inverse_inclusion(np.array([slot]))[0] == pytest.approx(seen / stored)
        assert policy.mass() == first + 12
        assert sum(policy.sizes) == policy.stored


def by_the_book(lists, seen, share, labels, step, words):
    """docs/determinism.md, class_balanced, with one Python list of slots per label; returns the writes."""
    stored, wrote, beyond, growing = sum(map(len, lists.values())), {}, [], {}
    kept = {label for label in dict.fromkeys([*lists, *labels]) if seen.get(label, 0) == len(lists.get(label, []))}
    for label in labels:
        lists.setdefault(label, [])
        seen.setdefault(label, 0)
    for row, label in enumerate(labels):
        if stored < share:
            lists[label].append(stored)
            wrote[row] = stored
            stored += 1
        else:
            beyond.append(row)
    wanted = {label: sum(labels[row] == label for row in beyond) if label in kept else 0 for label in lists}
    if any(wanted.values()):
        ceiling = {label: len(lists[label]) + wanted[label] for label in lists}
        level = max(n for n in range(share + 1) if sum(min(c, n) for c in ceiling.values()) <= share)
        target = {label: min(c, level) for label, c in ceiling.items()}
        above = sorted(
            (label for label in lists if ceiling[label] > level), key=lambda label: len(lists[label]) <= level
        )
        for label in above[: share - sum(target.values())]:
            target[label] += 1
        entries = [label for label in lists for _ in range(len(lists[label]) - target[label])]
        numbers = np.array([list(lists).index(label) for label in entries], dtype=np.int64)
        bounds = np.array([len(lists[label]) for label in entries], dtype=np.int64)
        drawn = distinct_below(lambda k: words(EVICT, step, len(entries), k), bounds, numbers).tolist()
        freed = [lists[label][position] for label, position in zip(entries, drawn, strict=True)]
        growing = {label: max(target[label] - len(lists[label]), 0) for label in lists}
        for label in dict.fromkeys(entries):
            evicted = sorted(p for entry, p in zip(entries, drawn, strict=True) if entry == label)
            end = len(lists[label]) - len(evicted)
            movers = [lists[label][p] for p in range(end, len(lists[label])) if p not in evicted]
            for hole, mover in zip([p for p in evicted if p < end], movers, strict=True):
                lists[label][hole] = mover
            del lists[label][end:]
        for row in beyond:
            if growing[labels[row]] > 0:
                growing[labels[row]] -= 1
                wrote[row] = freed.pop(0)
                lists[labels[row]].append(wrote[row])
    for row, word in enumerate(words(INSERT, step, len(labels))):
        seen[labels[row]] += 1
        if row not in wrote:
            position = int(below(word, np.uint64(seen[labels[row]])))
            if position < len(lists[labels[row]]):
                wrote[row] = lists[labels[row]][position]
    return {row: slot for row, slot in wrote.items() if slot not in [s for r, s in wrote.items() if r > row]}


def test_class_balanced_does_what_its_definition_says_list_by_list():
    """The order of the lists too, on which later evictions and replacements depend."""
    steps_with_large_evictions = 0
    for seed in range(16):
        random, words, step = np.random.default_rng(seed), RandomWords(seed, 2), 0
        share = int(random.integers(1, 70))
        policy, lists, seen = POLICIES["class_balanced"](share), {}, {}
        labels = random_stream(random, 300, int(random.integers(1, 11)))
        while len(labels):
            batch, labels = np.split(labels, [random.integers(0, 30)])
            step += 1
            sizes = {label: len(slots) for label, slots in lists.items()}
            expected = by_the_book(lists, seen, share, batch.tolist(), step, words)
            rows, slots = policy.insert(batch, len(batch), step, words)
            assert dict(zip(rows.tolist(), slots.tolist(), strict=True)) == expected
            state = policy.state_dict()
            assert state["labels"].tolist() == list(lists)
            assert state["seen"].tolist() == list(seen.values())
            assert state["sizes"].tolist() == [len(slots) for slots in lists.values()]
            assert state["members"].tolist() == [slot for slots in lists.values() for slot in slots]
            steps_with_large_evictions += any(len(lists[label]) < size - 2 for label, size in sizes.items())
    assert steps_with_large_evictions > 20


def test_class_balanced_makes_room_for_a_new_class_from_the_largest():
    shelf = Shelf("class_balanced", 30)
    labels = np.array([1] * 5 + [2] * 25 + [-9] * 4)
    shelf.offer(np.arange(30), labels[:30])
    assert sizes_by_class(shelf, labels[:30]) == {1: 5, 2: 25}
    shelf.offer(np.arange(30, 34), labels[30:])
    assert sizes_by_class(shelf, labels) == {1: 5, 2: 21, -9: 4}


def test_class_balanced_with_fewer_slots_than_classes_stores_at_most_one_of_each():
    shelf = Shelf("class_balanced", 5)
    labels = np.arange(40) % 12
    for first in range(0, 40, 8):
        shelf.offer(np.arange(first, first + 8), labels[first : first + 8])
    assert sorted(sizes_by_class(shelf, labels).values()) == [0] * 7 + [1] * 5


def class_counts_over_replicates(share, labels, batch_size, replicates, candidates=None, between=lambda shelf: None):
    counts = np.zeros(len(labels), dtype=np.int64)
    for seed in range(replicates):
        shelf = Shelf("class_balanced", share, seed)
        for first in range(0, len(labels), batch_size):
            ids = np.arange(first, min(first + batch_size, len(labels)))
            shelf.offer(ids, labels[ids], candidates)
            between(shelf)
        counts[shelf.stored] += 1
    return counts


def one_after_the_other():
    """Class-incremental: 30 of each of 4 classes, the last ones while the buffer is full."""
    return np.repeat([3, -1, 10**12, 0], 30)


def mixed():
    return np.random.default_rng(5).permutation(np.repeat([0, 1, 2], [20, 30, 60]))


@pytest.mark.parametrize("stream", [one_after_the_other, mixed])
@pytest.mark.parametrize("batch_size", [3, 10, 40])
def test_class_balanced_is_a_reservoir_inside_each_class(stream, batch_size):
    labels, replicates = stream(), 800
    share = 4 * len(np.unique(labels))
    counts = class_counts_over_replicates(share, labels, batch_size, replicates)
    for label in np.unique(labels):
        assert inclusion_p(counts[labels == label], replicates, 4) > REJECT


def test_class_balanced_is_a_reservoir_inside_each_class_after_restores():
    labels, replicates = one_after_the_other(), 1200
    counts = class_counts_over_replicates(16, labels, 10, replicates, between=reload)
    assert np.array_equal(counts, class_counts_over_replicates(16, labels, 10, replicates))
    for label in np.unique(labels):
        assert inclusion_p(counts[labels == label], replicates, 4) > REJECT


def test_class_balanced_chooses_uniformly_among_candidates_too():
    labels, replicates = np.tile([0, 1, 2], 40), 1500
    counts = class_counts_over_replicates(12, labels, 12, replicates, candidates=6)
    for label in range(3):
        assert inclusion_p(counts[labels == label], replicates, 4) > REJECT


def test_the_statistic_rejects_replacing_at_a_constant_rate():
    """anchors.md A.3-9: the reference overwrites a random slot of the class with probability c / b."""
    random, replicates, counts = np.random.default_rng(2), 1200, np.zeros(30, dtype=np.int64)
    for _ in range(replicates):
        held = list(range(4))
        for sample in range(4, 30):
            if random.random() < 0.25:
                held[random.integers(4)] = sample
        counts[held] += 1
    assert inclusion_p(counts, replicates, 4) < 1e-6


def test_class_balanced_merge_keeps_counts_and_classes():
    shelves = [Shelf("class_balanced", 12, rank=rank) for rank in range(3)]
    labels = np.random.default_rng(6).integers(-3, 4, 300)
    for rank, shelf in enumerate(shelves):
        for first in range(rank * 100, rank * 100 + 100, 10):
            shelf.offer(np.arange(first, first + 10), labels[first : first + 10])
    stored = np.concatenate([shelf.stored for shelf in shelves])
    owners = np.arange(len(stored)) % 2
    states = [shelf.policy.state_dict() for shelf in shelves]
    merged = POLICIES["class_balanced"].merge(states, labels[stored], owners, 2)
    total = {}
    for rank, state in enumerate(merged):
        policy = POLICIES["class_balanced"](18)
        policy.load_state_dict(state)
        assert policy.stored == int((owners == rank).sum())
        assert bool((policy.seen >= policy.sizes).all())
        held = labels[stored[owners == rank]]
        assert [held[slot] for slot in state["members"]] == sorted(held)
        by_class = policy.seen / policy.sizes
        assert policy.inverse_inclusion(np.arange(policy.stored)).tolist() == by_class[held + 3].tolist()
        for label, seen in zip(state["labels"].tolist(), state["seen"].tolist(), strict=True):
            total[label] = total.get(label, 0) + seen
    assert total == {label: int((labels == label).sum()) for label in range(-3, 4)}


# ---- fifo


@pytest.mark.parametrize("share", [1, 7, 30])
def test_fifo_stores_exactly_the_newest(share):
    random, shelf, first = np.random.default_rng(share), Shelf("fifo", share), 0
    for _ in range(40):
        size = int(random.integers(0, 12))
        shelf.offer(np.arange(first, first + size))
        first += size
        assert sorted(shelf.stored.tolist()) == list(range(max(0, first - share), first))
        ages = shelf.policy.ages()
        assert (first - 1 - ages).tolist() == shelf.stored.tolist()


def test_fifo_goes_on_with_the_newest_after_a_restore():
    shelf = Shelf("fifo", 7)
    for first in range(0, 50, 5):
        shelf.offer(np.arange(first, first + 5))
        reload(shelf)
    assert sorted(shelf.stored.tolist()) == list(range(43, 50))


def test_fifo_weighs_every_sample_alike():
    shelf = Shelf("fifo", 7)
    shelf.offer(np.arange(20))
    assert shelf.policy.inverse_inclusion(np.arange(7)).tolist() == [1.0] * 7
    assert shelf.policy.mass() == 7


# ---- shared parts


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_of_no_candidates_changes_nothing(policy):
    shelf = Shelf(policy, 5)
    shelf.offer(np.arange(0))
    shelf.offer(np.arange(3), labels=[1, 2, 1])
    before = shelf.policy.state_dict()
    shelf.offer(np.arange(0))
    after = shelf.policy.state_dict()
    assert {k: np.asarray(v).tolist() for k, v in before.items()} == {
        k: np.asarray(v).tolist() for k, v in after.items()
    }


def test_of_several_writes_to_a_slot_the_last_one_stays():
    rows, slots = last_writes(np.arange(6), np.array([4, 1, 4, 2, 1, 4]))
    assert dict(zip(slots.tolist(), rows.tolist(), strict=True)) == {2: 3, 1: 4, 4: 5}
    assert rows.tolist() == sorted(rows.tolist())


@pytest.mark.parametrize(
    ("total", "parts"), [(10, [1, 1, 1]), (0, [3, 4]), (7, [0, 7, 0]), (9, [0, 0]), (2**62, [3, 2**31, 5]), (5, [5])]
)
def test_counts_are_split_in_proportion_and_nothing_is_lost(total, parts):
    split = split_counts(total, np.array(parts, dtype=np.int64))
    assert int(split.sum()) == total
    for count, part in zip(split.tolist(), parts, strict=True):
        share = part / sum(parts) if sum(parts) else 1 / len(parts)
        assert count == pytest.approx(total * share, abs=1)
        assert count >= part or total < sum(parts)
