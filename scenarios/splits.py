"""Which samples of a data set belong to which task: by class, by instance (both continuum's rule) or by scan.

Called by scenarios/scenario.py with labels alone; impossible splits are refused here, in one line.
"""

import numpy as np
import numpy.typing as npt
import torch

from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios.raw import RawData

Ints = npt.NDArray[np.int64]
Split = tuple[Ints, Ints]
"""New label and task number of every sample, (n,) each."""


def relabelled(labels: Ints, order: tuple[int, ...]) -> Ints:
    """Label k becomes its position in `order`."""
    return np.argsort(np.asarray(order))[labels]


def one_task(raw: RawData, order: tuple[int, ...]) -> tuple[Split, Split]:
    """Everything in task 0."""

    def split(y: Ints) -> Split:
        return relabelled(y, order), np.zeros_like(y)

    return split(raw.train.labels.numpy()), split(raw.test.labels.numpy())


def by_class(
    dataset: str,
    raw: RawData,
    order: tuple[int, ...],
    initial_increment: int,
    increment: int,
    *,
    last_smaller: bool = False,
) -> tuple[Split, Split]:
    """Tasks of new classes, for the training and for the test samples.

    last_smaller: where increment does not divide the classes, the last task has those that are left.
    """
    _check_increments(dataset, raw.num_classes, initial_increment, increment, last_smaller)
    _check_classes(dataset, raw)
    num_whole, rest = divmod(raw.num_classes - initial_increment, increment)
    increments = [size for size in (initial_increment, *[increment] * num_whole, rest) if size]
    ensure_torchvision()
    from continuum.datasets import InMemoryDataset
    from continuum.scenarios import ClassIncremental

    def split(y: Ints) -> Split:
        # continuum needs only the labels for the split: positions stand for the samples.
        data = InMemoryDataset(np.arange(len(y)), y, download=False)
        tasks = ClassIncremental(data, increment=increments, class_order=list(order))
        _, labels, task_ids = tasks.dataset
        return labels, task_ids.astype(np.int64)

    return split(raw.train.labels.numpy()), split(raw.test.labels.numpy())


def within_tasks(dataset: str, raw: RawData, order: tuple[int, ...], increment: int) -> tuple[Split, Split]:
    """Tasks of new classes whose labels count from 0 in every task: domain-incremental in van de Ven et al. 2022."""
    train, test = by_class(dataset, raw, order, 0, increment)
    return (train[0] % increment, train[1]), (test[0] % increment, test[1])


def by_instance(dataset: str, raw: RawData, order: tuple[int, ...], num_tasks: int) -> tuple[Split, Split]:
    """Tasks of new samples of all classes, for the training and for the test samples."""
    _check_num_tasks(dataset, raw, num_tasks)
    ensure_torchvision()
    from continuum.datasets import InMemoryDataset
    from continuum.scenarios import InstanceIncremental

    def split(y: Ints) -> Split:
        labels = relabelled(y, order)
        tasks = InstanceIncremental(InMemoryDataset(np.arange(len(y)), labels, download=False), nb_tasks=num_tasks)
        return labels, tasks.dataset[2].astype(np.int64)

    return split(raw.train.labels.numpy()), split(raw.test.labels.numpy())


def by_scan(dataset: str, raw: RawData, num_tasks: int) -> tuple[Split, Split]:
    """Tasks of neighbouring scans, as many in each as can be, the first ones getting what does not divide."""
    assert raw.scans is not None
    scans = torch.unique(raw.scans[0])
    if num_tasks > len(scans):
        raise UserError(
            f"num_tasks {num_tasks} is more than the {len(scans)} scans of '{dataset}': tasks would be empty; "
            f"choose at most {len(scans)}"
        )
    task_of_scan = np.concatenate([np.full(len(part), i) for i, part in enumerate(np.array_split(scans, num_tasks))])

    def split(samples: torch.Tensor) -> Split:
        task_ids = task_of_scan[torch.searchsorted(scans, samples).numpy()]
        return np.zeros(len(samples), dtype=np.int64), task_ids

    return split(raw.scans[0]), split(raw.scans[1])


def _check_increments(
    dataset: str, num_classes: int, initial_increment: int, increment: int, last_smaller: bool
) -> None:
    if increment < 1:
        raise UserError(f"increment {increment} is not a number of classes; give 1 or more")
    if initial_increment < 0:
        raise UserError(f"initial_increment {initial_increment} is not a number of classes; give 0 or more")
    for key, value in (("initial_increment", initial_increment), ("increment", increment)):
        if value > num_classes:
            raise UserError(f"{key} {value} is more than the {num_classes} classes of '{dataset}'; lower it")
    if (num_classes - initial_increment) % increment and not last_smaller:
        rest = num_classes - initial_increment
        fitting = ", ".join(str(n) for n in range(1, rest + 1) if rest % n == 0)
        raise UserError(
            f"increment {increment} does not divide the {rest} classes of '{dataset}' that initial_increment "
            f"{initial_increment} leaves; choose an increment among {fitting}, or initial_increment "
            f"{num_classes % increment or increment}, or set last_smaller"
        )


def _check_classes(dataset: str, raw: RawData) -> None:
    for part, y in (("training", raw.train.labels), ("test", raw.test.labels)):
        missing = sorted(set(range(raw.num_classes)) - set(torch.unique(y).tolist()))
        if missing:
            raise UserError(
                f"data set '{dataset}' has no {part} samples of class {missing[0]}: its tasks would be incomplete; "
                "complete its files, or use scenario 'instance'"
            )


def _check_num_tasks(dataset: str, raw: RawData, num_tasks: int) -> None:
    if num_tasks < 1:
        raise UserError(f"num_tasks {num_tasks} is not a number of tasks; give 1 or more")
    for part, y in (("training", raw.train.labels), ("test", raw.test.labels)):
        # The largest class decides whether a task stays empty: each task gets an equal part of every class.
        largest = int(torch.bincount(y).max())
        if num_tasks > largest:
            raise UserError(
                f"num_tasks {num_tasks} is more than the {largest} {part} samples of the largest class of '{dataset}': "
                f"tasks would be empty; choose at most {largest}"
            )
