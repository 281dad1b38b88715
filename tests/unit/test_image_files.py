"""Data sets of image files: found as continuum finds them, decoded as torchvision decodes, damage named by path."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import (
    photograph,
    save_image,
    write_core50,
    write_imagenet,
    write_imagenet100,
    write_imagenet100small,
    write_tinyimagenet,
)
from PIL import Image

from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios import DATASETS, build
from reprise.scenarios.image_files import ImageFiles
from reprise.scenarios.loader import eval_loader, train_loader
from reprise.scenarios.raw import RawData
from reprise.scenarios.sampler import EvalSampler, TrainSampler

ensure_torchvision()


def load(name: str, folder: Path, download: bool = False) -> RawData:
    return DATASETS.get(name)(folder, download)


def found(samples: ImageFiles) -> list[tuple[str, int]]:
    return sorted((str(samples.path(i)), int(label)) for i, label in enumerate(samples.labels))


def found_by_continuum(name: str, root: Path, train: bool) -> list[tuple[str, int]]:
    """What the loader of the reference makes of the same files."""
    from continuum import datasets

    if name == "tinyimagenet":
        data = datasets.TinyImageNet200(str(root.parent), train=train, download=False)
    elif name == "core50":
        ids = [path.stem for path in root.rglob("*.png") if path.stem.split("_")[1] not in ("03", "07", "10")]
        data = datasets.Core50(str(root.parent), train=train, train_image_ids=ids, download=False)
    elif name.startswith("imagenet100"):
        subset = ("train" if train else "val") + ("_100_small.txt" if name.endswith("small") else "_100.txt")
        data = datasets.ImageNet100(str(root), train=train, data_subset=str(root / subset), download=False)
    else:
        data = datasets.ImageNet1000(str(root), train=train, download=False)
    x, y, _ = data.get_data()
    paths = [path.decode() if isinstance(path, bytes) else str(path) for path in x]
    return sorted(zip(paths, map(int, y), strict=True))


@pytest.fixture(scope="module")
def core50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core50")
    write_core50(folder)
    return folder


WRITERS = {
    "tinyimagenet": write_tinyimagenet,
    "imagenet": write_imagenet,
    "imagenet_blurred": write_imagenet,
    "imagenet100": lambda folder: write_imagenet100(folder, classes=7),
    "imagenet100small": lambda folder: write_imagenet100small(folder, classes=7),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_and_labels_are_those_that_continuum_finds(tmp_path: Path, name: str) -> None:
    root = WRITERS[name](tmp_path)
    raw = load(name, tmp_path)
    assert found(raw.train) == found_by_continuum(name, root, train=True)
    assert found(raw.test) == found_by_continuum(name, root, train=False)
    assert len(raw.train) > len(raw.test) > 0


def test_core50_tests_on_sessions_3_7_and_10(core50: Path) -> None:
    raw = load("core50", core50)
    root = core50 / "core50_128x128"
    assert found(raw.train) == found_by_continuum("core50", root, train=True)
    assert found(raw.test) == found_by_continuum("core50", root, train=False)
    sessions = [{raw_part.path(i).parts[-3] for i in range(len(raw_part))} for raw_part in (raw.train, raw.test)]
    assert sessions == [{f"s{i}" for i in (1, 2, 4, 5, 6, 8, 9, 11)}, {"s3", "s7", "s10"}]
    assert torch.bincount(raw.test.labels).tolist() == [3] * 50
    assert raw.num_classes == 50


@pytest.mark.parametrize(
    ("name", "subfolder"),
    [("imagenet", "ImageNet"), ("imagenet_blurred", "ImageNet_blurred"), ("tinyimagenet", "TinyImageNet")],
)
def test_the_references_subfolder_is_looked_into_first(tmp_path: Path, name: str, subfolder: str) -> None:
    WRITERS[name](tmp_path / subfolder)
    assert all(subfolder in path for path, _ in found(load(name, tmp_path).train))


def assert_same_image(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """But for a rounding here and there: one pass over the part that is kept, two passes over the whole."""
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.02


@pytest.mark.parametrize(("name", "size"), [("imagenet", 256), ("tinyimagenet", 64)])
def test_images_are_decoded_as_torchvision_does_it(tmp_path: Path, name: str, size: int) -> None:
    from torchvision import transforms

    WRITERS[name](tmp_path)
    raw = load(name, tmp_path)
    x, y = raw.train.gather(torch.arange(len(raw.train)))
    assert (x.dtype, tuple(x.shape[1:]), y.dtype) == (torch.uint8, raw.train.sample_shape, torch.int64)
    plain = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])
    for i in range(len(x)):
        with Image.open(raw.train.path(i)) as image:
            assert_same_image(x[i], plain(image.convert("RGB")))
    assert torch.equal(y, raw.train.labels)


@pytest.mark.parametrize(("suffix", "mean_difference"), [("JPEG", 1.5), ("png", 0.02)])
def test_an_image_much_larger_than_wanted_looks_the_same(tmp_path: Path, suffix: str, mean_difference: float) -> None:
    """Grain of the size of the pixels to be, the hardest case. The JPEG is decoded to a quarter; an eighth gives 6."""
    from torchvision import transforms

    grain = np.random.default_rng(0).integers(0, 256, (52, 60, 3), dtype=np.uint8)
    save_image(tmp_path / f"a.{suffix}", Image.fromarray(grain).resize((600, 520), Image.Resampling.BICUBIC))
    samples = ImageFiles("imagenet", tmp_path, [f"a.{suffix}"], torch.tensor([0]), 64)
    plain = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.PILToTensor()])
    with Image.open(samples.path(0)) as image:
        difference = (samples[0][0].int() - plain(image.convert("RGB")).int()).abs()
    assert difference.float().mean() < mean_difference
    assert difference.max() <= 10


def test_training_and_validation_have_one_resolution_and_only_training_is_random(tmp_path: Path) -> None:
    """rehearsal.md 2.2: Tiny ImageNet of the reference trains at 64 pixels and validates at 256."""
    from torchvision import transforms

    write_imagenet(tmp_path)
    raw = load("imagenet", tmp_path)
    x, _ = raw.test.gather([0, 1, 2])
    views = raw.transform.view(x)
    assert raw.transform.augment(x, torch.Generator()).shape == views.shape == (3, 3, 224, 224)
    standard = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    for i, view in enumerate(views):
        with Image.open(raw.test.path(i)) as image:
            assert_same_image(view, standard(image.convert("RGB")))
    write_tinyimagenet(tmp_path)
    tiny = load("tinyimagenet", tmp_path)
    x, _ = tiny.test.gather([0])
    assert tiny.transform.augment(x, torch.Generator()).shape == tiny.transform.view(x).shape == (1, 3, 64, 64)
    assert torch.equal(tiny.transform.view(x), x)


def test_a_batch_can_be_decoded_to_where_it_is_wanted(tmp_path: Path) -> None:
    write_tinyimagenet(tmp_path)
    samples = load("tinyimagenet", tmp_path).train
    out = torch.empty(4, 3, 64, 64, dtype=torch.uint8), torch.empty(4, dtype=torch.int64)
    x, _ = samples.gather([7, 7, 0, 59], out)
    assert x.data_ptr() == out[0].data_ptr()
    expected = samples.gather(torch.tensor([7, 7, 0, 59]))
    assert torch.equal(out[0], expected[0])
    assert torch.equal(out[1], expected[1])
    assert out[1].tolist() == [1, 1, 0, 9]
    assert torch.equal(samples[59][0], x[3])


def test_tasks_of_files_are_cut_like_tasks_in_memory(tmp_path: Path) -> None:
    write_imagenet100small(tmp_path)
    options = {"scenario": "class", "initial_increment": 40, "increment": 30, "class_order_seed": 3, "given": True}
    scenario = build("imagenet100small", tmp_path, **options)
    grown = build("imagenet100small", tmp_path, concatenate_tasksets=True, **options)
    assert [len(task.classes) for task in scenario.tasks] == [40, 30, 30]
    assert [len(task.train) for task in grown.tasks] == [80, 140, 200]
    lines = (tmp_path / "ImageNet100-small" / "train_100_small.txt").read_text().splitlines()
    label_of = dict(line.split() for line in lines)
    for task in scenario.tasks:
        for i, label in enumerate(task.train.labels.tolist()):
            name = str(task.train.path(i).relative_to(tmp_path / "ImageNet100-small"))
            assert scenario.class_order[label] == int(label_of[name])
            assert label in task.classes
    assert (scenario.sample_shape, scenario.sample_dtype) == ((3, 256, 256), torch.uint8)


def test_a_class_without_validation_images_shifts_no_label(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    second = sorted((tmp_path / "val").iterdir())[1]
    for path in second.iterdir():
        path.unlink()
    second.rmdir()
    assert sorted(set(load("imagenet", tmp_path).test.labels.tolist())) == [0, 2, 3, 4]


# ---- what is refused


def fails(action: object, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        action()  # type: ignore[operator]
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("tinyimagenet", "wnids.txt"),
        ("imagenet", "train, val"),
        ("imagenet_blurred", "train, val"),
        ("imagenet100", "train_100.txt, val_100.txt"),
        ("imagenet100small", "val_100_small.txt"),
        ("core50", "core50_128x128/s1"),
    ],
)
def test_missing_files_are_named_and_no_download_is_promised(tmp_path: Path, name: str, missing: str) -> None:
    for download in (False, True):
        fails(lambda d=download: load(name, tmp_path, d), name, str(tmp_path), missing, "--download cannot")
    fails(lambda: load(name, tmp_path / "absent"), name, "does not exist", "--dataset-dir")


DAMAGES = {
    "cut": (lambda content: content[: len(content) // 2], "damaged"),
    "emptied": (lambda content: b"", "it is not an image"),
    "scribbled": (lambda content: b"<html>404</html>" * 20, "it is not an image"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line_also_by_a_worker(tmp_path: Path, damage: str, workers: int) -> None:
    write_tinyimagenet(tmp_path)
    samples = load("tinyimagenet", tmp_path).train
    path = samples.path(17)
    change, words = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes()))
    sampler = TrainSampler(len(samples), 10, rank=0, world_size=1, seed=1, task=0)
    fails(lambda: list(train_loader(samples, sampler, workers=workers)), str(path), "damaged", words, "unpack it")


def test_a_damaged_png_and_a_vanished_image_are_named(core50: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", photograph(128, 128, 0))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:60] + b"\x00" * 40 + content[100:])
    samples = ImageFiles("core50", tmp_path, ["a.png", "gone.png"], torch.tensor([0, 1]), 128)
    fails(lambda: samples.gather([0]), str(tmp_path / "a.png"), "damaged")
    loader = eval_loader(samples, EvalSampler(2, 2, rank=0, world_size=1))
    (tmp_path / "a.png").write_bytes(content)
    fails(lambda: list(loader), str(tmp_path / "gone.png"), "cannot read", "No such file")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train/a.JPEG 100", ["'train/a.JPEG 100'", "0 to 99"]),
        ("train/a.JPEG -1", ["0 to 99"]),
        ("train/a.JPEG", ["'path label'"]),
        ("", ["line 15"]),
    ],
)
def test_a_list_with_labels_out_of_range_is_refused_with_the_line(tmp_path: Path, line: str, words: list[str]) -> None:
    write_imagenet100(tmp_path, classes=7)
    file = tmp_path / "train_100.txt"
    file.write_text(file.read_text() + line + "\n")
    fails(lambda: load("imagenet100", tmp_path), str(file), "line 15", *words)
    file.write_text("")
    fails(lambda: load("imagenet100", tmp_path), str(file), "empty")
    file.write_bytes(b"\xff\xfe\x00")
    fails(lambda: load("imagenet100", tmp_path), str(file), "not text")


def test_files_of_tiny_imagenet_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    root = write_tinyimagenet(tmp_path)
    annotations = root / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    annotations.write_text(whole + "val_9.JPEG\tn99999999\t0\t0\t1\t1\n")
    fails(lambda: load("tinyimagenet", tmp_path), str(annotations), "line 51", "n99999999")
    annotations.write_text(whole)
    (root / "wnids.txt").write_text("n00000000\nn00000000\n")
    fails(lambda: load("tinyimagenet", tmp_path), "wnids.txt", "2 lines name 1 classes")
    (root / "wnids.txt").write_text("n00000000\nn77777777\n")
    fails(lambda: load("tinyimagenet", tmp_path), "n77777777", "lacks")


def test_folders_of_imagenet_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    (tmp_path / "val" / "n99999999").mkdir()
    fails(lambda: load("imagenet", tmp_path), "n99999999", "no such class in train/")
    (tmp_path / "val" / "n99999999").rmdir()
    (tmp_path / "train" / "n00000000").mkdir()
    fails(lambda: load("imagenet", tmp_path), "n00000000", "holds no images")


def test_names_take_the_bytes_of_the_longest_and_no_more() -> None:
    samples = ImageFiles("imagenet", Path("x"), [f"train/{i:04d}.JPEG" for i in range(1000)], torch.arange(1000), 256)
    assert samples.names.nbytes == 15 * 1000
    assert np.shares_memory(samples.part(10, 20).names, samples.names)
    assert samples.path(999) == Path("x/train/0999.JPEG")
