"""Class-balanced: the classes seen on a rank share its slots as evenly as the samples seen allow; reservoirs inside.

The idea is that of class-balancing reservoir sampling (Chrysakis and Moens 2020, "Online continual learning from
imbalanced data"): a class keeps everything until room runs out, then the largest classes make room. Done here for whole
batches: the new sizes come from one water level over all classes, so nothing is evicted that a later candidate of the
same batch would have evicted anyway. Within a class the stored samples are at any time a uniform choice of those seen.
"""

from typing import Any

import numpy as np

from reprise.buffer.policies.base import Float64s, last_writes, split_counts
from reprise.buffer.policies.random_words import EVICT, INSERT, Int64s, RandomWords, below, distinct_below


class ClassBalanced:
    """See Policy. The set of classes is open: a label never seen before opens a class.

    Classes are numbered in order of first appearance. A class's members are a list of its slots: new ones join at the
    end, the last ones move into the places of evicted ones, so that no step has to look at all slots. `_members` holds
    the slots of all classes, each class's in the order of its list; class after class once it is indexed, which is done
    when members are looked up after sizes have changed.
    """

    def __init__(self, share: int) -> None:
        self.share = share
        self.stored = 0
        self.labels = np.empty(0, dtype=np.int64)  # label of each class
        self.seen = np.empty(0, dtype=np.int64)  # candidates offered so far, per class
        self.sizes = np.empty(0, dtype=np.int64)  # stored, per class
        self._class_of_slot = np.zeros(share, dtype=np.int64)
        self._members = np.zeros(share, dtype=np.int64)
        self._starts = np.empty(0, dtype=np.int64)
        self._indexed = False

    def insert(self, labels: Int64s, batch_size: int, step: int, words: RandomWords) -> tuple[Int64s, Int64s]:
        num_candidates = len(labels)
        classes = self._classes_of(labels)
        counts = np.bincount(classes, minlength=len(self.labels))
        slots = np.full(num_candidates, -1, dtype=np.int64)

        filled = min(self.share - self.stored, num_candidates)
        slots[:filled] = np.arange(self.stored, self.stored + filled)
        self._class_of_slot[self.stored : self.stored + filled] = classes[:filled]
        self._members[self.stored : self.stored + filled] = slots[:filled]
        self.stored += filled
        added = np.bincount(classes[:filled], minlength=len(self.labels))
        kept_all = self.seen == self.sizes
        self.sizes += added
        demand = np.where(kept_all, counts - added, 0)

        self._indexed &= not filled
        if demand.any():
            growth = _water_level(self.sizes, demand, self.share) - self.sizes
            freed = self._evict(np.maximum(-growth, 0), step, words)
            rest = np.arange(filled, num_candidates)
            growing = rest[_occurrence(classes[rest]) < growth[classes[rest]]]
            slots[growing] = freed
            self._class_of_slot[freed] = classes[growing]
            self._members[self.stored - len(freed) : self.stored] = freed
            self.sizes += growth
            self._indexed &= not len(freed)

        # Algorithm R inside each class for the candidates that found no room.
        waiting = np.flatnonzero(slots < 0)
        seen = self.seen[classes] + _occurrence(classes) + 1
        positions = below(words(INSERT, step, num_candidates)[waiting], seen[waiting].astype(np.uint64))
        accepted = positions < self.sizes[classes[waiting]]
        chosen = waiting[accepted]
        slots[chosen] = self._slots_of(classes[chosen], positions[accepted])
        self.seen += counts

        rows = np.flatnonzero(slots >= 0)
        return last_writes(rows, slots[rows])

    def inverse_inclusion(self, slots: Int64s) -> Float64s:
        classes = self._class_of_slot[slots]
        return self.seen[classes] / np.maximum(self.sizes[classes], 1)

    def mass(self) -> int:
        return int(self.seen[self.sizes > 0].sum())

    def ages(self) -> Int64s:
        return np.zeros(self.stored, dtype=np.int64)

    def state_dict(self) -> dict[str, Any]:
        self._index()
        return {
            "stored": self.stored,
            "labels": self.labels.copy(),
            "seen": self.seen.copy(),
            "sizes": self.sizes.copy(),
            "members": self._members[: self.stored].copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stored = int(state["stored"])
        self.labels = np.array(state["labels"], dtype=np.int64)
        self.seen = np.array(state["seen"], dtype=np.int64)
        self.sizes = np.array(state["sizes"], dtype=np.int64)
        self._members[: self.stored] = state["members"]
        self._class_of_slot[self._members[: self.stored]] = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self._indexed = False

    @staticmethod
    def recover(labels: Int64s, writes: Int64s, inverse_inclusion: Float64s, mass: int) -> dict[str, Any]:
        classes, class_of_slot, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        seen = np.bincount(class_of_slot, weights=inverse_inclusion, minlength=len(classes))
        return {
            "stored": len(labels),
            "labels": classes.astype(np.int64),
            "seen": np.rint(seen).astype(np.int64),
            "sizes": sizes.astype(np.int64),
            "members": np.argsort(class_of_slot, kind="stable").astype(np.int64),
        }

    @staticmethod
    def merge(states: list[dict[str, Any]], labels: Int64s, owners: Int64s, num_ranks: int) -> list[dict[str, Any]]:
        # A class of which nothing is stored any more has nobody to carry its counter: it starts anew.
        classes, class_of_sample = np.unique(labels, return_inverse=True)
        seen = np.zeros(len(classes), dtype=np.int64)
        for state in states:
            position = np.minimum(np.searchsorted(classes, state["labels"]), max(len(classes) - 1, 0))
            known = classes[position] == state["labels"] if len(classes) else np.zeros(len(position), dtype=bool)
            np.add.at(seen, position[known], np.asarray(state["seen"])[known])
        sizes = np.zeros((len(classes), num_ranks), dtype=np.int64)
        np.add.at(sizes, (class_of_sample, owners), 1)
        shares = np.array([split_counts(int(n), part) for n, part in zip(seen, sizes, strict=True)])
        shares = shares.reshape(len(classes), num_ranks)
        return [
            {
                "stored": int((owners == rank).sum()),
                "labels": classes.astype(np.int64),
                "seen": shares[:, rank],
                "sizes": sizes[:, rank],
                "members": np.argsort(class_of_sample[owners == rank], kind="stable").astype(np.int64),
            }
            for rank in range(num_ranks)
        ]

    def _classes_of(self, labels: Int64s) -> Int64s:
        """Class number of each label; opens the classes that are new, in order of first appearance."""
        present, first = np.unique(labels, return_index=True)
        new = present[np.argsort(first)]
        new = new[~np.isin(new, self.labels)]
        if len(new):
            zeros = np.zeros(len(new), dtype=np.int64)
            self.labels = np.concatenate([self.labels, new])
            self.seen = np.concatenate([self.seen, zeros])
            self.sizes = np.concatenate([self.sizes, zeros])
            self._indexed = False
        order = np.argsort(self.labels)
        return np.asarray(order[np.searchsorted(self.labels, labels, sorter=order)])

    def _index(self) -> None:
        """Put `_members` in order of classes; each class's list stays as it is."""
        if self._indexed:
            return
        members = self._members[: self.stored]
        keys = self._class_of_slot[members]
        if len(self.labels) <= 2**16:
            keys = keys.astype(np.uint16)  # 16-bit keys are sorted by radix: 20 times faster
        members[:] = members[np.argsort(keys, kind="stable")]
        self._starts = np.cumsum(self.sizes) - self.sizes
        self._indexed = True

    def _slots_of(self, classes: Int64s, positions: Int64s) -> Int64s:
        """The slot of member positions[i] of class classes[i]."""
        self._index()
        return np.asarray(self._members[self._starts[classes] + positions])

    def _evict(self, evictions: Int64s, step: int, words: RandomWords) -> Int64s:
        """Take a uniform choice of evictions[c] members out of the list of each class c; returns their slots.

        The lists of the others then lie at the front of `_members`, without a gap.
        """
        classes = np.repeat(np.arange(len(evictions)), evictions)
        positions = distinct_below(
            lambda round_: words(EVICT, step, len(classes), round_), self.sizes[classes], classes
        )
        freed = self._slots_of(classes, positions)
        # A list loses its last places, as many as it has evictions; who is in them and stays moves into the holes.
        cut = np.repeat(self._starts + self.sizes - evictions, evictions) + _occurrence(classes)
        chosen = self._starts[classes] + positions
        gone = np.zeros(self.stored, dtype=bool)
        gone[chosen] = True
        holes = np.setdiff1d(chosen, cut)
        self._members[holes] = self._members[cut[~gone[cut]]]
        self._members[: self.stored - len(cut)] = np.delete(self._members[: self.stored], cut)
        return freed


def _occurrence(classes: Int64s) -> Int64s:
    """For each entry how many equal entries come before it."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, dtype=np.int64)
    run = np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    result = np.empty(len(classes), dtype=np.int64)
    result[order] = np.arange(len(ordered)) - run
    return result


def _water_level(sizes: Int64s, demand: Int64s, share: int) -> Int64s:
    """Sizes after a batch: as even as possible with sizes + demand as the most each class can hold, summing to share.

    Slots left over by the common level go first to classes that need not evict for them, then in order of appearance.
    """
    ceiling = sizes + demand
    ordered = np.sort(ceiling)
    below_level = np.cumsum(ordered) - ordered
    remaining = len(ordered) - np.arange(len(ordered))
    # Largest whole level at which min(ceiling, level) fits into the share: found among the sorted ceilings.
    fits = below_level + ordered * remaining <= share
    full = int(fits.sum())
    level = (share - int(below_level[full])) // int(remaining[full]) if full < len(ordered) else int(ordered[-1])
    target = np.minimum(ceiling, level)
    spare = share - int(target.sum())
    eligible = np.flatnonzero(ceiling > level)
    by_need = eligible[np.argsort(sizes[eligible] <= level, kind="stable")]
    target[by_need[:spare]] += 1
    return np.asarray(target)
