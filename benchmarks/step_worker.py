"""One rank of a job of benchmarks/step_overhead.py: what is timed. Launchers start it as that file's worker.

Network, optimiser, data-parallel engine, buffer, Stepper and strategies are put together as main.py does it, and one
step is one call of `observe`; only the samples are random. All contestants train the same network and take turns step
by step, on every rank at the same time, so that a slow moment of the machine hits them alike.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from reprise import backbone
from reprise.benchmarks import job
from reprise.benchmarks.measure import turns
from reprise.buffer import Field, RehearsalBuffer
from reprise.cl_models import STRATEGIES, Parts
from reprise.cl_models.base import ContinualModel, Metrics
from reprise.cl_models.vanilla import Vanilla
from reprise.runtime import allocator, dist, seeds
from reprise.runtime.dist import Communicator
from reprise.runtime.spans import Spans
from reprise.scenarios.cifar import CIFAR100
from reprise.scenarios.transforms import ImageTransform
from reprise.train.options import ModelConfig
from reprise.train.regime import Regime
from reprise.train.stepper import Stepper

_SHAPE = (3, 32, 32)
_CLASSES = CIFAR100.num_classes
_SAMPLES = 1024
"""Random samples that batches are gathered from; more would not be slower to gather."""
_COUNTED_STEPS = 2
"""Their passes are counted; they warm up as well, and are not timed."""
_SEED = 42
_CPU = torch.device("cpu")
BUFFER_CALLS = ("augment", "submit", "wait")
"""What a step calls of the buffer; each is a span of its name."""

Span = Callable[[str], AbstractContextManager[Any]]


def run(folder: Path) -> None:
    """Do what asked.json says; rank 0 writes results.json, whoever fails its reason to failed.txt."""
    job.answer(folder, _run)


class Bare(Vanilla):
    """Steps of nothing but passes: one after the other forward, backward and the average over ranks, then one update.

    rows: of each pass, in order. With one pass this is Vanilla.
    """

    def __init__(self, parts: Parts, rows: Sequence[int]) -> None:
        super().__init__(parts)
        self._rows = list(rows)

    def observe(self, x: Tensor, y: Tensor, task: int | None) -> Metrics:
        *extra, (last_x, last_y) = zip(x.split(self._rows), y.split(self._rows), strict=True)
        for x, y in extra:
            with self.parts.stepper.averaged(partial(self.mean_loss, rows=len(y)), self.training_inputs(x), y):
                pass
        return super().observe(last_x, last_y, task)


class _Contestant:
    """A strategy, what its steps have cost, and what they consist of. rows: new samples per step on this rank."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.strategy: ContinualModel
        self.passes: dict[str, Any] = {}
        self.baseline = self.vanilla = ""  # contestants with the same passes; with one pass over as many rows in all
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.spans = Spans()
        self._metrics: Metrics = {}

    def span(self, name: str) -> AbstractContextManager[Any]:
        return self.spans.span(name)

    @property
    def buffer(self) -> RehearsalBuffer | None:
        return self.strategy.parts.buffer

    def step(self, x: Tensor, y: Tensor) -> tuple[int, int]:
        """Nanoseconds by the clock and of this process's CPU time, its engine thread's included."""
        cpu, start = process_time_ns(), perf_counter_ns()
        self._metrics = self.strategy.observe(x, y, 0)
        return perf_counter_ns() - start, process_time_ns() - cpu

    def summary(self) -> dict[str, Any]:
        """As JSON. Spans are this rank's, times are those of all ranks together."""
        assert math.isfinite(float(self._metrics["loss"])), "the loss became infinite: its steps are none that count"
        return {
            "strategy": type(self.strategy).__name__,
            "implementation": self.buffer.implementation if self.buffer else None,
            "passes": self.passes,
            "baseline": self.baseline,
            "vanilla": self.vanilla,
            "wall_ms": self.wall_ms,
            "cpu_ms": self.cpu_ms,
            "spans": self.spans.stats(),
        }


class _Job:
    """Everything that the contestants share, and how they are made."""

    def __init__(self, comm: Communicator, asked: dict[str, Any]) -> None:
        self.comm, self.asked = comm, asked
        self.contestants: dict[str, _Contestant] = {}
        torch.manual_seed(seeds.derive(_SEED, "initial weights"))
        self.network = backbone.build(asked["backbone"], num_classes=_CLASSES, sample_shape=_SHAPE, config={})
        regime = Regime(
            backbone.default_regime(asked["backbone"], 1, {}),
            lr=backbone.default_lr(asked["backbone"]),
            batches_per_step=comm.size,
            samples_per_step=asked["batch_size"] * comm.size,
            warmup_epochs=0,
            epochs=1,
        )
        # One network for all: Horovod's hooks are never removed, and no contestant has colder caches than another.
        self._model, self._optimizer = comm.data_parallel(
            self.network, regime.build_optimizer(self.network.parameters())
        )
        self.network.train()
        self._transform = ImageTransform(CIFAR100.mean, CIFAR100.std, padding=4, flip=True)
        self._random = seeds.torch_generator(_SEED, "samples", comm.rank)
        self._x = torch.randint(256, (_SAMPLES, *_SHAPE), generator=self._random, dtype=torch.uint8)
        self._y = torch.randint(_CLASSES, (_SAMPLES,), generator=self._random)

    def add(self, name: str, implementation: str) -> None:
        """A strategy, and its baselines beside it unless they are there already."""
        drawn = len(STRATEGIES.get(name).draws) * self.asked["representatives"]
        label = name if implementation == self.asked["implementations"][0] else f"{name}, {implementation}"
        contestant = self._contestant(name, self.asked["batch_size"], implementation)
        self._count(contestant)
        contestant.vanilla = self._baseline((self.asked["batch_size"] + drawn,))
        contestant.baseline = self._baseline(tuple(contestant.passes["forward"]))
        baseline = self.contestants[contestant.baseline]
        assert contestant.passes == baseline.passes, f"{name} does {contestant.passes}, its baseline {baseline.passes}"
        self.contestants[label] = contestant

    def add_control(self) -> None:
        """The first baseline once more: how far their ratio is from 1 is what the machine cannot resolve."""
        first = next(iter(self.contestants))
        (rows,) = self.contestants[first].passes["forward"]
        control = self._contestant("Vanilla", rows)
        self._count(control)
        control.baseline = control.vanilla = first
        self.contestants[f"{first}, again"] = control

    def take_turns(self) -> int:
        """Time `turns` steps of every contestant, fewer when time is up; returns how many. Another order every turn."""
        deadline = perf_counter_ns() + 6e10 * self.asked["minutes"]
        for turn in range(self.asked["turns"]):
            if turn and self.comm.broadcast_object(perf_counter_ns() > deadline):
                return turn
            order = turns(list(self.contestants.values()), turn)
            # Backwards every other time, so that nobody always comes after the same neighbour.
            for contestant in order if turn % 2 else reversed(order):
                x, y = self._load(contestant)
                self.comm.barrier()
                ranks = self.comm.allgather(torch.tensor(contestant.step(x, y)))
                # The step of all ranks together is as long as the longest.
                contestant.wall_ms.append(int(ranks[:, 0].max()) / 1e6)
                contestant.cpu_ms.append(int(ranks[:, 1].sum()) / 1e6)
        return int(self.asked["turns"])

    def close(self) -> None:
        for contestant in self.contestants.values():
            if contestant.buffer:
                contestant.buffer.close()

    def _baseline(self, rows: tuple[int, ...]) -> str:
        """Name of the contestant without rehearsal whose steps do such passes."""
        name = f"Vanilla, {rows[0]} rows" if len(rows) == 1 else f"bare, {' + '.join(map(str, rows))} rows"
        if name not in self.contestants:
            self.contestants[name] = self._contestant("Vanilla", sum(rows), passes=rows)
            self._count(self.contestants[name])
        return name

    def _contestant(self, name: str, rows: int, implementation: str = "", passes: tuple[int, ...] = ()) -> _Contestant:
        kind = STRATEGIES.get(name)
        made = _Contestant(rows)
        parts = Parts(
            device=_CPU,
            network=self.network,
            stepper=Stepper(self._model, self._optimizer, self.comm, device=_CPU, span=made.span),
            loss=backbone.loss(self.asked["backbone"]),
            augment=self._transform.augment,
            view=self._transform.view,
            normalise=self._transform.normalise,
            augment_rng=seeds.torch_generator(_SEED, "augment", self.comm.rank),
            buffer=self._full_buffer(kind, implementation, made.span) if kind.draws else None,
            options=ModelConfig().model_dump(),
            span=made.span,
            stored="views" if kind.stores_outputs else "raw",
        )
        made.strategy = Bare(parts, passes) if len(passes) > 1 else kind(parts)
        made.strategy.begin_task(None)
        return made

    def _full_buffer(self, kind: type[ContinualModel], implementation: str, span: Span) -> RehearsalBuffer:
        fields = {"x": Field(_SHAPE, torch.uint8)}
        if kind.stores_outputs:
            fields["logits"] = Field((_CLASSES,), torch.float32)
        buffer = RehearsalBuffer(
            fields,
            self.asked["capacity"],
            draws=(self.asked["representatives"],) * len(kind.draws),
            candidates=self.asked["candidates"],
            implementation=implementation,
            seed=_SEED,
            dist=self.comm,
        )
        rows = self.asked["candidates"]
        outputs: dict[str, Any] = {}
        if kind.stores_outputs:
            outputs["logits"] = torch.randn((rows, _CLASSES), generator=self._random)
        for _ in range(math.ceil(self.asked["capacity"] / (rows * self.comm.size))):
            buffer.wait()
            x, y = self._gather(rows)
            buffer.submit(x=x, y=y, task=0, **outputs)
        buffer.drain()
        for name in BUFFER_CALLS:
            setattr(buffer, name, _timed(getattr(buffer, name), span, name))
        return buffer

    def _count(self, contestant: _Contestant) -> None:
        """Find out which passes a step consists of; they are the same in every step of a full buffer."""
        seen = []
        for _ in range(_COUNTED_STEPS):
            contestant.spans = Spans()
            with _passes(self.network) as rows:
                contestant.step(*self._load(contestant))
            # The Stepper enters this span once for every average over ranks.
            seen.append({**rows, "gradient_averages": int(contestant.spans.stats()["optimiser"]["count"])})
        contestant.spans = Spans()
        contestant.passes = seen[-1]
        assert all(step == seen[0] for step in seen), f"passes differ from step to step: {seen}"
        assert seen[0]["forward"] == seen[0]["backward"], f"no baseline has passes like these: {seen[0]}"

    def _load(self, contestant: _Contestant) -> tuple[Tensor, Tensor]:
        """The next batch, where the loop's loader would put it."""
        return self._gather(contestant.rows, contestant.strategy.rows(contestant.rows))

    def _gather(self, rows: int, into: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(_SAMPLES, (rows,), generator=self._random)
        if into is None:
            return self._x[chosen], self._y[chosen]
        torch.index_select(self._x, 0, chosen, out=into["x"])
        torch.index_select(self._y, 0, chosen, out=into["y"])
        return into["x"], into["y"]


def _timed(call: Callable[..., Any], span: Span, name: str) -> Callable[..., Any]:
    def timed(**arguments: Any) -> Any:
        with span(name):
            return call(**arguments)

    return timed


@contextmanager
def _passes(network: nn.Module) -> Iterator[dict[str, list[int]]]:
    """Inside, the rows of every pass through the network, and of every gradient that comes back to its outputs."""
    rows: dict[str, list[int]] = {"forward": [], "backward": []}

    def count(module: nn.Module, inputs: Any, outputs: Tensor) -> None:
        rows["forward"].append(len(outputs))
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: rows["backward"].append(len(gradient)))

    hook = network.register_forward_hook(count)
    try:
        yield rows
    finally:
        hook.remove()


def _run(asked: dict[str, Any]) -> dict[str, Any] | None:
    logging.disable(logging.INFO)
    allocator.keep_freed_memory()
    comm = dist.init()
    torch.set_num_threads(1)
    work = _Job(comm, asked)
    for implementation in asked["implementations"]:
        for name in asked["strategies"]:
            work.add(name, implementation)
    work.add_control()
    busy, own, start = _busy_s(), process_time_ns(), perf_counter_ns()
    done = work.take_turns()
    elapsed_s = (perf_counter_ns() - start) / 1e9
    ours_s = sum(comm.allgather_object((process_time_ns() - own) / 1e9))
    found = {
        "ranks": comm.size,
        "launcher": comm.launcher,
        "engine": comm.name,
        "turns": done,
        "seconds": elapsed_s,
        "cores_used_by_others": max(_busy_s() - busy - ours_s, 0.0) / elapsed_s,
        "contestants": {name: contestant.summary() for name, contestant in work.contestants.items()},
    }
    work.close()
    comm.shutdown()
    return found if comm.rank == 0 else None


def _busy_s() -> float:
    """CPU time that all processes of the machine have used, and that its host has taken, in seconds."""
    times = psutil.cpu_times()._asdict()
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(np.sum([times.get(name, 0.0) for name in names]))
