"""Scenarios: our tasks are continuum's, share nothing but memory, and impossible splits are refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios import DATASETS, Scenario, build
from reprise.scenarios.raw import RawData
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import ImageTransform

NOWHERE = Path("no-such-folder")


def digits(**options: object) -> Scenario:
    arguments = {"class_order_seed": None, "given": True, **options}
    return build("digits", NOWHERE, **arguments)  # type: ignore[arg-type]


def raw_digits() -> RawData:
    return DATASETS.get("digits")(NOWHERE, False)


def continuum_tasks(kind: str, part: str, **options: object) -> list[tuple[np.ndarray, np.ndarray]]:
    """What continuum itself makes of the digits, images and all."""
    ensure_torchvision()
    from continuum import scenarios
    from continuum.datasets import InMemoryDataset

    raw = raw_digits()
    x, y = (raw.train.x, raw.train.y) if part == "train" else (raw.test.x, raw.test.y)
    data = InMemoryDataset(x.numpy(), y.numpy(), download=False)
    return [(tasks._x, tasks._y) for tasks in getattr(scenarios, kind)(data, **options)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"increment": 2}, {"increment": 2}),
        ({"initial_increment": 4, "increment": 3}, {"initial_increment": 4, "increment": 3}),
        ({"increment": 5, "class_order_seed": 11}, {"increment": 5}),
        ({"increment": 10}, {"increment": 10}),
    ],
)
def test_class_incremental_tasks_equal_those_of_continuum(ours: dict, theirs: dict) -> None:
    scenario = digits(scenario="class", **ours)
    theirs["class_order"] = list(scenario.class_order)
    for part in ("train", "test"):
        expected = continuum_tasks("ClassIncremental", part, **theirs)
        assert len(scenario.tasks) == len(expected)
        for task, (x, y) in zip(scenario.tasks, expected, strict=True):
            data = getattr(task, part)
            assert np.array_equal(data.x.numpy(), x)
            assert np.array_equal(data.y.numpy(), y)


def test_instance_incremental_tasks_equal_those_of_continuum() -> None:
    scenario = digits(scenario="instance", num_tasks=4)
    assert all(task.classes == tuple(range(10)) for task in scenario.tasks)
    for part in ("train", "test"):
        expected = continuum_tasks("InstanceIncremental", part, nb_tasks=4)
        for task, (x, y) in zip(scenario.tasks, expected, strict=True):
            assert np.array_equal(getattr(task, part).x.numpy(), x)
            assert np.array_equal(getattr(task, part).y.numpy(), y)


@pytest.mark.parametrize(
    "options", [{"increment": 2}, {"scenario": "instance", "num_tasks": 7}, {"given": False}, {"class_order_seed": 3}]
)
def test_tasks_partition_the_data_set(options: dict) -> None:
    scenario, raw = digits(**options), raw_digits()
    for part in ("train", "test"):
        ours = torch.cat([getattr(task, part).x for task in scenario.tasks]).flatten(1)
        whole = getattr(raw, part).x.flatten(1)
        assert sorted(ours.tolist()) == sorted(whole.tolist())
    assert scenario.total_train_samples() == len(raw.train.x)


def test_without_tasksets_options_the_whole_data_set_is_one_task() -> None:
    """rehearsal.md 2.4 and 9: the reference makes one task per class of it."""
    scenario, raw = digits(given=False), raw_digits()
    (task,) = scenario.tasks
    assert task.classes == tuple(range(10))
    assert torch.equal(task.train.x, raw.train.x)
    assert torch.equal(task.train.y, raw.train.y)
    assert torch.equal(task.test.y, raw.test.y)


@pytest.mark.parametrize("options", [{"increment": 2}, {"scenario": "instance", "num_tasks": 3}, {"given": False}])
def test_class_order_is_seeded_and_label_k_is_class_order_k(options: dict) -> None:
    natural, first, again, other = (digits(**options, class_order_seed=seed) for seed in (None, 1, 1, 2))
    assert natural.class_order == tuple(range(10))
    assert first.class_order == again.class_order != other.class_order
    assert sorted(first.class_order) == list(range(10))
    raw = raw_digits()
    class_of = dict(zip(map(bytes, raw.train.x.flatten(1).numpy()), raw.train.y.tolist(), strict=True))
    for task in first.tasks:
        for x, y in zip(task.train.x.flatten(1).numpy(), task.train.y.tolist(), strict=True):
            assert first.class_order[y] == class_of[bytes(x)]


def test_concatenated_tasks_train_on_all_tasks_so_far_and_test_on_their_own() -> None:
    """rehearsal.md 2.4: concatenate_tasksets crashes for some data of the reference."""
    plain, grown = digits(increment=2), digits(increment=2, concatenate_tasksets=True)
    for i, task in enumerate(grown.tasks):
        assert torch.equal(task.train.x, torch.cat([t.train.x for t in plain.tasks[: i + 1]]))
        assert torch.equal(task.train.y, torch.cat([t.train.y for t in plain.tasks[: i + 1]]))
        assert torch.equal(task.test.x, plain.tasks[i].test.x)
        assert task.classes == plain.tasks[i].classes == (2 * i, 2 * i + 1)
    assert grown.total_train_samples() == plain.total_train_samples() == 1347
    memory = {task.train.x.untyped_storage().data_ptr() for task in grown.tasks}
    assert len(memory) == 1


def test_scenario_says_what_its_samples_look_like() -> None:
    scenario = digits(increment=5)
    assert (scenario.name, scenario.dataset, scenario.num_classes) == ("class", "digits", 10)
    assert (scenario.sample_shape, scenario.sample_dtype) == ((1, 8, 8), torch.uint8)
    x, y = scenario.tasks[0].train.__getitems__([3, 1])
    assert (x.shape, x.dtype, y.dtype) == ((2, 1, 8, 8), torch.uint8, torch.int64)
    inputs = scenario.transform.normalise(x)
    assert inputs.dtype == torch.float32
    assert -1 <= float(inputs.min()) <= float(inputs.max()) <= 1
    single_x, single_y = scenario.tasks[0].train[3]
    assert torch.equal(single_x, x[0])
    assert int(single_y) == int(y[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scenario": "clas"}, ["'clas'", "did you mean 'class'", "instance"]),
        ({"increment": 3}, ["increment 3", "10 classes", "1, 2, 5, 10", "initial_increment 1"]),
        ({"initial_increment": 4, "increment": 4}, ["increment 4", "6 classes", "1, 2, 3, 6", "initial_increment 2"]),
        ({"increment": 11}, ["increment 11", "10 classes"]),
        ({"increment": 0}, ["increment 0", "1 or more"]),
        ({"increment": -2}, ["increment -2"]),
        ({"initial_increment": 12, "increment": 2}, ["initial_increment 12", "10 classes"]),
        ({"initial_increment": -1, "increment": 2}, ["initial_increment -1"]),
        ({"scenario": "instance", "num_tasks": 0}, ["num_tasks 0", "1 or more"]),
        ({"scenario": "instance", "num_tasks": 100}, ["num_tasks 100", "46 test samples", "at most 46"]),
        ({"scenario": "instance", "num_tasks": 5000}, ["num_tasks 5000", "training samples"]),
    ],
)
def test_impossible_splits_are_refused_in_one_line(options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        digits(**options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'cifar1O', did you mean 'cifar10'.*choose one of: cifar10,"):
        build("cifar1O", NOWHERE, class_order_seed=None, given=False)


def test_a_class_without_samples_cannot_become_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.tensor([0, 1, 2, 0])
    x = torch.zeros(4, 1, 2, 2).byte()
    raw = RawData(ArrayDataset(x, y), ArrayDataset(x[:2], y[:2]), 3, ImageTransform((0,), (1,)))
    monkeypatch.setitem(DATASETS._entries, "holes", lambda folder, download: raw)
    with pytest.raises(UserError, match="'holes' has no test samples of class 2"):
        build("holes", NOWHERE, class_order_seed=None, given=True)
