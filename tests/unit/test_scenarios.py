"""Scenarios: our tasks are continuum's, share nothing but memory, and impossible splits are refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import write_cifar, write_imagenet, write_mnist

from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios import DATASETS, Scenario, build
from reprise.scenarios.domains import Rotate
from reprise.scenarios.raw import RawData
from reprise.scenarios.task import ArrayDataset, Samples
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
        ({"scenario": "reconstruction"}, ["'reconstruction'", "'digits'", "classes and no scans", "ptycho"]),
        ({"scenario": "task", "increment": 3}, ["increment 3", "10 classes"]),
        ({"scenario": "domain", "datasets": ["digits", "mnits"]}, ["'mnits'", "did you mean 'mnist'"]),
        (
            {"scenario": "domain", "datasets": ["digits", "ptycho_synthetic"]},
            ["ptycho_synthetic", "images with classes"],
        ),
    ],
)
def test_impossible_splits_are_refused_in_one_line(options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        digits(**options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown data set 'cifar1O', did you mean 'cifar10'.*choose one of: .*cifar10,"
    ):
        build("cifar1O", NOWHERE, class_order_seed=None, given=False)


def test_a_class_without_samples_cannot_become_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.tensor([0, 1, 2, 0])
    x = torch.zeros(4, 1, 2, 2).byte()
    raw = RawData(ArrayDataset(x, y), ArrayDataset(x[:2], y[:2]), 3, ImageTransform((0,), (1,)))
    monkeypatch.setitem(DATASETS._entries, "holes", lambda folder, download: raw)
    with pytest.raises(UserError, match="'holes' has no test samples of class 2"):
        build("holes", NOWHERE, class_order_seed=None, given=True)


def test_task_incremental_tasks_are_those_of_class_incremental_under_their_own_name() -> None:
    by_class, by_task = (digits(scenario=name, initial_increment=4, increment=3) for name in ("class", "task"))
    assert by_task.name == "task"
    for a, b in zip(by_class.tasks, by_task.tasks, strict=True):
        assert a.classes == b.classes
        assert torch.equal(a.train.x, b.train.x)
        assert torch.equal(a.test.y, b.test.y)


@pytest.mark.parametrize("scenario", ["class", "domain", "instance"])
def test_a_task_free_stream_has_the_same_tasks_and_tells_no_boundaries(scenario: str) -> None:
    options = {"increment": 2} if scenario == "class" else {"num_tasks": 3}
    plain, stream = (digits(scenario=scenario, task_free=free, **options) for free in (False, True))
    assert (plain.boundaries, stream.boundaries) == (True, False)
    for a, b in zip(plain.tasks, stream.tasks, strict=True):
        assert torch.equal(a.train[5][0], b.train[5][0])
        assert a.classes == b.classes


# ---- domains


def everything(samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    return samples.gather(torch.arange(len(samples)))


def synthetic(**options: object) -> Scenario:
    return build("synthetic", NOWHERE, scenario="domain", class_order_seed=None, given=True, **options)  # type: ignore[arg-type]


def test_pixels_are_permuted_alike_in_training_and_test_and_differently_in_every_task() -> None:
    scenario, raw = synthetic(num_tasks=3), DATASETS.get("synthetic")(NOWHERE, False)
    assert [task.classes for task in scenario.tasks] == [tuple(range(10))] * 3
    assert torch.equal(everything(scenario.tasks[0].train)[0], raw.train.x)
    # A pixel is told from all others by its values over many samples; its place must be the same in every channel.
    where = {tuple(pixel): i for i, pixel in enumerate(raw.train.x[:50, 0].flatten(1).T.tolist())}
    orders = set()
    for task in scenario.tasks[1:]:
        (x, y), (x_test, y_test) = everything(task.train), everything(task.test)
        order = [where[tuple(pixel)] for pixel in x[:50, 0].flatten(1).T.tolist()]
        assert sorted(order) == list(range(32 * 32)) != order
        assert torch.equal(x.flatten(2), raw.train.x.flatten(2)[:, :, order])
        assert torch.equal(x_test.flatten(2), raw.test.x.flatten(2)[:, :, order])
        assert torch.equal(y, raw.train.y)
        assert torch.equal(y_test, raw.test.y)
        orders.add(tuple(order))
    assert len(orders) == 2


def test_images_are_rotated_as_torchvision_rotates_them() -> None:
    ensure_torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import rotate

    scenario = synthetic(domain="rotated", num_tasks=4)
    natural = everything(scenario.tasks[0].test)[0][:40]
    angles = [task.test.look.degrees for task in scenario.tasks[1:]]
    assert len(set(angles)) == 3
    assert all(0 <= angle < 180 for angle in angles)
    for task, angle in zip(scenario.tasks[1:], angles, strict=True):
        expected = rotate(natural.float(), angle, InterpolationMode.BILINEAR).round()
        ours = everything(task.test)[0][:40]
        assert ours.dtype == torch.uint8
        difference = (ours.float() - expected).abs().flatten()
        assert difference.mean() < 0.01
        assert (difference > 1).float().mean() < 1e-3
    assert torch.equal(Rotate(90.0)(natural)[..., 1:-1, 1:-1], torch.rot90(natural, 1, (2, 3))[..., 1:-1, 1:-1])


@pytest.mark.parametrize("domain", ["permuted", "rotated"])
def test_domains_are_seeded_share_memory_and_are_not_augmented(domain: str) -> None:
    first, again, other = (synthetic(domain=domain, num_tasks=3, domain_seed=seed) for seed in (0, 0, 1))
    for i in (1, 2):
        a, b, c = (everything(scenario.tasks[i].test)[0] for scenario in (first, again, other))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    memory = {task.train.samples.x.data_ptr() for task in first.tasks[1:]}
    assert memory == {first.tasks[0].train.x.data_ptr()}


def test_classes_of_a_split_domain_have_the_same_labels_in_every_task() -> None:
    classes, domain = (
        digits(class_order_seed=3, increment=2, **options)
        for options in ({"scenario": "class"}, {"scenario": "domain", "domain": "split"})
    )
    assert domain.num_classes == 2
    assert [task.classes for task in domain.tasks] == [(0, 1)] * 5
    for ours, theirs in zip(domain.tasks, classes.tasks, strict=True):
        for part in ("train", "test"):
            (x, y), (same_x, label) = everything(getattr(ours, part)), everything(getattr(theirs, part))
            assert torch.equal(x, same_x)
            assert torch.equal(2 * ours.index + y, label)
            assert set(y.tolist()) == {0, 1}


def test_what_augments_the_natural_images_does_not_augment_those_of_a_domain(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar10")
    for options, augmented in (({"scenario": "instance"}, True), ({"scenario": "domain", "num_tasks": 2}, False)):
        scenario = build("cifar10", tmp_path, class_order_seed=None, given=True, **options)
        x = everything(scenario.tasks[-1].train)[0][:16]
        views = scenario.transform.augment(x, torch.Generator().manual_seed(0))
        assert torch.equal(views, scenario.transform.view(x)) == (not augmented)


def test_data_sets_in_sequence_are_made_like_the_first(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_cifar(tmp_path, "cifar10")
    sequence = ["cifar10", "mnist", "digits"]
    options = {"scenario": "domain", "class_order_seed": None, "given": True}
    scenario = build("cifar10", tmp_path, datasets=sequence, **options)
    assert [len(task.train) for task in scenario.tasks] == [100, 30, 1347]
    parts = [everything(task.test)[0] for task in scenario.tasks]
    assert all((x.shape[1:], x.dtype) == ((3, 32, 32), torch.uint8) for x in parts)
    raw = raw_digits()
    expected = torch.nn.functional.interpolate(raw.test.x.float() * 255 / 16, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(parts[2].float(), expected.round().expand(-1, 3, -1, -1))
    assert torch.equal(scenario.tasks[2].train.labels, raw.train.y)
    grey = everything(build("mnist", tmp_path, datasets=["mnist", "cifar10"], **options).tasks[1].test)[0]
    luminance = torch.einsum("bchw,c->bhw", parts[0].float(), torch.tensor([0.299, 0.587, 0.114])).unsqueeze(1)
    expected = torch.nn.functional.interpolate(luminance, (28, 28), mode="bilinear", antialias=True)
    assert (grey.float() - expected).abs().max() <= 1
    write_cifar(tmp_path, "cifar100")
    with pytest.raises(UserError, match="'cifar100' has 100 classes, 'mnist' 10"):
        build("mnist", tmp_path, datasets=["mnist", "cifar100"], **options)


def test_images_that_are_cut_have_no_permuted_domain(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    with pytest.raises(UserError, match="domain 'rotated' is for images that are used whole, and those of 'imagenet'"):
        build("imagenet", tmp_path, scenario="domain", domain="rotated", class_order_seed=None, given=True)


def test_concatenated_domains_keep_the_looks_of_their_tasks_and_the_order_asked_for() -> None:
    plain, grown = (
        digits(scenario="domain", num_tasks=3, class_order_seed=5, concatenate_tasksets=c) for c in (False, True)
    )
    assert plain.class_order == grown.class_order != tuple(range(10))
    for i, task in enumerate(grown.tasks):
        expected = [everything(t.train) for t in plain.tasks[: i + 1]]
        x, y = torch.cat([x for x, _ in expected]), torch.cat([y for _, y in expected])
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(i))
        out = torch.empty_like(x), torch.empty_like(y)
        got = task.train.gather(order, out)
        assert got[0].data_ptr() == out[0].data_ptr()
        assert torch.equal(out[0], x[order])
        assert torch.equal(out[1], y[order])
        assert torch.equal(task.train.labels, y)
    assert grown.total_train_samples() == plain.total_train_samples() == 3 * 1347
    assert torch.equal(grown.tasks[2].train[2 * 1347][0], plain.tasks[2].train[0][0])
