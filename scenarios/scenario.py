"""From a data set to a sequence of tasks: class-incremental or instance-incremental, split by continuum.

main.py calls `build` on every rank, and every rank gets the same tasks; which rank trains on which sample is the
sampler's business. Reads files through the data sets' own loaders only.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest
from reprise.runtime.seeds import torch_generator
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios.raw import DATASETS, RawData
from reprise.scenarios.task import ArrayDataset, Task
from reprise.scenarios.transforms import Transform

SCENARIOS = ("class", "instance")

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scenario:
    """A sequence of tasks. Labels are positions in `class_order`: label k is class class_order[k] of the data set.

    num_classes: of the whole data set, whatever the tasks hold. sample_shape, sample_dtype: of a raw sample.
    transform: what lies between raw samples and the network. concatenated: each task's training data holds that of the
    tasks before it. target_shape: of the float32 targets of reconstruction, None for labels. boundaries: False for a
    task-free stream, whose strategy is not told where tasks begin and end.
    """

    name: str
    dataset: str
    tasks: tuple[Task, ...]
    num_classes: int
    class_order: tuple[int, ...]
    sample_shape: tuple[int, ...]
    sample_dtype: torch.dtype
    transform: Transform
    concatenated: bool = False
    target_shape: tuple[int, ...] | None = None
    boundaries: bool = True

    def total_train_samples(self) -> int:
        """Distinct training samples of all tasks together."""
        sizes = [len(task.train) for task in self.tasks]
        return sizes[-1] if self.concatenated else sum(sizes)


def build(
    dataset: str,
    folder: str | Path,
    *,
    scenario: str = "class",
    initial_increment: int = 0,
    increment: int = 1,
    num_tasks: int = 1,
    concatenate_tasksets: bool = False,
    class_order_seed: int | None,
    download: bool = False,
    given: bool,
) -> Scenario:
    """Read `dataset` from `folder` and split it into tasks. Deterministic; reaches the network only with download=True.

    given: whether any option of the tasksets was set; if none was, the whole data set is one task. scenario "class":
    initial_increment classes in the first task (0: as in the others), increment in each other one, test samples split
    alike. "instance": num_tasks tasks of all classes; training and test set are each cut into num_tasks parts per
    class, in the order of the files, and what does not divide goes to the first task (continuum's rule).
    concatenate_tasksets: task i trains on the data of tasks 0 to i, and is tested on its own. class_order_seed: None
    for the natural order of classes. Raises UserError for what does not fit, and for missing or damaged files.
    """
    load = DATASETS.get(dataset)
    if scenario not in SCENARIOS:
        raise UserError(
            f"unknown scenario '{scenario}'{nearest(scenario, SCENARIOS)}; choose one of: {', '.join(SCENARIOS)}"
        )
    raw = load(Path(folder).expanduser(), download)
    order = _class_order(raw.num_classes, class_order_seed)
    y_train, y_test = raw.y_train.numpy(), raw.y_test.numpy()
    if not given:
        relabel = np.argsort(np.asarray(order))
        splits = [(relabel[y], np.zeros(len(y), dtype=np.int64)) for y in (y_train, y_test)]
    elif scenario == "class":
        _check_increments(dataset, raw.num_classes, initial_increment, increment)
        _check_classes(dataset, raw)
        splits = [_by_class(y, order, initial_increment, increment) for y in (y_train, y_test)]
    else:
        _check_num_tasks(dataset, raw, num_tasks)
        splits = [_by_instance(y, order, num_tasks) for y in (y_train, y_test)]
    return Scenario(
        name=scenario if given else "one-task",
        dataset=dataset,
        tasks=_tasks(raw, splits[0], splits[1], concatenate_tasksets),
        num_classes=raw.num_classes,
        class_order=order,
        sample_shape=tuple(raw.x_train.shape[1:]),
        sample_dtype=raw.x_train.dtype,
        transform=raw.transform,
        concatenated=concatenate_tasksets,
    )


def _class_order(num_classes: int, seed: int | None) -> tuple[int, ...]:
    if seed is None:
        return tuple(range(num_classes))
    return tuple(torch.randperm(num_classes, generator=torch_generator(seed, "class order")).tolist())


def _by_class(y: Labels, order: tuple[int, ...], initial_increment: int, increment: int) -> tuple[Labels, Labels]:
    """New labels and task numbers of the samples."""
    ensure_torchvision()
    from continuum.datasets import InMemoryDataset
    from continuum.scenarios import ClassIncremental

    # continuum needs only the labels for the split: positions stand for the samples.
    data = InMemoryDataset(np.arange(len(y)), y, download=False)
    split = ClassIncremental(data, increment=increment, initial_increment=initial_increment, class_order=list(order))
    _, labels, task_ids = split.dataset
    return labels, task_ids.astype(np.int64)


def _by_instance(y: Labels, order: tuple[int, ...], num_tasks: int) -> tuple[Labels, Labels]:
    """New labels and task numbers of the samples."""
    ensure_torchvision()
    from continuum.datasets import InMemoryDataset
    from continuum.scenarios import InstanceIncremental

    labels = np.argsort(np.asarray(order))[y]
    split = InstanceIncremental(InMemoryDataset(np.arange(len(y)), labels, download=False), nb_tasks=num_tasks)
    return labels, split.dataset[2].astype(np.int64)


def _tasks(
    raw: RawData, train: tuple[Labels, Labels], test: tuple[Labels, Labels], concatenate: bool
) -> tuple[Task, ...]:
    """Sort both sets by task once: every task, concatenated or not, is then a slice that shares the whole's memory."""
    x_train, y_train, train_ends = _sorted_by_task(raw.x_train, *train)
    x_test, y_test, test_ends = _sorted_by_task(raw.x_test, *test)
    tasks = []
    for index in range(len(train_ends)):
        first, end = (train_ends[index - 1] if index else 0), train_ends[index]
        test_slice = slice(test_ends[index - 1] if index else 0, test_ends[index])
        classes = tuple(torch.unique(y_train[first:end]).tolist())
        start = 0 if concatenate else first
        tasks.append(
            Task(
                index=index,
                classes=classes,
                train=ArrayDataset(x_train[start:end], y_train[start:end]),
                test=ArrayDataset(x_test[test_slice], y_test[test_slice]),
            )
        )
    return tuple(tasks)


def _sorted_by_task(x: Tensor, labels: Labels, task_ids: Labels) -> tuple[Tensor, Tensor, list[int]]:
    """Samples and labels in the order of tasks, as given within a task, and where each task ends."""
    order = torch.from_numpy(np.argsort(task_ids, kind="stable"))
    return x[order], torch.from_numpy(labels)[order], np.cumsum(np.bincount(task_ids)).tolist()


def _check_increments(dataset: str, num_classes: int, initial_increment: int, increment: int) -> None:
    if increment < 1:
        raise UserError(f"increment {increment} is not a number of classes; give 1 or more")
    if initial_increment < 0:
        raise UserError(f"initial_increment {initial_increment} is not a number of classes; give 0 or more")
    for key, value in (("initial_increment", initial_increment), ("increment", increment)):
        if value > num_classes:
            raise UserError(f"{key} {value} is more than the {num_classes} classes of '{dataset}'; lower it")
    if (num_classes - initial_increment) % increment:
        rest = num_classes - initial_increment
        fitting = ", ".join(str(n) for n in range(1, rest + 1) if rest % n == 0)
        raise UserError(
            f"increment {increment} does not divide the {rest} classes of '{dataset}' that initial_increment "
            f"{initial_increment} leaves; choose an increment among {fitting}, or initial_increment "
            f"{num_classes % increment or increment}"
        )


def _check_classes(dataset: str, raw: RawData) -> None:
    for part, y in (("training", raw.y_train), ("test", raw.y_test)):
        missing = sorted(set(range(raw.num_classes)) - set(torch.unique(y).tolist()))
        if missing:
            raise UserError(
                f"data set '{dataset}' has no {part} samples of class {missing[0]}: its tasks would be incomplete; "
                "complete its files, or use scenario 'instance'"
            )


def _check_num_tasks(dataset: str, raw: RawData, num_tasks: int) -> None:
    if num_tasks < 1:
        raise UserError(f"num_tasks {num_tasks} is not a number of tasks; give 1 or more")
    for part, y in (("training", raw.y_train), ("test", raw.y_test)):
        # The largest class decides whether a task stays empty: each task gets an equal part of every class.
        largest = int(torch.bincount(y).max())
        if num_tasks > largest:
            raise UserError(
                f"num_tasks {num_tasks} is more than the {largest} {part} samples of the largest class of '{dataset}': "
                f"tasks would be empty; choose at most {largest}"
            )
