"""Data sets of parameter-efficient continual learning: read from their authors' formats, damage named file by file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import photograph, save_image
from peft_dataset_files import (
    write_aircraft,
    write_cars,
    write_cub,
    write_dogs,
    write_fashionmnist,
    write_five_datasets,
    write_imagenet_r,
    write_imagenet_r_lists,
    write_notmnist,
    write_svhn,
)
from scipy.io import loadmat, savemat

from reprise.main import main
from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios import DATASETS, Scenario, build
from reprise.scenarios.image_files import ImageFiles
from reprise.scenarios.raw import RawData
from reprise.train.options import parse

ensure_torchvision()

Write = Callable[[Path], object]
TWO_PARTS = ("train", "test")


def load(name: str, folder: Path, download: bool = False) -> RawData:
    return DATASETS.get(name)(folder, download)


def found(samples: ImageFiles, root: Path) -> list[tuple[str, int]]:
    """Files below `root` with their labels, in the samples' order."""
    return [(str(samples.path(i).relative_to(root)), int(label)) for i, label in enumerate(samples.labels)]


# ---- photographs in files


def test_imagenet_r_in_folders_is_what_torchvision_finds(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    root = write_imagenet_r(tmp_path, parts=TWO_PARTS)
    raw = load("imagenet_r", tmp_path)
    for part, samples in zip(TWO_PARTS, (raw.train, raw.test), strict=True):
        theirs = [(str(Path(path).relative_to(root)), label) for path, label in ImageFolder(root / part).imgs]
        assert found(samples, root) == theirs
        assert len(theirs) == 20
    assert raw.num_classes == 4


def test_imagenet_rs_random_split_is_torchs_with_a_fixed_seed(tmp_path: Path) -> None:
    """As in L2P and HiDe-Prompt: random_split of the ImageFolder into int(0.8 n) and the rest."""
    from torch.utils.data import random_split
    from torchvision.datasets import ImageFolder

    root = write_imagenet_r(tmp_path, classes=3, num=7)
    folder = ImageFolder(root)
    parts = random_split(range(21), [16, 5], generator=torch.Generator().manual_seed(42))
    raw = load("imagenet_r_random80", tmp_path)
    for part, samples in zip(parts, (raw.train, raw.test), strict=True):
        theirs = [(str(Path(folder.imgs[i][0]).relative_to(root)), folder.imgs[i][1]) for i in sorted(part.indices)]
        assert found(samples, root) == theirs
    torch.manual_seed(1)
    assert found(load("imagenet_r_random80", tmp_path).train, root) == found(raw.train, root)


def test_imagenet_r_in_lists_is_what_they_name(tmp_path: Path) -> None:
    root = write_imagenet_r_lists(tmp_path)
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    raw = load("imagenet_r_lists", tmp_path)
    for part, samples in zip(TWO_PARTS, (raw.train, raw.test), strict=True):
        names = (root / f"{part}.txt").read_text().split()
        assert found(samples, root) == [(name, classes.index(name.split("/")[0])) for name in names]
    assert (len(raw.train), len(raw.test), raw.num_classes) == (12, 4, 4)


@pytest.fixture(scope="module")
def cub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cub")
    write_cub(folder)
    return folder


def test_cub_is_divided_and_labelled_by_its_lists(cub: Path) -> None:
    raw = load("cub200", cub)
    root = cub / "CUB_200_2011"
    for samples, remainders in ((raw.train, (1, 2)), (raw.test, (0,))):
        expected = []
        for path in sorted((root / "images").rglob("*.jpg")):
            if int(path.stem[-4:]) % 3 in remainders:
                expected.append((f"images/{path.parent.name}/{path.name}", int(path.parent.name[:3]) - 1))
        assert found(samples, root) == expected
    assert (len(raw.train), len(raw.test), raw.num_classes) == (400, 200, 200)


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cars")
    write_cars(folder)
    return folder


def test_cars_are_what_torchvision_reads(cars: Path) -> None:
    from torchvision.datasets import StanfordCars

    raw = load("cars196", cars)
    root = cars / "stanford_cars"
    for part, samples in zip(TWO_PARTS, (raw.train, raw.test), strict=True):
        theirs = StanfordCars(cars, split=part, download=False)._samples
        assert found(samples, root) == [(str(Path(path).relative_to(root)), int(label)) for path, label in theirs]
        assert sorted(set(samples.labels.tolist())) == list(range(196))


def test_cars_test_labels_may_lie_in_the_devkit(tmp_path: Path) -> None:
    root = write_cars(tmp_path, num=(1, 1))
    expected = found(load("cars196", tmp_path).test, root)
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit" / "cars_test_annos_withlabels.mat")
    assert found(load("cars196", tmp_path).test, root) == expected


@pytest.mark.parametrize("lists", ["", "lists"])
def test_dogs_are_divided_and_labelled_by_their_lists(tmp_path: Path, lists: str) -> None:
    root = write_dogs(tmp_path)
    if lists:
        (root / lists).mkdir()
        for file in root.glob("*.mat"):
            file.rename(root / lists / file.name)
    raw = load("dogs120", tmp_path)
    for part, samples in zip(TWO_PARTS, (raw.train, raw.test), strict=True):
        content = loadmat(root / lists / f"{part}_list.mat")
        paths = [f"Images/{cell[0]}" for cell in content["file_list"][:, 0]]
        assert found(samples, root) == list(zip(paths, content["labels"][:, 0].astype(int) - 1, strict=True))
        assert all(int(path.split("_")[1].split("/")[0]) == label for path, label in found(samples, root))
    assert (len(raw.train), len(raw.test), raw.num_classes) == (240, 120, 120)


def test_aircraft_is_what_torchvision_reads(tmp_path: Path) -> None:
    from torchvision.datasets import FGVCAircraft

    data = write_aircraft(tmp_path)
    raw = load("aircraft100", tmp_path)
    for part, samples in zip(("trainval", "test"), (raw.train, raw.test), strict=True):
        theirs = FGVCAircraft(tmp_path, split=part, annotation_level="variant")
        paths = [str(Path(path).relative_to(data)) for path in theirs._image_files]
        # torchvision counts the lines of variants.txt as we do, sorted or not.
        assert found(samples, data) == list(zip(paths, theirs._labels, strict=True))
    assert (len(raw.train), len(raw.test), raw.num_classes) == (15, 10, 5)


def test_photographs_are_decoded_and_cut_as_those_of_imagenet(tmp_path: Path) -> None:
    write_aircraft(tmp_path)
    raw, imagenets = load("aircraft100", tmp_path), (3, 256, 256)
    assert raw.train.sample_shape == raw.test.sample_shape == imagenets
    x, y = raw.train.gather([4, 0])
    assert (x.shape, y.tolist()) == ((2, *imagenets), [4, 0])
    assert raw.transform.view(x).shape == raw.transform.augment(x, torch.Generator()).shape == (2, 3, 224, 224)


# ---- arrays


def test_svhn_is_read_as_written_and_its_class_10_is_the_digit_0(tmp_path: Path) -> None:
    content = write_svhn(tmp_path)
    raw = load("svhn", tmp_path)
    for part, samples in zip(TWO_PARTS, (raw.train, raw.test), strict=True):
        x, y = content[part]
        assert np.array_equal(samples.x.permute(0, 2, 3, 1).numpy(), x)
        assert samples.y.tolist() == [0 if label == 10 else label for label in y.tolist()]
        assert samples.x.is_contiguous()
    assert raw.num_classes == 10


def test_notmnist_is_read_as_written_and_empty_files_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = write_notmnist(tmp_path)
    raw = load("notmnist", tmp_path)
    assert caplog.records == []
    for part, samples in zip(("Train", "Test"), (raw.train, raw.test), strict=True):
        assert np.array_equal(samples.x[:, 0].numpy(), content[part])
        assert samples.y.tolist() == [label for label in range(10) for _ in range(len(content[part]) // 10)]
    (tmp_path / "notMNIST" / "Train" / "F" / "broken.png").write_bytes(b"")
    again = load("notmnist", tmp_path)
    assert torch.equal(again.train.x, raw.train.x)
    (record,) = caplog.records
    assert "1 empty files" in record.getMessage()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashionmnist_is_read_as_written(tmp_path: Path, suffix: str) -> None:
    arrays = write_fashionmnist(tmp_path, suffix)
    raw = load("fashionmnist", tmp_path)
    for part, samples in (("train", raw.train), ("t10k", raw.test)):
        assert np.array_equal(samples.x[:, 0].numpy(), arrays[f"{part}-images-idx3-ubyte"])
        assert samples.y.tolist() == arrays[f"{part}-labels-idx1-ubyte"].tolist()
    assert (raw.transform.mean, raw.transform.std) == ((0.2860,), (0.3530,))


def test_five_datasets_are_five_tasks_of_ten_classes(tmp_path: Path) -> None:
    from torchvision.transforms.v2 import functional

    write_five_datasets(tmp_path)
    scenario = build("5datasets", tmp_path, increment=10, class_order_seed=None, given=True)
    names = ["svhn", "mnist", "cifar10", "notmnist", "fashionmnist"]
    assert [task.classes for task in scenario.tasks] == [tuple(range(10 * i, 10 * i + 10)) for i in range(5)]
    assert (scenario.sample_shape, scenario.num_classes) == ((3, 32, 32), 50)
    for number, (name, task) in enumerate(zip(names, scenario.tasks, strict=True)):
        raw = load(name, tmp_path)
        for ours, own in ((task.train, raw.train), (task.test, raw.test)):
            assert (ours.labels - 10 * number).tolist() == own.labels.tolist()
            x, _ = ours.gather(range(len(ours)))
            if own.sample_shape == (3, 32, 32):
                assert torch.equal(x, own.x)
            else:
                expected = functional.resize(own.x, [32, 32], antialias=True).expand(-1, 3, -1, -1)
                assert (x.int() - expected.int()).abs().max() <= 1
                assert torch.equal(x[:, 0], x[:, 2])


# ---- what is refused


def fails(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


MISSING = {
    "imagenet_r": "train, test",
    "imagenet_r_random80": "no class folders",
    "imagenet_r_lists": "train.txt, test.txt",
    "cub200": "images, images.txt, image_class_labels.txt, train_test_split.txt",
    "cars196": "cars_train, cars_test, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat",
    "dogs120": "Images, train_list.mat, test_list.mat",
    "aircraft100": "data/images, data/variants.txt, data/images_variant_trainval.txt, data/images_variant_test.txt",
    "notmnist": "Train/A",
    "svhn": "train_32x32.mat, test_32x32.mat",
    "fashionmnist": "FashionMNIST/raw/train-images-idx3-ubyte",
    "5datasets": "train_32x32.mat",
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    fails(lambda: load(name, tmp_path), str(tmp_path), MISSING[name], "--download")
    fails(lambda: load(name, tmp_path / "absent"), "absent", "does not exist", "--dataset-dir")


@pytest.mark.parametrize("name", [name for name in MISSING if name not in ("svhn", "fashionmnist", "5datasets")])
def test_no_download_is_promised_or_tried_where_there_is_none(tmp_path: Path, name: str) -> None:
    fails(lambda: load(name, tmp_path, download=True), MISSING[name], "--download cannot")


@pytest.mark.parametrize("name", ["svhn", "fashionmnist"])
def test_a_download_without_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import urllib.request

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("the test has no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    fails(lambda: load(name, tmp_path, download=True), name, str(tmp_path), "failed", "check the network")


def rewritten(file: Path, change: Callable[[str], str]) -> Path:
    file.write_text(change(file.read_text()))
    return file


def test_folders_of_imagenet_r_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    root = write_imagenet_r(tmp_path, parts=TWO_PARTS)
    (root / "test" / "n99999999").mkdir()
    fails(lambda: load("imagenet_r", tmp_path), "n99999999", "no such class in train/")
    # The archive's one tree and the two folders side by side: a folder of folders is no class.
    fails(lambda: load("imagenet_r_random80", tmp_path), str(root / "test"), "holds no images")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train.txt", lambda text: text + "n01443537/gone.jpg\n", ["'n01443537/gone.jpg'", "which is not in"]),
        ("train.txt", lambda text: text + "n00000000/art_0.jpg\n", ["'n00000000/art_0.jpg'", "which is not in"]),
        ("train.txt", lambda text: text + "data/imagenet-r/n01443537/art_0.jpg\n", ["line 13", "'class/image'"]),
        ("train.txt", lambda text: text + "\n", ["line 13", "''"]),
        ("train.txt", lambda text: text + "n01443537/a\0.jpg\n", ["which is not in"]),
        ("train.txt", lambda text: "", ["empty"]),
        ("train.txt", lambda text: text.splitlines()[0], ["test.txt", "of a class that train.txt has not"]),
    ],
)
def test_lists_of_imagenet_r_that_cannot_be_right_are_refused(
    tmp_path: Path, file: str, change: Callable[[str], str], words: list[str]
) -> None:
    root = write_imagenet_r_lists(tmp_path)
    rewritten(root / file, change)
    fails(lambda: load("imagenet_r_lists", tmp_path), file, *words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("image_class_labels", lambda text: text.replace("7 3\n", "7 201\n", 1), ["'201'", "image 7", "1 to 200"]),
        ("image_class_labels", lambda text: text.replace("7 3\n", "7 0\n", 1), ["'0'", "1 to 200"]),
        ("image_class_labels", lambda text: text.replace("7 3\n", "7\n", 1), ["line 7", "a value"]),
        ("image_class_labels", lambda text: text.replace("7 3\n", "", 1), ["image 7", "images.txt"]),
        ("images", lambda text: text.replace("0001.jpg", "9999.jpg", 1), ["9999.jpg", "which is not in"]),
        ("images", lambda text: "x" + text, ["line 1", "'x1 "]),
        ("train_test_split", lambda text: text.replace("7 0\n", "7 2\n", 1), ["image 7", "'2'", "0 or 1"]),
        ("train_test_split", lambda text: text.replace(" 0\n", " 1\n"), ["names no images"]),
        ("train_test_split", lambda text: "", ["empty"]),
    ],
)
def test_lists_of_cub_that_cannot_be_right_are_refused(
    cub: Path, name: str, change: Callable[[str], str], words: list[str]
) -> None:
    file = cub / "CUB_200_2011" / f"{name}.txt"
    whole = file.read_text()
    try:
        rewritten(file, change)
        fails(lambda: load("cub200", cub), f"{name}.txt", "damaged", *words)
    finally:
        file.write_text(whole)


def cars_annotations(rows: list[tuple[int, str]]) -> dict[str, np.ndarray]:
    return {"annotations": np.array(rows, dtype=[("class", np.uint8), ("fname", object)])[None]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (cars_annotations([(197, "00001.jpg"), (1, "00002.jpg")]), ["label 197", "1 to 196"]),
        (cars_annotations([(0, "00001.jpg")]), ["label 0", "1 to 196"]),
        (cars_annotations([(1, "00001.jpg"), (1, "gone.jpg")]), ["'cars_train/gone.jpg'", "which is not in"]),
        ({"annotation": np.zeros(3)}, ["no variable 'annotations'"]),
        ({"annotations": np.zeros(3)}, ["no fields", "fname and class"]),
        (
            {"annotations": np.array([(1, "x")], dtype=[("label", int), ("fname", object)])},
            ["label, fname", "not"],
        ),
        (b"", ["damaged"]),
        (b"<html>404</html>" * 100, ["damaged"]),
        (None, ["damaged"]),  # cut in the middle
    ],
)
def test_annotations_of_cars_that_cannot_be_right_are_refused(
    cars: Path, content: dict[str, np.ndarray] | bytes | None, words: list[str]
) -> None:
    file = cars / "stanford_cars" / "devkit" / "cars_train_annos.mat"
    whole = file.read_bytes()
    try:
        if isinstance(content, dict):
            savemat(file, content)
        else:
            file.write_bytes(whole[: len(whole) // 2] if content is None else content)
        fails(lambda: load("cars196", cars), str(file), *words)
    finally:
        file.write_bytes(whole)


def test_annotations_of_a_single_image_are_read(tmp_path: Path) -> None:
    root = write_cars(tmp_path, num=(1, 1))
    savemat(root / "devkit" / "cars_train_annos.mat", cars_annotations([(3, "00005.jpg")]))
    assert found(load("cars196", tmp_path).train, root) == [("cars_train/00005.jpg", 2)]


def test_lists_of_dogs_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    root = write_dogs(tmp_path, num=(1, 1))
    paths = loadmat(root / "train_list.mat")["file_list"]
    for labels, cells, words in (
        (np.arange(119)[:, None], paths, ["119 labels for 120 images"]),
        (np.arange(120)[:, None], paths, ["label 0", "1 to 120"]),
        (np.array([["x"]] * 120, dtype=object), paths, ["not numbers"]),
        (np.arange(1, 121)[:, None], np.array([["n/gone.jpg"]] * 120, dtype=object), ["'Images/n/gone.jpg'"]),
    ):
        savemat(root / "train_list.mat", {"file_list": cells, "labels": labels})
        fails(lambda: load("dogs120", tmp_path), "train_list.mat", *words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "images_variant_trainval",
            lambda text: text + "0034310 Spruce Goose\n",
            ["line 16", "Spruce Goose", "variants.txt"],
        ),
        ("images_variant_test", lambda text: text + "0034310\n", ["line 11", "variants.txt"]),
        ("images_variant_trainval", lambda text: text.replace("0034310", "0000000"), ["'images/0000000.jpg'"]),
        ("variants", lambda text: text + text, ["10 lines name 5 variants"]),
        ("variants", lambda text: "\n", ["0 lines"]),
        ("images_variant_test", lambda text: "", ["empty"]),
    ],
)
def test_lists_of_aircraft_that_cannot_be_right_are_refused(
    tmp_path: Path, name: str, change: Callable[[str], str], words: list[str]
) -> None:
    data = write_aircraft(tmp_path)
    rewritten(data / f"{name}.txt", change)
    fails(lambda: load("aircraft100", tmp_path), f"{name}.txt", "damaged", *words)


def test_a_list_that_is_not_text_or_not_a_file_is_refused(tmp_path: Path) -> None:
    data = write_aircraft(tmp_path)
    (data / "variants.txt").write_bytes(b"\xff\xfe\x00")
    fails(lambda: load("aircraft100", tmp_path), "variants.txt", "not text")
    (data / "variants.txt").unlink()
    (data / "variants.txt").mkdir()
    fails(lambda: load("aircraft100", tmp_path), "cannot read", "variants.txt", "directory")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.array([1, 2, 11, 10])}, ["label 11", "1 to 10"]),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.array([1, 2])}, ["images", "labels (2,)"]),
        ({"X": np.zeros((28, 28, 3, 4), np.uint8), "y": np.arange(1, 5)}, ["(28, 28, 3, 4)"]),
        ({"X": np.zeros((32, 32, 3, 4)), "y": np.arange(1, 5)}, ["float64"]),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8)}, ["no variable 'y'"]),
    ],
)
def test_files_of_svhn_that_cannot_be_right_are_refused(
    tmp_path: Path, content: dict[str, np.ndarray], words: list[str]
) -> None:
    write_svhn(tmp_path)
    savemat(tmp_path / "SVHN" / "test_32x32.mat", content)
    fails(lambda: load("svhn", tmp_path), "test_32x32.mat", "damaged", *words)


def test_files_of_notmnist_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    write_notmnist(tmp_path)
    path = tmp_path / "notMNIST" / "Test" / "C" / "font1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:80])
    fails(lambda: load("notmnist", tmp_path), str(path), "damaged")
    save_image(path, photograph(27, 28, 0, "L"))
    fails(lambda: load("notmnist", tmp_path), str(path), "27x28", "28x28")
    for image in path.parent.iterdir():
        image.unlink()
    fails(lambda: load("notmnist", tmp_path), str(path.parent), "holds no images")


def test_labels_of_fashionmnist_out_of_range_are_refused(tmp_path: Path) -> None:
    write_fashionmnist(tmp_path)
    file = tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x0a")
    fails(lambda: load("fashionmnist", tmp_path), "'fashionmnist'", str(file), "label 10")


def test_a_photograph_that_is_damaged_is_named_when_it_is_read(tmp_path: Path) -> None:
    data = write_aircraft(tmp_path)
    samples = load("aircraft100", tmp_path).train
    samples.path(3).write_bytes(b"")
    fails(lambda: samples.gather([2, 3]), str(data), samples.path(3).name, "it is not an image")


# ---- class order and sizes of tasks


def digits(**options: object) -> Scenario:
    return build("digits", "none", **{"class_order_seed": None, "given": True, **options})  # type: ignore[arg-type]


def test_cars_in_tasks_of_twenty_classes_end_with_one_of_sixteen(cars: Path) -> None:
    options = {"increment": 20, "class_order_seed": None, "given": True}
    fails(lambda: build("cars196", cars, **options), "increment 20", "196 classes", "last_smaller")
    scenario = build("cars196", cars, last_smaller=True, **options)
    assert [len(task.classes) for task in scenario.tasks] == [20] * 9 + [16]
    assert [label for task in scenario.tasks for label in task.classes] == list(range(196))
    assert scenario.total_train_samples() == 392
    assert sum(len(task.test) for task in scenario.tasks) == 196


@pytest.mark.parametrize(
    ("initial", "increment", "sizes"), [(0, 4, [4, 4, 2]), (3, 4, [3, 4, 3]), (0, 5, [5, 5]), (1, 10, [1, 9])]
)
def test_the_last_task_is_smaller_only_where_it_has_to_be(initial: int, increment: int, sizes: list[int]) -> None:
    scenario = digits(initial_increment=initial, increment=increment, last_smaller=True, class_order_seed=1)
    assert [len(task.classes) for task in scenario.tasks] == sizes
    if len({*sizes[initial > 0 :]}) > 1:
        fails(lambda: digits(initial_increment=initial, increment=increment), f"increment {increment}")


def test_a_listed_class_order_is_the_one_that_is_used() -> None:
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    scenario, natural = digits(increment=5, class_order=order), digits(increment=10)
    assert scenario.class_order == tuple(order)
    whole = natural.tasks[0].train
    for number, task in enumerate(scenario.tasks):
        own = order[5 * number : 5 * number + 5]
        assert scenario.classes_of(task) == tuple(own)
        wanted = torch.isin(whole.y, torch.tensor(own))
        assert torch.equal(task.train.x, whole.x[wanted])
        assert [order[label] for label in task.train.y.tolist()] == whole.y[wanted].tolist()


def test_classes_of_tasks_whose_labels_begin_anew_are_the_data_sets_own() -> None:
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    scenario = digits(scenario="domain", domain="split", increment=2, class_order=order)
    assert [task.classes for task in scenario.tasks] == [(0, 1)] * 5
    assert [scenario.classes_of(task) for task in scenario.tasks] == [(3, 1), (4, 0), (5, 9), (2, 6), (8, 7)]


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([0, 1, 2], ["lacks class 3"]),
        ([*range(9), 10], ["names class 10"]),
        ([*range(10), 4], ["names class 4 twice"]),
        ([0, 0, *range(2, 10)], ["lacks class 1"]),
    ],
)
def test_a_class_order_that_is_no_permutation_is_refused(order: list[int], words: list[str]) -> None:
    fails(lambda: digits(increment=5, class_order=order), "class_order", "10 classes 0 to 9 of 'digits'", *words)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            "{'increment': 5, 'class_order': [1, 0], 'class_order_seed': 1}",
            ["class_order", "class_order_seed 1"],
        ),
        ("{'increment': 5, 'class_order': []}", ["class_order", "non-empty list"]),
        ("{'increment': 5, 'class_order': [0, -1]}", ["class_order", "whole number from 0"]),
        ("{'scenario': 'reconstruction', 'num_tasks': 2, 'class_order': [0]}", ["class_order", "'reconstruction'"]),
        ("{'scenario': 'instance', 'num_tasks': 2, 'last_smaller': true}", ["last_smaller", "'instance'"]),
        (
            "{'scenario': 'domain', 'domain': 'split', 'increment': 3, 'last_smaller': true}",
            ["last_smaller"],
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: str, words: list[str]) -> None:
    fails(lambda: parse(["--tasksets-config", keys]), *words)


def test_a_run_leaves_its_class_order(tmp_path: Path) -> None:
    def run(name: str, tasksets: str) -> dict[str, object]:
        arguments = ["--dataset", "digits", "--backbone", "mlp", "--epochs", "0", "--training-only", "--no-cuda"]
        arguments += ["--results-dir", str(tmp_path), "--save-dir", name, "--tasksets-config", tasksets]
        assert main(arguments) == 0
        return json.loads((tmp_path / name / "class_order.json").read_text())

    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    listed = run("listed", f"{{'increment': 4, 'last_smaller': true, 'class_order': {order}}}")
    tasks = [order[:4], order[4:8], order[8:]]
    assert listed == {"dataset": "digits", "seed": None, "order": order, "tasks": tasks}
    seeded = run("seeded", "{'increment': 5, 'class_order_seed': 7}")
    expected = list(digits(increment=5, class_order_seed=7).class_order)
    assert seeded == {"dataset": "digits", "seed": 7, "order": expected, "tasks": [expected[:5], expected[5:]]}
