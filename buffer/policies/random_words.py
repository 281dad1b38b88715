"""The buffer's randomness: a counter-based generator, so that any implementation reproduces it word for word.

Philox 4x64 with 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the one NumPy ships.
Word i of a stream is lane i % 4 of the block with

    key     = (seed, KEY_TAG)
    counter = (1 + i // 4, step, round, purpose << 32 | rank)

There is no state to carry: a checkpoint needs only the step. tests/contract/philox_vectors.json holds known answers for
other implementations. Not for anything but the buffer: the rest of the project uses runtime/seeds.py.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]

KEY_TAG = 0x52657072697365  # "Reprise": keeps our streams apart from other users of the same seed

# Purposes: each use of randomness within a step has a stream of its own.
CANDIDATES, INSERT, EVICT, DRAW = 0, 1, 2, 16  # draw d of a step uses DRAW + d

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


class RandomWords:
    """64-bit words of one rank, addressed by (purpose, step, round); `seed` is taken modulo 2**64."""

    def __init__(self, seed: int, rank: int) -> None:
        self._rank = rank
        self._philox = np.random.Philox(key=np.array([seed % 2**64, KEY_TAG], dtype=np.uint64))
        self._state = self._philox.state

    def __call__(self, purpose: int, step: int, count: int, round_: int = 0) -> UInt64s:
        """The first `count` words of a stream, as uint64 (count,)."""
        state = self._state
        state["state"]["counter"] = np.array([0, step, round_, purpose << 32 | self._rank], dtype=np.uint64)
        state["buffer_pos"] = 4  # nothing left over from the stream asked for before
        self._philox.state = state
        return np.asarray(self._philox.random_raw(count), dtype=np.uint64)


def below(words: UInt64s, bounds: UInt64s | int) -> Int64s:
    """Integers in [0, bound): the high 64 bits of word * bound (Lemire 2019); biased by less than bound / 2**64."""
    bound = np.asarray(bounds, dtype=np.uint64)
    word_low, word_high = words & _LOW, words >> _32
    bound_low, bound_high = bound & _LOW, bound >> _32
    middle = word_high * bound_low + (word_low * bound_low >> _32)
    other = word_low * bound_high + (middle & _LOW)
    high = word_high * bound_high + (middle >> _32) + (other >> _32)
    return np.asarray(high, dtype=np.int64)


def distinct_below(words: Callable[[int], UInt64s], bounds: Int64s, groups: Int64s) -> Int64s:
    """For each entry v an integer in [0, bounds[v]); entries of the same group get different ones.

    Round k asks `words(k)` for one word per entry. Entries still without a value take theirs in ascending order; a
    value that its group already holds sends the entry to the next round. Every ordered choice is equally likely, as
    renaming the values of a group changes nothing in this procedure. A group must not ask for more values than exist.
    """
    values = np.zeros(len(bounds), dtype=np.int64)
    pending = np.arange(len(bounds))
    taken = np.empty(0, dtype=np.int64)
    round_ = 0
    while len(pending):
        values[pending] = below(words(round_)[pending], bounds[pending].astype(np.uint64))
        keys = groups[pending] << 32 | values[pending]
        first = np.unique(keys, return_index=True)[1]
        fresh = np.zeros(len(pending), dtype=bool)
        fresh[first] = True
        if len(taken):
            fresh &= ~np.isin(keys, taken)
        if round_ == 0 and fresh.all():
            return values
        taken = np.concatenate([taken, keys[fresh]])
        pending = pending[~fresh]
        round_ += 1
    return values


def choose(words: Callable[[int, int], UInt64s], population: int, count: int) -> Int64s:
    """min(count, population) different integers in [0, population), in random order.

    `words(n, round)` gives n words of a round. Above half of the population the order of one random word per member
    decides (ties by index); below, `distinct_below` needs fewer words.
    """
    if population <= 2 * count:
        return np.argsort(words(population, 0), kind="stable")[:count].astype(np.int64)
    bounds = np.full(count, population, dtype=np.int64)
    return distinct_below(lambda round_: words(count, round_), bounds, np.zeros(count, dtype=np.int64))
