"""Where time goes: named spans, each a histogram with logarithmic buckets, so that memory does not grow with steps.

Host time only: on a GPU a span ends when the work is queued, not when it is done, and nothing here synchronises.
Used by the training loop (load, rehearsal, forward, ...); its statistics go to timeline.json and summary.json.
benchmarks/spans.py measures what a span costs.
"""

import math
import threading
from collections import deque
from time import perf_counter_ns
from types import TracebackType

import numpy as np

# Bucket k holds [GROWTH**k, GROWTH**(k+1)) ns and is read as its geometric middle: at most 2 % from any value in it.
_GROWTH = 1.04
_BUCKETS_PER_E_FOLD = 1 / math.log(_GROWTH)
# A step only appends a number; sorting so many of them into buckets at once takes a hundredth of one by one.
_SORTED_AT_ONCE = 4096


KEPT = 1024  # as many as the C++ engine keeps


class Spans:
    """A set of named timings. Every method may be called from any thread. At most about 1100 buckets per name.

    kept: of so many, the last of each name, begin and end are kept as well.
    """

    def __init__(self, kept: int = 0) -> None:
        self._kept = kept
        self._series: dict[str, _Series] = {}

    def span(self, name: str) -> "_Span":
        """Context manager that adds the time its block takes, also when the block raises. May be nested."""
        return _Span(self._series.get(name) or self._new(name))

    def add(self, name: str, ns: int) -> None:
        """Add one duration in nanoseconds; below 1 ns it counts as 1."""
        (self._series.get(name) or self._new(name)).add(ns)

    def stats(self) -> dict[str, dict[str, float]]:
        """Per name: `count`, exact `total_ms` and `mean_ms`, `p50_ms` and `p95_ms` (nearest rank, within 2 %).

        Names in the order in which they first began; one that has not ended yet is not there.
        """
        return {name: series.stats() for name, series in list(self._series.items()) if series.sort()}

    def recent(self) -> dict[str, list[tuple[int, int]]]:
        """Per name: begin and end of what was kept of its spans, oldest first, in ns of time.perf_counter_ns()."""
        return {name: list(series.recent) for name, series in list(self._series.items()) if series.recent}

    def _new(self, name: str) -> "_Series":
        return self._series.setdefault(name, _Series(self._kept))


class _Series:
    __slots__ = ("_sorting", "buckets", "pending", "recent", "total_ns")

    def __init__(self, kept: int) -> None:
        self._sorting = threading.Lock()
        self.pending: list[int] = []
        self.recent: deque[tuple[int, int]] | None = deque(maxlen=kept) if kept else None
        self.total_ns = 0
        self.buckets: dict[int, int] = {}

    def add(self, ns: int) -> None:
        self.pending.append(ns)
        if len(self.pending) >= _SORTED_AT_ONCE:
            self.sort()

    def sort(self) -> bool:
        """Put what is pending into buckets; whether there is anything in them."""
        with self._sorting:
            # Others append meanwhile, behind these: a list's own operations are atomic.
            taken = self.pending[:]
            del self.pending[: len(taken)]
            values = np.maximum(np.array(taken, dtype=np.int64), 1)
            self.total_ns += int(values.sum())
            buckets, counts = np.unique((np.log(values) * _BUCKETS_PER_E_FOLD).astype(np.int64), return_counts=True)
            for bucket, count in zip(buckets.tolist(), counts.tolist(), strict=True):
                self.buckets[bucket] = self.buckets.get(bucket, 0) + count
            return bool(self.buckets)

    def stats(self) -> dict[str, float]:
        with self._sorting:
            count = sum(self.buckets.values())
            total_ms = self.total_ns / 1e6
            return {
                "count": count,
                "total_ms": total_ms,
                "mean_ms": total_ms / count,
                "p50_ms": self._percentile_ms(0.50, count),
                "p95_ms": self._percentile_ms(0.95, count),
            }

    def _percentile_ms(self, fraction: float, count: int) -> float:
        rank = math.ceil(fraction * count)
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                break
        return float(_GROWTH ** (bucket + 0.5) / 1e6)


class _Span:
    # A class and not a generator: contextlib.contextmanager alone costs more than the whole of this.
    __slots__ = ("_series", "_start_ns")

    def __init__(self, series: _Series) -> None:
        self._series = series

    def __enter__(self) -> None:
        self._start_ns = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_ns = perf_counter_ns()
        series = self._series
        pending = series.pending
        pending.append(end_ns - self._start_ns)
        if len(pending) >= _SORTED_AT_ONCE:
            series.sort()
        if series.recent is not None:
            series.recent.append((self._start_ns, end_ns))
