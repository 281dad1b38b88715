"""How contestants are timed: all in one process, taking turns in short blocks, so that a slow moment hits all alike.

`unhidden` times steps back to back, `hidden` steps with a matmul loop in between. Ratios are formed within a repeat or
a round, then their median is taken: absolute times mean nothing on a shared machine.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter_ns, thread_time_ns
from typing import Any, TypeVar

import numpy as np
import torch

from reprise.benchmarks.contestants import Bare, Contestant
from reprise.benchmarks.workloads import Trace, Workload, trace

T = TypeVar("T")

_KEPT_FRESH = 0.4
"""Contestants start afresh after offering this share of the capacity: a full buffer stores ever fewer candidates."""

_SLOW_BLOCK_NS = 50_000_000
"""A block of a slow contestant is cut to about this long."""


@dataclass(frozen=True)
class Settings:
    """How much is measured. A block is `warmup` steps that do not count and `block` that do."""

    steps: int = 300
    repeats: int = 3
    block: int = 10
    warmup: int = 2
    capacities: tuple[int, ...] = (2_000, 20_000, 200_000)
    compute_ms: float = 5.0
    idle_seconds: float = 5.0

    @property
    def stride(self) -> int:
        return self.block + self.warmup


@dataclass
class Series:
    """What was recorded of one contestant: per repeat the steps' nanoseconds, whole and in its two calls."""

    submit_ns: list[list[int]] = field(default_factory=list)
    wait_ns: list[list[int]] = field(default_factory=list)
    step_bytes: list[int] = field(default_factory=list)
    loop_ns: list[int] = field(default_factory=list)
    """Of each block as a whole; only where there is something besides the steps."""

    def begin(self) -> None:
        self.submit_ns.append([])
        self.wait_ns.append([])

    def add(self, ns: tuple[int, int]) -> None:
        self.submit_ns[-1].append(ns[0])
        self.wait_ns[-1].append(ns[1])

    @property
    def repeats(self) -> list[float]:
        """Median step in µs, per repeat."""
        return [percentile_us(np.add(a, b), 50) for a, b in zip(self.submit_ns, self.wait_ns, strict=True)]

    def summary(self) -> dict[str, Any]:
        submit, wait = np.concatenate(self.submit_ns), np.concatenate(self.wait_ns)
        return {
            "steps": len(submit),
            "p50_us": percentile_us(submit + wait, 50),
            "p95_us": percentile_us(submit + wait, 95),
            "submit_p50_us": percentile_us(submit, 50),
            "wait_p50_us": percentile_us(wait, 50),
        }


def unhidden(workload: Workload, contestants: Sequence[Contestant], settings: Settings) -> dict[str, dict[str, Any]]:
    """Steps back to back. Per contestant: p50, p95, bytes per step, parts, and its ratio to every other contestant."""
    series = {contestant.name: Series() for contestant in contestants}
    parts: dict[str, dict[str, float]] = {}

    def run(contestant: Contestant, stream: Trace, start: int) -> None:
        mine = series[contestant.name]
        spent = 0
        for index in range(start, start + settings.stride):
            batch = stream.batch(index)
            contestant.prepare(batch)
            ns = contestant.step(batch)
            spent += sum(ns)
            late = spent > _SLOW_BLOCK_NS
            if index - start >= settings.warmup or late:
                mine.add(ns)
                mine.step_bytes.append(contestant.bytes_per_step(stream, index))
            if late:
                break

    for _ in _blocks(workload, contestants, settings, series, run):
        parts = {contestant.name: contestant.parts_us() for contestant in contestants}
    return {
        contestant.name: {
            "runs": contestant.runs,
            **series[contestant.name].summary(),
            "separates": contestant.separates,
            "parts_mean_us": parts[contestant.name],
            "bytes_per_step": float(np.mean(series[contestant.name].step_bytes)),
            "ratio_to": {other: _ratio(series[contestant.name], series[other]) for other in series},
        }
        for contestant in contestants
    }


def hidden(workload: Workload, contestants: Sequence[Contestant], settings: Settings) -> dict[str, dict[str, Any]]:
    """Submit, compute, wait, on one core. Per contestant: time in submit and wait, and the loop against a bare one.

    A second bare loop takes part as "none": how far its ratio is from 1 says what this machine can resolve today.
    """
    compute = matmul_loop(settings.compute_ms)
    bare = Bare("bare", workload)
    contestants = [Bare("none", workload), *contestants]
    everyone = [bare, *contestants]
    series = {contestant.name: Series() for contestant in everyone}

    def run(contestant: Contestant, stream: Trace, start: int) -> None:
        mine = series[contestant.name]
        begun = perf_counter_ns()
        for index in range(start, start + settings.stride):
            batch = stream.batch(index)
            before = perf_counter_ns()
            contestant.submit(batch)
            submitted = perf_counter_ns()
            compute()
            computed = perf_counter_ns()
            contestant.wait()
            mine.add((submitted - before, perf_counter_ns() - computed))
        mine.loop_ns.append(perf_counter_ns() - begun)

    for _ in _blocks(workload, everyone, settings, series, run, pinned=True):
        pass
    bare_ns = series[bare.name].loop_ns
    return {
        contestant.name: {
            "runs": contestant.runs,
            **series[contestant.name].summary(),
            "loop_ratio": median(a / b for a, b in zip(series[contestant.name].loop_ns, bare_ns, strict=True)),
        }
        for contestant in contestants
    }


def _blocks(
    workload: Workload,
    contestants: Sequence[Contestant],
    settings: Settings,
    series: dict[str, Series],
    run: Callable[[Contestant, Trace, int], None],
    pinned: bool = False,
) -> Iterator[None]:
    """Let the contestants take turns, block after block; yields before contestants are filled anew or closed.

    pinned: the calling thread is bound to one core while it measures, threads that a contestant has started are not.
    """
    num_blocks = -(-settings.steps // settings.block)
    fresh_steps = _KEPT_FRESH * workload.capacity / workload.candidates
    fresh_blocks = min(max(int(fresh_steps / settings.stride), 1), num_blocks)
    seed = 0
    try:
        for repeat in range(settings.repeats):
            for mine in series.values():
                mine.begin()
            for first in range(0, num_blocks, fresh_blocks):
                seed += 1
                stream = trace(workload, seed, fresh_blocks * settings.stride)
                for contestant in contestants:
                    if contestant.refills or seed == 1:
                        contestant.fill(stream)
                with _pinned() if pinned else nullcontext():
                    for block in range(min(fresh_blocks, num_blocks - first)):
                        start = stream.fill_steps + block * settings.stride
                        for contestant in turns(contestants, block + repeat):
                            run(contestant, stream, start)
                yield
    finally:
        for contestant in contestants:
            contestant.close()


def turns(contestants: Sequence[T], turn: int) -> list[T]:
    """Another order in every round, so that nobody always comes after the same neighbour."""
    shift = turn % max(len(contestants), 1)
    return [*contestants[shift:], *contestants[:shift]]


@contextmanager
def _pinned() -> Iterator[None]:
    """Bind the calling thread, and no other, to one of the cores it may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def matmul_loop(milliseconds: float) -> Callable[[], None]:
    """A function that multiplies matrices for about so long."""
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    out = torch.empty(256, 256)

    def repeat(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    repeat(50)
    once_ns = median(_timed_loop(lambda: repeat(20), 1) for _ in range(9)) / 20
    count = max(round(milliseconds * 1e6 / once_ns), 1)
    return lambda: repeat(count)


def _timed_loop(body: Callable[[], None], count: int) -> int:
    # CPU time of this thread: on a core that others want too, the same amount of work is found.
    start = thread_time_ns()
    for _ in range(count):
        body()
    return thread_time_ns() - start


def _ratio(mine: Series, other: Series) -> dict[str, float]:
    ratios = [a / b for a, b in zip(mine.repeats, other.repeats, strict=True)]
    return {"median": median(ratios), "low": min(ratios), "high": max(ratios)}


def percentile_us(ns: Any, percentile: float) -> float:
    """Of nanoseconds."""
    return float(np.percentile(np.asarray(ns, dtype=np.float64), percentile)) / 1000
