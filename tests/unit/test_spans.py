"""Timing spans: exact sums, percentiles within their stated error, bounded memory, any thread, resumable."""

import threading
from time import perf_counter_ns

import numpy as np
import pytest

from reprise.runtime import spans as spans_module
from reprise.runtime.spans import Spans


@pytest.mark.parametrize("scale_ns", [1e3, 1e6, 1e9])
def test_percentiles_are_within_five_per_cent_of_the_exact_ones(scale_ns):
    durations = (np.random.default_rng(1).lognormal(0, 1.2, 5000) * scale_ns).astype(np.int64)
    spans = Spans()
    for ns in durations:
        spans.add("step", int(ns))
    stats = spans.stats()["step"]
    ordered = np.sort(durations)
    assert stats["p50_ms"] == pytest.approx(ordered[2499] / 1e6, rel=0.021)
    assert stats["p95_ms"] == pytest.approx(ordered[4749] / 1e6, rel=0.021)


def test_count_sum_and_mean_are_exact():
    spans = Spans()
    for ns in (1_000_000, 2_000_000, 6_000_000):
        spans.add("wait", ns)
    stats = spans.stats()["wait"]
    assert (stats["count"], stats["total_ms"], stats["mean_ms"]) == (3, 9.0, 3.0)


def test_memory_does_not_grow_with_the_number_of_spans():
    spans = Spans()
    random = np.random.default_rng(2)
    for ns in random.integers(1, 2**62, 3000, dtype=np.int64):
        spans.add("step", int(ns) >> int(random.integers(0, 62)))
    assert spans.stats()["step"]["count"] == 3000
    series = spans._series["step"]
    before = len(series.buckets)
    most = 0
    for _ in range(20_000):
        spans.add("step", 123_456)
        most = max(most, len(series.pending))
    for _ in range(20_000):
        with spans.span("step"):
            most = max(most, len(series.pending))
    assert most <= 4096
    assert spans.stats()["step"]["count"] == 43_000
    assert len(series.buckets) <= 1200
    assert before <= 1200


def test_a_span_that_has_not_ended_is_not_there():
    spans = Spans()
    with spans.span("step"):
        assert spans.stats() == {}
    assert list(spans.stats()) == ["step"]


def test_a_span_measures_its_block_also_nested_and_when_it_raises(monkeypatch):
    ticks = iter([0, 10, 40, 100, 200, 250])
    monkeypatch.setattr(spans_module, "perf_counter_ns", lambda: next(ticks))
    spans = Spans()
    with spans.span("step"), spans.span("wait"):
        pass
    with pytest.raises(KeyError), spans.span("step"):
        raise KeyError("from the block")
    stats = spans.stats()
    assert stats["wait"]["total_ms"] == pytest.approx(30e-6)
    assert (stats["step"]["count"], stats["step"]["total_ms"]) == (2, pytest.approx(150e-6))


def test_adds_from_several_threads_are_all_counted():
    spans = Spans()

    def add_many():
        for ns in range(1, 5001):
            spans.add("shared", ns)

    threads = [threading.Thread(target=add_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = spans.stats()["shared"]
    assert (stats["count"], stats["total_ms"]) == (20_000, pytest.approx(4 * 5000 * 5001 / 2 / 1e6))


def test_durations_of_zero_are_counted():
    spans = Spans()
    spans.add("nothing", 0)
    assert spans.stats()["nothing"]["count"] == 1


def test_the_last_spans_of_each_name_are_kept_where_asked_for():
    spans = Spans(kept=3)
    before = perf_counter_ns()
    for name in ("load", "step", "step", "step", "step"):
        with spans.span(name):
            pass
    recent = spans.recent()
    assert {name: len(times) for name, times in recent.items()} == {"load": 1, "step": 3}
    flat = [at for name in ("load", "step") for interval in recent[name] for at in interval]
    assert [before, *flat] == sorted([before, *flat])
    assert flat[-1] <= perf_counter_ns()
    assert spans.stats()["step"]["count"] == 4
    assert Spans().recent() == {}
    unkept = Spans()
    with unkept.span("step"):
        pass
    assert unkept.recent() == {}
