"""Where time goes: named spans, each a histogram with logarithmic buckets, so that memory does not grow with steps.

Host time only: on a GPU a span ends when the work is queued, not when it is done, and nothing here synchronises.
Used by the training loop (load, wait, forward, ...); its statistics go to timeline.png and summary.json.
"""

import math
import threading
from time import perf_counter_ns
from types import TracebackType

# Bucket k holds [GROWTH**k, GROWTH**(k+1)) ns and is read as its geometric middle: at most 2 % from any value in it.
_GROWTH = 1.04
_BUCKETS_PER_E_FOLD = 1 / math.log(_GROWTH)


class Spans:
    """A set of named timings. Every method may be called from any thread. At most about 1100 buckets per name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[str, _Series] = {}

    def span(self, name: str) -> "_Span":
        """Context manager that adds the time its block takes, also when the block raises. May be nested."""
        return _Span(self, name)

    def add(self, name: str, ns: int) -> None:
        """Add one duration in nanoseconds; below 1 ns it counts as 1."""
        ns = max(ns, 1)
        bucket = int(math.log(ns) * _BUCKETS_PER_E_FOLD)
        with self._lock:
            series = self._series.get(name)
            if series is None:
                series = self._series[name] = _Series()
            series.total_ns += ns
            series.buckets[bucket] = series.buckets.get(bucket, 0) + 1

    def stats(self) -> dict[str, dict[str, float]]:
        """Per name: `count`, exact `total_ms` and `mean_ms`, `p50_ms` and `p95_ms` (nearest rank, within 2 %)."""
        with self._lock:
            return {name: series.stats() for name, series in self._series.items()}


class _Series:
    __slots__ = ("buckets", "total_ns")

    def __init__(self, total_ns: int = 0, buckets: dict[int, int] | None = None) -> None:
        self.total_ns = total_ns
        self.buckets = buckets if buckets is not None else {}

    def stats(self) -> dict[str, float]:
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
    __slots__ = ("_name", "_owner", "_start_ns")

    def __init__(self, owner: Spans, name: str) -> None:
        self._owner = owner
        self._name = name

    def __enter__(self) -> None:
        self._start_ns = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.add(self._name, perf_counter_ns() - self._start_ns)
