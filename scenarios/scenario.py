"""From a data set to a sequence of tasks: the scenarios of continual learning, each of them a way to divide the data.

main.py calls `build` on every rank, and every rank gets the same tasks; which rank trains on which sample is the
sampler's business. Reads files through the data sets' own loaders only. splits.py and domains.py do the dividing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest
from reprise.runtime.seeds import torch_generator
from reprise.scenarios import domains, splits
from reprise.scenarios.raw import DATASETS, RawData
from reprise.scenarios.task import Divisible, Samples, Task
from reprise.scenarios.transform_presets import OWN, with_preset
from reprise.scenarios.transforms import Transform

SCENARIOS = ("class", "task", "domain", "instance", "reconstruction")


@dataclass(frozen=True)
class Scenario:
    """A sequence of tasks. Labels are positions in `class_order`: label k is class class_order[k] of the data set.

    With domain "split" label k of task i is class class_order[i * num_classes + k].
    num_classes: of the whole data set, or of any task with domain "split". sample_shape, sample_dtype: of a raw sample.
    target_shape: of what a network reconstructs; None where it classifies, otherwise there is one class, 0.
    transform: what lies between raw samples and the network. concatenated: each task's training data holds that of the
    tasks before it. boundaries: whether the strategy is told where tasks begin and end; False: a task-free stream.
    """

    name: str
    dataset: str
    tasks: tuple[Task, ...]
    num_classes: int
    class_order: tuple[int, ...]
    sample_shape: tuple[int, ...]
    sample_dtype: torch.dtype
    transform: Transform
    target_shape: tuple[int, ...] | None = None
    concatenated: bool = False
    boundaries: bool = True

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample as the network sees it, after augmentation or in evaluation."""
        return tuple(self.transform.view(torch.zeros((1, *self.sample_shape), dtype=self.sample_dtype)).shape[1:])

    def classes_of(self, task: Task) -> tuple[int, ...]:
        """The data set's own numbers of a task's classes, in the order of their labels."""
        first = task.index * self.num_classes if len(self.class_order) > self.num_classes else 0
        return tuple(self.class_order[first + label] for label in task.classes)

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
    last_smaller: bool = False,
    num_tasks: int = 1,
    domain: str = "permuted",
    domain_seed: int = 0,
    datasets: Sequence[str] = (),
    concatenate_tasksets: bool = False,
    class_order_seed: int | None,
    class_order: Sequence[int] = (),
    preset: str = OWN,
    size: int | None = None,
    normalise: str = OWN,
    task_free: bool = False,
    download: bool = False,
    given: bool,
) -> Scenario:
    """Read `dataset` from `folder` and divide it into tasks. Deterministic; no network unless download=True.

    given: whether any option of the tasksets was set; if none was, the whole data set is one task. Scenarios:
    "class", "task": initial_increment classes in the first task (0: as in the others), increment in each other one,
    fewer in the last one where last_smaller allows it; test samples split alike; what the two differ in is whether the
    task is known when a sample is classified.
    "instance": num_tasks tasks of all classes; training and test set are each cut into num_tasks parts per class, in
    the order of the files, and what does not divide goes to the first task (continuum's rule).
    "domain": num_tasks tasks of all samples, the first one as they are, the others with the pixels "permuted" or the
    images "rotated", each its own way by domain_seed; "split": tasks of `increment` new classes, which are to be told
    from each other alone; or, given `datasets`, one task per data set, made alike.
    "reconstruction": num_tasks tasks of neighbouring scans; no scan is in two tasks.
    concatenate_tasksets: task i trains on the data of tasks 0 to i, and is tested on its own. class_order_seed: None
    for the natural order of classes, or for class_order, the data set's classes in the order in which they come.
    preset, size, normalise: see transform_presets.py. task_free: a stream whose tasks the strategy is not told of.
    Raises UserError for what does not fit, and for missing or damaged files.
    """
    if scenario not in SCENARIOS:
        raise UserError(
            f"unknown scenario '{scenario}'{nearest(scenario, SCENARIOS)}; choose one of: {', '.join(SCENARIOS)}"
        )
    place = Path(folder).expanduser()

    def read(name: str) -> RawData:
        return with_preset(name, DATASETS.get(name)(place, download), preset, size, normalise)

    raw = read(dataset)
    if given:
        _check_kind(dataset, raw, scenario)
    order = _class_order(dataset, raw.num_classes, class_order_seed, class_order)
    transform, num_classes = raw.transform, raw.num_classes
    if given and scenario == "domain" and (datasets or domain != "split"):
        if datasets:
            raws = [raw, *map(read, datasets[1:])]
            looks = domains.as_the_first(datasets, raws)
        else:
            if preset != OWN:
                raise UserError(
                    f"transform_config preset '{preset}' cuts images, and domain '{domain}' is for images used whole; "
                    "leave the preset out"
                )
            raws, looks = [raw] * num_tasks, domains.looks(dataset, raw, domain, num_tasks, domain_seed)
            transform = domains.without_augmentation(transform)
        parts = _seen(raws, looks, order, concatenate_tasksets)
    else:
        if not given:
            split = splits.one_task(raw, order)
        elif scenario == "reconstruction":
            split = splits.by_scan(dataset, raw, num_tasks)
        elif scenario == "instance":
            split = splits.by_instance(dataset, raw, order, num_tasks)
        elif scenario == "domain":
            split, num_classes = splits.within_tasks(dataset, raw, order, increment), increment
        else:
            split = splits.by_class(dataset, raw, order, initial_increment, increment, last_smaller=last_smaller)
        parts = _cut(raw, split, concatenate_tasksets)
    tasks = tuple(
        Task(
            index=index,
            classes=tuple(torch.unique(own.labels).tolist()),
            train=train,
            test=test,
        )
        for index, (own, train, test) in enumerate(parts)
    )
    return Scenario(
        name=scenario if given else "one-task",
        dataset=dataset,
        tasks=tasks,
        num_classes=num_classes,
        class_order=order,
        sample_shape=raw.train.sample_shape,
        sample_dtype=raw.train.sample_dtype,
        transform=transform,
        target_shape=raw.train.target_shape,
        concatenated=concatenate_tasksets,
        boundaries=not task_free,
    )


_Parts = list[tuple[Samples, Samples, Samples]]
"""Of every task: its own training samples, those it trains on, and its test samples."""


def _check_kind(dataset: str, raw: RawData, scenario: str) -> None:
    if (scenario == "reconstruction") != (raw.scans is not None):
        kind, remedy = (
            ("targets to reconstruct and no classes", "use scenario 'reconstruction'")
            if raw.scans is not None
            else ("classes and no scans", f"use scenario {', '.join(SCENARIOS[:-1])}, or data set 'ptycho'")
        )
        raise UserError(f"scenario '{scenario}' does not go with data set '{dataset}': it has {kind}; {remedy}")


def _class_order(dataset: str, num_classes: int, seed: int | None, order: Sequence[int]) -> tuple[int, ...]:
    if order:
        _check_class_order(dataset, num_classes, order)
        return tuple(order)
    if seed is None:
        return tuple(range(num_classes))
    return tuple(torch.randperm(num_classes, generator=torch_generator(seed, "class order")).tolist())


def _check_class_order(dataset: str, num_classes: int, order: Sequence[int]) -> None:
    wanted, seen = f"each of the {num_classes} classes 0 to {num_classes - 1} of '{dataset}' once", set(order)
    unknown = sorted(seen.difference(range(num_classes)))
    missing = sorted(set(range(num_classes)) - seen)
    for problem, classes in (("names class", unknown), ("lacks class", missing)):
        if classes:
            raise UserError(f"class_order {problem} {classes[0]}; it has to name {wanted}")
    if len(order) > num_classes:
        twice = next(label for i, label in enumerate(order) if label in order[:i])
        raise UserError(f"class_order names class {twice} twice; it has to name {wanted}")


def _cut(raw: RawData, split: tuple[splits.Split, splits.Split], concatenate: bool) -> _Parts:
    """Sort both sets by task once: every task, concatenated or not, is then a slice that shares the whole's memory."""
    train, test = split
    train_whole, train_ends = _sorted_by_task(raw.train, *train)
    test_whole, test_ends = _sorted_by_task(raw.test, *test)
    return [
        (
            train_whole.part(start, end),
            train_whole.part(0 if concatenate else start, end),
            test_whole.part(test_start, test_end),
        )
        for (start, end), (test_start, test_end) in zip(pairwise(train_ends), pairwise(test_ends), strict=True)
    ]


def _sorted_by_task(samples: Divisible, labels: splits.Ints, task_ids: splits.Ints) -> tuple[Divisible, list[int]]:
    """Samples in the order of tasks, as given within a task; 0 and where each task ends."""
    rows = torch.from_numpy(np.argsort(task_ids, kind="stable"))
    ends = np.cumsum(np.bincount(task_ids)).tolist()
    return samples.take(rows, torch.from_numpy(labels)[rows]), [0, *ends]


def _seen(
    raws: Sequence[RawData], looks: Sequence[domains.Look | None], order: tuple[int, ...], concatenate: bool
) -> _Parts:
    """Each task its own look at its data set; tasks of one data set share its memory."""

    def relabelled(samples: Divisible) -> Divisible:
        if order == tuple(range(len(order))):
            return samples
        labels = splits.relabelled(samples.labels.numpy(), order)
        return samples.take(torch.arange(len(samples)), torch.from_numpy(labels))

    of_raw = {id(raw): (relabelled(raw.train), relabelled(raw.test)) for raw in raws}
    own, test = zip(
        *(
            [part if look is None else domains.Seen(part, look) for part in of_raw[id(raw)]]
            for raw, look in zip(raws, looks, strict=True)
        ),
        strict=True,
    )
    grown = [domains.Joined(own[: i + 1]) for i in range(len(own))] if concatenate else own
    return list(zip(own, grown, test, strict=True))
