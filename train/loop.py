"""The loop over tasks, epochs and steps: the one place that knows the order of things. main.py builds its parts.

A training step is three lines in `_train_epoch`: set the learning rate, load a batch, let the strategy observe it.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch

from reprise.cl_models.base import ContinualModel
from reprise.report.matrix import average_accuracy, of_accuracies, of_errors, pooled_accuracy
from reprise.report.progress import EpochProgress
from reprise.report.sinks import MetricRow, SinkList
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import PeerLost, RanksChanged, SharedUserError, UserError
from reprise.runtime.spans import Spans
from reprise.scenarios.loader import Batches, eval_loader, train_loader
from reprise.scenarios.sampler import EvalSampler, TrainSampler
from reprise.scenarios.scenario import Scenario
from reprise.scenarios.task import Task
from reprise.train.checkpoint import Progress
from reprise.train.checkpointer import Checkpointer
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


class Loop:
    """Trains a strategy on a scenario. regime_for: task -> its optimiser regime. progress: how far the run is already;
    means: of this rank in the epoch under way. composition: collective, label -> samples stored on all ranks.

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
        spans: Spans,
        progress: Progress,
        means: dict[str, Any],
        composition: Callable[[], Mapping[int, int]] | None,
    ) -> None:
        self.strategy = strategy
        self.scenario = scenario
        self.comm = comm
        self.settings = settings
        self.optimizer = optimizer
        self.progress = progress
        self.updates = 0  # steps whose update this rank has taken
        self._means = means
        self._composition = composition
        self._regime_for = regime_for
        self._spans = spans
        self._samplers = [self._sampler(task) for task in scenario.tasks]

    def run(self, sink: SinkList, on_evaluation: Callable[[Progress], None], checkpointer: Checkpointer) -> Progress:
        """Train what is left; returns how far it got, the same on every rank.

        sink: gets every number measured. on_evaluation: called on rank 0 after each evaluation. Collective. Raises
        StoppedError when a signal has asked for it, with everything saved. After PeerLost and RanksChanged `progress`
        and `updates` say how far this rank has come.
        """
        self._sink, self._on_evaluation, self._checkpointer = sink, on_evaluation, checkpointer
        self.progress = replace(self.progress, rows=sink.rows)
        if self.settings.evaluates and not self.progress.untrained:
            self._evaluate(None)
        for task in self.scenario.tasks[self.progress.tasks_done :]:
            if not self.progress.trained:
                self._train_task(task, self._samplers[task.index])
                self.progress = replace(self.progress, epoch=0, trained=True)
            if self.settings.evaluates:
                self._evaluate(task)
            self.progress = replace(self.progress, tasks_done=task.index + 1, trained=False)
            checkpointer.after_task(self.progress)
        self.comm.at("the end")
        checkpointer.close()
        return self.progress

    def evaluate_again(
        self, sink: SinkList, on_evaluation: Callable[[Progress], None], checkpointer: Checkpointer
    ) -> Progress:
        """Measure what a finished run has learnt, in place of what was measured after its last task.

        As run(), but nothing is trained or saved. Collective. Raises SharedUserError when tasks are left.
        """
        self._sink, self._on_evaluation, self._checkpointer = sink, on_evaluation, checkpointer
        progress, num_tasks = self.progress, len(self.scenario.tasks)
        if progress.tasks_done < num_tasks:
            raise SharedUserError(
                f"eval_only: the checkpoint has finished {progress.tasks_done} of {num_tasks} tasks; load a later one"
            )
        self.progress = replace(
            progress, rows=sink.rows, class_il=progress.class_il[:-1], task_il=progress.task_il[:-1]
        )
        self._evaluate(self.scenario.tasks[-1])
        self.comm.at("the end")
        checkpointer.close()
        return self.progress

    def _train_task(self, task: Task, sampler: TrainSampler) -> None:
        epochs = self.settings.epochs[task.index]
        regime, schedule = self._schedule(task)
        rows = self.strategy.rows if self.settings.device.type == "cpu" else None
        loader = train_loader(task.train, sampler, workers=self.settings.loader_workers, rows=rows)
        told = task if self.scenario.boundaries else None
        if (told or not task.index) and self.progress.between_tasks:
            self.strategy.begin_task(told)
        self.strategy.network.train()
        for epoch in range(self.progress.epoch, epochs):
            self._train_epoch(task, epoch, sampler, loader, regime, schedule)
        if told or task.index == len(self.scenario.tasks) - 1:
            self.strategy.end_task(told)
        average_statistics(self.strategy.network, self.comm)
        if told:
            started = perf_counter()
            self.comm.at(f"what follows the training of task {task.index}")
            self.strategy.consolidate(task, partial(self._share, task))
            seconds = self.progress.train_seconds + perf_counter() - started
            self.progress = replace(self.progress, train_seconds=seconds)
        if self.strategy.memorises:
            self._memorise(task, sampler, loader)

    def _train_epoch(
        self,
        task: Task,
        epoch: int,
        sampler: TrainSampler,
        loader: Batches,
        regime: Regime,
        schedule: Callable[[float], float],
    ) -> None:
        sampler.set_epoch(epoch, self.progress.samples)
        self.strategy.begin_epoch(epoch)
        started, step, images, mean = perf_counter(), -1, 0, _Mean(self._means, self.settings.device)
        self._means = {}
        told = task.index if self.scenario.boundaries else None
        title = f"task {task.index} ({task.index + 1}/{len(self.scenario.tasks)})"
        title += f", epoch {epoch + 1}/{self.settings.epochs[task.index]}"
        try:
            with EpochProgress(self.comm.rank == 0, len(sampler), title) as bar:
                batches = iter(loader)
                for step in range(len(sampler)):
                    self.comm.at(f"step {self.progress.steps + step} (task {task.index}, epoch {epoch})")
                    with self._spans.span("step"):
                        with self._spans.span("schedule"):
                            at = schedule(epoch + sampler.fraction(step))
                            regime.apply(self.optimizer, at, self.progress.steps + step)
                        with self._spans.span("load"):
                            x, y = next(batches)
                        images += len(y)
                        metrics = self.strategy.observe(x, y, told)
                    self.updates += 1
                    mean.add(metrics)
                    done = self.progress.steps + step + 1
                    if done % self.settings.log_interval and step + 1 < len(sampler):
                        bar.update(step + 1)
                    else:
                        self._log_step(task.index, epoch, done, metrics)
                        rate = images * self.comm.size / (perf_counter() - started)
                        bar.update(step + 1, mean.floats()["loss"] if self.comm.rank == 0 else None, rate)
                    here = partial(self._so_far, step + 1, images, started)
                    self._checkpointer.after_step(done, here, mean.state)
        except (PeerLost, RanksChanged):
            # A step that has begun counts: its samples may be stored already.
            self.progress = self._so_far(step + 1, images, started)
            raise
        self.progress = replace(self._so_far(len(sampler), images, started), epoch=epoch + 1, samples=0)
        speed = images * self.comm.size / (perf_counter() - started) if images else None
        self._end_epoch(task.index, epoch, speed, mean)

    def _log_step(self, task: int, epoch: int, steps: int, metrics: dict[str, torch.Tensor]) -> None:
        """Log a step's loss and learning rate. Every rank counts the rows; only rank 0's are written, so only it waits
        for the device.
        """
        loss = float(metrics["loss"]) if self.comm.rank == 0 else math.nan
        rows = {"step_loss": loss, "learning_rate": float(self.optimizer.param_groups[0]["lr"])}
        for name, value in rows.items():
            self._sink.log(MetricRow(task, epoch, steps, "train", name, value))
        self.progress = replace(self.progress, rows=self._sink.rows)

    def _so_far(self, steps: int, images: int, started: float) -> Progress:
        """How far the run is after so many steps and, on each rank, images of the epoch since it began or went on."""
        progress, images = self.progress, images * self.comm.size
        return replace(
            progress,
            samples=progress.samples + images,
            steps=progress.steps + steps,
            images=progress.images + images,
            train_seconds=progress.train_seconds + perf_counter() - started,
        )

    def _memorise(self, task: Task, sampler: TrainSampler, loader: Batches) -> None:
        """Show the strategy a task's samples once more, without training on them."""
        self.comm.at(f"the pass that stores task {task.index}")
        started = perf_counter()
        sampler.set_epoch(self.settings.epochs[task.index])
        self.strategy.network.eval()
        with EpochProgress(self.comm.rank == 0, len(sampler), f"task {task.index}, into the memory") as bar:
            for step, (x, y) in enumerate(loader):
                self.strategy.memorise(x, y, task.index)
                bar.update(step + 1)
        seconds = self.progress.train_seconds + perf_counter() - started
        self.progress = replace(self.progress, train_seconds=seconds)

    def _share(self, task: Task) -> Batches:
        """This rank's part of a task's training samples, un-augmented and each of them once on one rank."""
        sampler = EvalSampler(
            len(task.train), self.settings.eval_batch_size, rank=self.comm.rank, world_size=self.comm.size
        )
        return eval_loader(task.train, sampler)

    def _schedule(self, task: Task) -> tuple[Regime, Callable[[float], float]]:
        """A task's regime, and from epochs of the task to the epochs that the regime counts.

        A task-free stream knows no tasks: the regime of the first one is stretched over all of it.
        """
        if self.scenario.boundaries:
            return self._regime_for(task.index), lambda epoch: epoch
        steps = [sampler.steps * epochs for sampler, epochs in zip(self._samplers, self.settings.epochs, strict=True)]
        per_epoch, before, whole = self._samplers[task.index].steps, sum(steps[: task.index]), max(sum(steps), 1)
        stretch = self.settings.epochs[0] / whole
        return self._regime_for(0), lambda epoch: (before + epoch * per_epoch) * stretch

    def _end_epoch(self, task: int, epoch: int, images_per_second: float | None, mean: "_Mean") -> None:
        values = mean.floats()
        if images_per_second is not None:  # the epoch was not resumed at its very end
            values["images_per_second"] = images_per_second
        for name, value in values.items():
            self._log(task, epoch, "train", name, value)
        loss = values.get("loss", 0.0)  # an epoch that was resumed at its end, on another number of ranks, has no means
        if not np.isfinite(loss):
            raise UserError(f"the loss became {loss} in task {task}, epoch {epoch}; lower --lr or warm up longer")

    def _evaluate(self, task: Task | None) -> None:
        """Evaluate on all tasks after `task`, or the untrained model before the first."""
        self.comm.at(f"the evaluation after task {task.index}" if task else "the evaluation of the untrained model")
        scores = evaluate(
            self.strategy,
            self.scenario,
            self.comm,
            batch_size=self.settings.eval_batch_size,
            device=self.settings.device,
            after_each=partial(self._checkpointer.check, lambda: self.progress),
        )
        if task is None:
            self.progress = replace(self.progress, untrained=tuple(scores.class_il.tolist()))
            return
        known = () if scores.task_il is None else (tuple(scores.task_il.tolist()),)
        self.progress = replace(
            self.progress,
            class_il=(*self.progress.class_il, tuple(scores.class_il.tolist())),
            task_il=(*self.progress.task_il, *known),
        )
        self._log_scores(task.index, scores)
        if self.comm.rank == 0:
            seen = scores.class_il[: task.index + 1]
            measure = "accuracy" if self.scenario.target_shape is None else "absolute error"
            logger.info("after task %d: mean %s on tasks seen %.3f", task.index, measure, seen.mean())
            self._on_evaluation(self.progress)

    def _log_scores(self, task: int, scores: Scores) -> None:
        epoch = self.settings.epochs[task] - 1
        self._log(task, epoch, "train", "train_seconds", self.progress.train_seconds)
        names = {"class_il": "accuracy", "task_il": "accuracy_task_il"}
        if scores.task_il is None:
            names = {"class_il": "absolute_error"}
        if scores.task_identity is not None:
            names["task_identity"] = "accuracy_of_task"
        for name in (*names, "loss", "samples"):
            for index, value in enumerate(getattr(scores, name)):
                self._log(task, epoch, f"test_task_{index}", names.get(name, name), float(value))
        measures = self._measures(task)
        if scores.task_il is not None:
            measures["pooled_accuracy"] = pooled_accuracy(scores.class_il, scores.samples, task)
        for name, value in measures.items():
            self._log(task, epoch, "cl", name, value)
        for kind, size in self.strategy.memory().items():
            self._log(task, epoch, "memory", f"bytes_of_{kind}", float(size))
        if self._composition:
            stored = self._composition()
            self._log(task, epoch, "buffer", "samples_stored", float(sum(stored.values())))
            for label, count in stored.items():
                self._log(task, epoch, "buffer", f"stored/class_{label}", float(count))

    def _measures(self, task: int) -> dict[str, float]:
        """What summary.json would say of the tasks seen so far."""
        seen = np.array(self.progress.class_il)[:, : task + 1]
        if self.scenario.target_shape is not None:
            return of_errors(seen)
        values = of_accuracies(seen, self.progress.untrained[: task + 1])
        if self.progress.task_il:
            values["average_accuracy_task_il"] = average_accuracy(np.array(self.progress.task_il)[:, : task + 1])
        return values

    def _log(self, task: int, epoch: int, split: str, metric: str, value: float) -> None:
        self._sink.log(MetricRow(task, epoch, self.progress.steps, split, metric, value))
        self.progress = replace(self.progress, rows=self._sink.rows)

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
    """Running mean of step metrics of this rank, kept on the device until somebody asks for numbers.

    state: of an epoch that goes on, what `state()` gave; {} begins anew.
    """

    def __init__(self, state: dict[str, Any], device: torch.device) -> None:
        self._sums: dict[str, torch.Tensor] = {name: sum_.to(device) for name, sum_ in state.get("sums", {}).items()}
        self._count: int = state.get("count", 0)

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        self._count += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def state(self) -> dict[str, Any]:
        return {"sums": self._sums, "count": self._count}

    def floats(self) -> dict[str, float]:
        return {name: float(value) / self._count for name, value in self._sums.items()}
