"""The loop over tasks, epochs and steps: the one place that knows the order of things. main.py builds its parts.

A training step is three lines in `_train_task`: set the learning rate, load a batch, let the strategy observe it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from reprise.buffer import RehearsalBuffer
from reprise.cl_models.base import ContinualModel
from reprise.report.progress import EpochProgress
from reprise.report.sinks import MetricRow, Sink
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import UserError
from reprise.runtime.spans import Spans
from reprise.scenarios.loader import Batches, train_loader
from reprise.scenarios.sampler import TrainSampler
from reprise.scenarios.scenario import Scenario
from reprise.scenarios.task import Task
from reprise.train import checkpoint
from reprise.train.checkpoint import Progress
from reprise.train.evaluation import Scores, average_statistics, evaluate
from reprise.train.regime import Regime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Numbers of a run. Batch sizes are per rank; epochs holds one entry per task."""

    epochs: tuple[int, ...]
    batch_size: int
    eval_batch_size: int
    seed: int
    log_interval: int
    loader_workers: int
    evaluates: bool
    device: torch.device
    checkpoints: Path | None
    fingerprint: dict[str, Any]


class Loop:
    """Trains a strategy on a scenario. regime_for: task -> its optimiser regime.

    Making it raises SharedUserError when a task has too few samples for the batch size.
    """

    def __init__(
        self,
        strategy: ContinualModel,
        scenario: Scenario,
        comm: Communicator,
        settings: Settings,
        *,
        optimizer: torch.optim.Optimizer,
        regime_for: Callable[[int], Regime],
        buffer: RehearsalBuffer | None,
        spans: Spans,
    ) -> None:
        self.strategy = strategy
        self.scenario = scenario
        self.comm = comm
        self.settings = settings
        self.optimizer = optimizer
        self.buffer = buffer
        self._regime_for = regime_for
        self._spans = spans
        self._samplers = [self._sampler(task) for task in scenario.tasks]
        self.progress = Progress(0, 0, 0, 0.0, [], [], [], settings.fingerprint)

    def run(self, sink: Sink, on_evaluation: Callable[[Progress], None], resumed: Progress | None = None) -> Progress:
        """Train the tasks that `resumed` has not finished; returns how far it got, the same on every rank.

        sink: gets every number measured. on_evaluation: called on rank 0 after each evaluation. Collective.
        """
        self._sink, self._on_evaluation = sink, on_evaluation
        if resumed is not None:
            self.progress = resumed
        elif self.settings.evaluates:
            self._evaluate(None)
        for task in self.scenario.tasks[self.progress.tasks_done :]:
            self._train_task(task, self._samplers[task.index])
            if self.settings.evaluates:
                self._evaluate(task)
            self.progress = replace(self.progress, tasks_done=task.index + 1)
            if self.settings.checkpoints is not None:
                folder = self.settings.checkpoints / f"task_{task.index:02d}"
                checkpoint.save(folder, self.progress, self.strategy, self.buffer, self.comm)
        return self.progress

    def _train_task(self, task: Task, sampler: TrainSampler) -> None:
        settings, epochs = self.settings, self.settings.epochs[task.index]
        regime, schedule = self._schedule(task)
        rows = self.strategy.rows if settings.device.type == "cpu" else None
        loader = train_loader(task.train, sampler, workers=settings.loader_workers, rows=rows)
        told = task if self.scenario.boundaries else None
        if told or not task.index:
            self.strategy.begin_task(told)
        self.strategy.network.train()
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            started, images, loss_of = perf_counter(), 0, _Mean()
            title = f"task {task.index} ({task.index + 1}/{len(self.scenario.tasks)}), epoch {epoch + 1}/{epochs}"
            with EpochProgress(self.comm.rank == 0, len(sampler), title) as bar:
                batches = iter(loader)
                for step in range(len(sampler)):
                    with self._spans.span("step"):
                        regime.apply(self.optimizer, schedule(epoch + step / len(sampler)), self.progress.steps + step)
                        with self._spans.span("load"):
                            x, y = next(batches)
                        metrics = self.strategy.observe(x, y, told.index if told else None)
                    images += len(y)
                    loss_of.add(metrics)
                    if self.comm.rank or ((step + 1) % settings.log_interval and step + 1 < len(sampler)):
                        bar.update(step + 1)
                    else:
                        rate = images * self.comm.size / (perf_counter() - started)
                        bar.update(step + 1, loss_of.floats()["loss"], rate)
            self._end_epoch(task.index, epoch, len(sampler), images, perf_counter() - started, loss_of)
        if told or task.index == len(self.scenario.tasks) - 1:
            self.strategy.end_task(told)
        average_statistics(self.strategy.network, self.comm)
        if self.strategy.memorises:
            self._memorise(task, sampler, loader)

    def _memorise(self, task: Task, sampler: TrainSampler, loader: Batches) -> None:
        """Show the strategy a task's samples once more, without training on them."""
        started = perf_counter()
        sampler.set_epoch(self.settings.epochs[task.index])
        self.strategy.network.eval()
        with EpochProgress(self.comm.rank == 0, len(sampler), f"task {task.index}, into the memory") as bar:
            for step, (x, y) in enumerate(loader):
                self.strategy.memorise(x, y, task.index)
                bar.update(step + 1)
        seconds = self.progress.train_seconds + perf_counter() - started
        self.progress = replace(self.progress, train_seconds=seconds)

    def _schedule(self, task: Task) -> tuple[Regime, Callable[[float], float]]:
        """A task's regime, and from epochs of the task to the epochs that the regime counts.

        A task-free stream knows no tasks: the regime of the first one is stretched over all of it.
        """
        if self.scenario.boundaries:
            return self._regime_for(task.index), lambda epoch: epoch
        steps = [len(sampler) * epochs for sampler, epochs in zip(self._samplers, self.settings.epochs, strict=True)]
        per_epoch, before, whole = len(self._samplers[task.index]), sum(steps[: task.index]), max(sum(steps), 1)
        stretch = self.settings.epochs[0] / whole
        return self._regime_for(0), lambda epoch: (before + epoch * per_epoch) * stretch

    def _end_epoch(self, task: int, epoch: int, steps: int, images: int, seconds: float, mean: "_Mean") -> None:
        progress = self.progress
        self.progress = replace(
            progress,
            steps=progress.steps + steps,
            images=progress.images + images * self.comm.size,
            train_seconds=progress.train_seconds + seconds,
        )
        values = {**mean.floats(), "images_per_second": images * self.comm.size / seconds}
        for name, value in values.items():
            self._sink.log(MetricRow(task, epoch, self.progress.steps, "train", name, value))
        if not np.isfinite(values["loss"]):
            loss = values["loss"]
            raise UserError(f"the loss became {loss} in task {task}, epoch {epoch}; lower --lr or warm up longer")

    def _evaluate(self, task: Task | None) -> None:
        """Evaluate on all tasks after `task`, or the untrained model before the first."""
        scores = evaluate(
            self.strategy,
            self.scenario,
            self.comm,
            batch_size=self.settings.eval_batch_size,
            device=self.settings.device,
        )
        if task is None:
            self.progress = replace(self.progress, untrained=scores.class_il.tolist())
            return
        self.progress = replace(
            self.progress,
            class_il=[*self.progress.class_il, scores.class_il.tolist()],
            task_il=[*self.progress.task_il, *([] if scores.task_il is None else [scores.task_il.tolist()])],
        )
        self._log_scores(task.index, scores)
        if self.comm.rank == 0:
            seen = scores.class_il[: task.index + 1]
            measure = "accuracy" if self.scenario.target_shape is None else "absolute error"
            logger.info("after task %d: mean %s on tasks seen %.3f", task.index, measure, seen.mean())
            self._on_evaluation(self.progress)

    def _log_scores(self, task: int, scores: Scores) -> None:
        epoch = self.settings.epochs[task] - 1
        seconds = self.progress.train_seconds
        self._sink.log(MetricRow(task, epoch, self.progress.steps, "train", "train_seconds", seconds))
        names = {"class_il": "accuracy", "task_il": "accuracy_task_il"}
        if scores.task_il is None:
            names = {"class_il": "absolute_error"}
        for name in (*names, "loss", "samples"):
            metric = names.get(name, name)
            for index, value in enumerate(getattr(scores, name)):
                row = MetricRow(task, epoch, self.progress.steps, f"test_task_{index}", metric, float(value))
                self._sink.log(row)

    def _sampler(self, task: Task) -> TrainSampler:
        return TrainSampler(
            len(task.train),
            self.settings.batch_size,
            rank=self.comm.rank,
            world_size=self.comm.size,
            seed=self.settings.seed,
            task=task.index,
        )


class _Mean:
    """Running mean of step metrics of this rank, kept on the device until somebody asks for numbers."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        self._count += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def floats(self) -> dict[str, float]:
        return {name: float(value) / self._count for name, value in self._sums.items()}
