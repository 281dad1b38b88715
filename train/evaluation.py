"""Scores on the test sets of all tasks: every sample counted exactly once, whatever the number of ranks.

One pass gives both protocols: class-incremental (any class may be the answer) and task-incremental (only the classes of
the sample's task). Where targets are reconstructed it gives the mean absolute error instead. Counts are summed over
ranks in one collective at the end, so no rank waits per batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from reprise.cl_models.base import ContinualModel, mask_logits
from reprise.runtime.dist import Communicator
from reprise.scenarios.loader import eval_loader
from reprise.scenarios.sampler import EvalSampler
from reprise.scenarios.scenario import Scenario


@dataclass(frozen=True)
class Scores:
    """Per task j: accuracies (fractions) under both protocols, mean loss, and samples counted on all ranks.

    Reconstruction: class_il holds mean absolute errors, task_il is None. task_identity: how often a strategy that
    infers a sample's task has it right (Acc@task); None for others.
    """

    class_il: npt.NDArray[np.float64]
    task_il: npt.NDArray[np.float64] | None
    loss: npt.NDArray[np.float64]
    samples: npt.NDArray[np.int64]
    task_identity: npt.NDArray[np.float64] | None = None


def average_statistics(network: torch.nn.Module, comm: Communicator) -> None:
    """Make running statistics (batch norm) the mean over ranks: each rank has seen only its part of the data.

    To be called before a network is evaluated or saved. Collective.
    """
    statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if not statistics or comm.size == 1:
        return
    mean = comm.allreduce(torch.cat([buffer.flatten().float() for buffer in statistics]), name="batch_statistics")
    for buffer, value in zip(statistics, mean.split([buffer.numel() for buffer in statistics]), strict=True):
        buffer.copy_(value.view_as(buffer))


def evaluate(
    strategy: ContinualModel,
    scenario: Scenario,
    comm: Communicator,
    *,
    batch_size: int,
    device: torch.device,
    after_each: Callable[[], None],
) -> Scores:
    """Score `strategy` on every task. Collective. batch_size: per rank. after_each: called after each task."""
    reconstructs = scenario.target_shape is not None
    # Rows: correct (class-incremental) or sum of absolute errors, correct (task-incremental), summed loss, samples,
    # right tasks.
    totals = torch.zeros((5, len(scenario.tasks)), dtype=torch.float64, device=device)
    routes = False
    for task in scenario.tasks:
        sampler = EvalSampler(len(task.test), batch_size, rank=comm.rank, world_size=comm.size)
        for x, y in eval_loader(task.test, sampler):
            y = y.to(device, non_blocking=True)
            told = task if strategy.told_task else None
            outputs = strategy.predict(x.to(device, non_blocking=True), told).float()
            if reconstructs:
                totals[0, task.index] += (outputs - y).abs().flatten(1).mean(dim=1).sum()
            else:
                known_task = mask_logits(outputs, task.classes)
                totals[0, task.index] += (outputs.argmax(dim=1) == y).sum()
                totals[1, task.index] += (known_task.argmax(dim=1) == y).sum()
            totals[2, task.index] += strategy.parts.loss(outputs, y).sum()
            totals[3, task.index] += len(y)
            if strategy.routed is not None:
                routes = True
                totals[4, task.index] += (strategy.routed == task.index).sum()
        after_each()
    counts = comm.allreduce(totals.cpu(), op="sum", name="evaluation").numpy()
    class_il, task_il, loss, identity = counts[[0, 1, 2, 4]] / counts[3]
    samples = counts[3].astype(np.int64)
    return Scores(class_il, None if reconstructs else task_il, loss, samples, identity if routes else None)
