"""What takes part in the benchmark. A contestant is filled once, then does steps: store a batch, deliver the draws.

Here: the interface, our implementations through their public interface, and a buffer of per-sample Python loops. The
memory limit is in limit.py, other projects' buffers are in peers.py.
"""

import random
from abc import ABC, abstractmethod
from time import perf_counter_ns

import torch
from torch import Tensor

from reprise.benchmarks.workloads import POLICY, Batch, Trace, Workload
from reprise.buffer import RehearsalBuffer

FORMS = ("standard", "flyweight", "python", "standard+augment", "standard+rows")
"""Our implementations driven by submit() and wait(), and `standard` by augment(), with its rows copied and in place."""


class Contestant(ABC):
    """One way of doing a step. `submit` and `wait` are what a training loop would call; `prepare` is never timed."""

    refills = True
    """Whether it starts afresh with every trace: where less is stored the longer a buffer has been full."""
    separates = True
    """Whether the time in submit() is the insertion and that in wait() the draw."""

    def __init__(self, name: str, workload: Workload) -> None:
        self.name = name
        self.workload = workload

    @property
    def runs(self) -> str:
        """What really runs under this name."""
        return self.name

    @abstractmethod
    def fill(self, trace: Trace) -> None:
        """Start afresh and take the trace's first `fill_steps` batches."""

    def prepare(self, batch: Batch) -> None:  # noqa: B027
        """Whatever comes before a step and is none of the buffer's business."""

    @abstractmethod
    def submit(self, batch: Batch) -> None: ...

    @abstractmethod
    def wait(self) -> None: ...

    def step(self, batch: Batch) -> tuple[int, int]:
        """A step with nothing in between: nanoseconds in submit and in wait."""
        start = perf_counter_ns()
        self.submit(batch)
        between = perf_counter_ns()
        self.wait()
        return between - start, perf_counter_ns() - between

    def bytes_per_step(self, trace: Trace, index: int) -> int:
        """Bytes moved by step `index`: stored once, drawn once."""
        return self.workload.record_bytes * (self.workload.candidates + sum(self.workload.draws))

    def parts_us(self) -> dict[str, float]:
        """Mean of each part of a step since fill(), where submit() and wait() are not these parts themselves."""
        return {}

    def close(self) -> None:  # noqa: B027
        """Give the memory back."""


class Bare(Contestant):
    """No buffer at all: what a loop costs without one."""

    def fill(self, trace: Trace) -> None: ...

    def submit(self, batch: Batch) -> None: ...

    def wait(self) -> None: ...


class Ours(Contestant):
    """A RehearsalBuffer, class-balanced, driven by submit() and wait()."""

    separates = False

    def __init__(self, name: str, workload: Workload) -> None:
        super().__init__(name, workload)
        self._buffer: RehearsalBuffer | None = None
        self._runs = ""
        self._filling: dict[str, dict[str, float]] = {}

    @property
    def buffer(self) -> RehearsalBuffer:
        assert self._buffer is not None, "fill() comes first"
        return self._buffer

    @property
    def runs(self) -> str:
        return self._runs

    def fill(self, trace: Trace) -> None:
        self._fill(trace)
        # From here on every wait() waits for the submit() before it.
        self.buffer.wait()

    def submit(self, batch: Batch) -> None:
        self.buffer.submit(**batch.arguments)

    def wait(self) -> None:
        self.buffer.wait()

    def bytes_per_step(self, trace: Trace, index: int) -> int:
        return sum(trace.bytes_at(index))

    def parts_us(self) -> dict[str, float]:
        means = {}
        for name, part in self.buffer.timings().items():
            filling = self._filling.get(name, {"total_ms": 0.0, "count": 0})
            if name not in ("submit", "wait") and part["count"] > filling["count"]:
                spent_ms = part["total_ms"] - filling["total_ms"]
                means[name] = 1000 * spent_ms / (part["count"] - filling["count"])
        return means

    def close(self) -> None:
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None

    def _fill(self, trace: Trace) -> None:
        self.close()
        self._buffer = RehearsalBuffer(
            fields=self.workload.field_map,
            capacity=self.workload.capacity,
            draws=self.workload.draws,
            candidates=self.workload.candidates,
            policy=POLICY,
            implementation=self.name.partition("+")[0],
            seed=trace.seed,
        )
        self._runs = self._buffer.implementation
        for index in range(trace.fill_steps):
            self._buffer.wait()
            self._buffer.submit(**trace.batch(index).arguments)
        self._buffer.drain()
        self._filling = self._buffer.timings()


class Augmented(Ours):
    """`standard` driven by augment(), from a batch that the loader has just collated: elsewhere, or into rows(b).

    complete: the time until everything is stored and drawn counts, not only the time in augment().
    """

    def __init__(self, name: str, workload: Workload, complete: bool = True) -> None:
        super().__init__(name, workload)
        self._in_place = name.endswith("+rows")
        self._complete = complete
        # They take turns, as the engine may still read the one before.
        self._own = [] if self._in_place else [self._empty(), self._empty()]
        self._collated: dict[str, Tensor] = {}

    def fill(self, trace: Trace) -> None:
        self._fill(trace)  # augment() waits for the last submit()

    def prepare(self, batch: Batch) -> None:
        self._own.reverse()
        self._collated = self.buffer.rows(self.workload.batch_size) if self._in_place else self._own[0]
        for name, value in {**batch.fields, "y": batch.y}.items():
            self._collated[name].copy_(value)

    def submit(self, batch: Batch) -> None:
        self.buffer.augment(task=batch.index, **self._collated)

    def wait(self) -> None:
        if self._complete:
            self.buffer.drain()

    def bytes_per_step(self, trace: Trace, index: int) -> int:
        copied = 0 if self._in_place else self.workload.batch_size * self.workload.record_bytes
        return super().bytes_per_step(trace, index) + copied

    def _empty(self) -> dict[str, Tensor]:
        rows = self.workload.batch_size
        columns = {name: field.empty(rows, torch.device("cpu")) for name, field in self.workload.fields}
        return {**columns, "y": torch.empty(rows, dtype=torch.int64)}


class Loop(Contestant):
    """The buffer of many published scripts: a list of samples, written and stacked one by one. Random slots."""

    refills = False

    def __init__(self, workload: Workload) -> None:
        super().__init__("loop", workload)
        self._samples: list[dict[str, Tensor]] = []
        self._random = random.Random(5)

    def fill(self, trace: Trace) -> None:
        for index in range(trace.fill_steps):
            self.submit(trace.batch(index))

    def submit(self, batch: Batch) -> None:
        for row in range(self.workload.candidates):
            sample = {name: value[row].clone() for name, value in batch.fields.items()}
            sample["y"] = batch.y[row].clone()
            if len(self._samples) < self.workload.capacity:
                self._samples.append(sample)
            else:
                self._samples[self._random.randrange(self.workload.capacity)] = sample

    def wait(self) -> None:
        for size in self.workload.draws:
            chosen = self._random.sample(self._samples, size)
            for name in chosen[0]:
                torch.stack([sample[name] for sample in chosen])

    def close(self) -> None:
        self._samples = []


def ours(name: str, workload: Workload) -> Ours:
    return Augmented(name, workload) if "+" in name else Ours(name, workload)
