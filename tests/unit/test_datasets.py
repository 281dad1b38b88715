"""Data sets: read from files in the real formats, never from the network unasked, damage named file by file."""

import pickle
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import MNIST_FILES, write_cifar, write_mnist

from reprise.runtime.errors import UserError
from reprise.scenarios import DATASETS, build
from reprise.scenarios.raw import RawData


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("the test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def forbidden_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even an attempt fails the test, also one whose error somebody handles."""

    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail("reached for the network")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (urllib.request, "urlopen")):
        monkeypatch.setattr(owner, name, fail)


def load(name: str, folder: Path, download: bool = False) -> RawData:
    return DATASETS.get(name)(folder, download)


# ---- what is read


@pytest.mark.usefixtures("forbidden_network")
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_read_as_written_packed_or_not(tmp_path: Path, suffix: str) -> None:
    arrays = write_mnist(tmp_path, suffix)
    before = sorted(tmp_path.rglob("*"))
    raw = load("mnist", tmp_path)
    assert raw.train.x.shape == (30, 1, 28, 28)
    assert np.array_equal(raw.train.x[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(raw.test.x[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert raw.train.y.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert raw.test.y.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert raw.num_classes == 10
    assert sorted(tmp_path.rglob("*")) == before  # the folder may be read-only
    assert float(raw.transform.normalise(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))[0, 0, 0, 0]) == pytest.approx(
        -0.1307 / 0.3081
    )


@pytest.mark.usefixtures("forbidden_network")
def test_mnist_prefers_unpacked_files_and_mixes_both(tmp_path: Path) -> None:
    write_mnist(tmp_path, ".gz")
    arrays = write_mnist(tmp_path, "")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"broken, but not needed")
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    raw = load("mnist", tmp_path)
    assert np.array_equal(raw.train.x[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(raw.test.x[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])


@pytest.mark.usefixtures("forbidden_network")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_as_written(tmp_path: Path, name: str) -> None:
    content = write_cifar(tmp_path, name)
    raw = load(name, tmp_path)
    (test_file,) = [file for file in content if file.startswith("test")]
    train = [part for file, part in content.items() if file != test_file]
    assert np.array_equal(raw.train.x.numpy(), np.concatenate([x for x, _ in train]))
    assert raw.train.y.tolist() == [label for _, y in train for label in y]
    assert np.array_equal(raw.test.x.numpy(), content[test_file][0])
    assert raw.test.y.tolist() == content[test_file][1]  # 20 labels without class 0 for cifar100: not shifted
    assert raw.num_classes == (10 if name == "cifar10" else 100)
    assert raw.train.x.is_contiguous()


def test_cifar_is_augmented_in_training_only(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar10")
    scenario = build("cifar10", tmp_path, class_order_seed=None, given=False)
    x = scenario.tasks[0].train.x[:16]
    generator = torch.Generator().manual_seed(0)
    transform = scenario.transform
    assert not torch.equal(transform.augment(x, generator), transform.augment(x, generator))
    assert torch.equal(transform.view(x), x)
    black = transform.normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).flatten().tolist()
    assert black == pytest.approx([-0.4914 / 0.2470, -0.4822 / 0.2435, -0.4465 / 0.2616])


def test_small_files_become_tasks(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    scenario = build("mnist", str(tmp_path), increment=5, class_order_seed=None, given=True)
    assert [(task.classes, len(task.train), len(task.test)) for task in scenario.tasks] == [
        ((0, 1, 2, 3, 4), 15, 10),
        ((5, 6, 7, 8, 9), 15, 10),
    ]


@pytest.mark.usefixtures("forbidden_network")
def test_digits_are_real_stratified_and_always_the_same() -> None:
    from sklearn.datasets import load_digits

    raw, again = load("digits", Path("none")), load("digits", Path("none"))
    assert (len(raw.train.x), len(raw.test.x)) == (1347, 450)
    assert torch.equal(raw.train.x, again.train.x)
    ours = torch.cat([raw.train.x, raw.test.x]).flatten(1).tolist()
    assert sorted(ours) == sorted(load_digits().data.astype(int).tolist())
    share = torch.bincount(raw.test.y).float() / torch.bincount(torch.cat([raw.train.y, raw.test.y]))
    assert share.min() > 0.24
    assert share.max() < 0.26


def test_no_image_of_the_two_domains_is_in_both_or_in_what_pre_trains() -> None:
    whole, raw, pretraining = (
        load(name, Path("none")) for name in ("digits", "digits_two_domains", "digits_pretraining")
    )
    upright = raw.train.x[raw.train.y < 10]
    turned = (16 - raw.train.x[raw.train.y >= 10]).rot90(k=-1, dims=(2, 3))
    parts = [part.flatten(1).tolist() for part in (upright, turned, pretraining.train.x)]
    assert sorted(row for part in parts for row in part) == sorted(whole.train.x.flatten(1).tolist())
    assert raw.num_classes == 20
    labels = torch.cat([raw.train.y, pretraining.train.y]) % 10
    assert torch.equal(labels.bincount(), whole.train.y.bincount())
    assert (len(raw.train), len(raw.test), raw.test.y.bincount().min() > 40) == (902, 900, True)


@pytest.mark.usefixtures("forbidden_network")
def test_synthetic_is_the_same_every_time_and_neither_trivial_nor_hopeless() -> None:
    raw, again = load("synthetic", Path("none")), load("synthetic", Path("none"))
    assert torch.equal(raw.train.x, again.train.x)
    assert raw.train.x.shape == (5000, 3, 32, 32)
    assert torch.bincount(raw.train.y).tolist() == [500] * 10
    assert torch.bincount(raw.test.y).tolist() == [100] * 10
    train, test = raw.transform.normalise(raw.train.x).flatten(1), raw.transform.normalise(raw.test.x).flatten(1)
    means = torch.stack([train[raw.train.y == label].mean(0) for label in range(10)])
    accuracy = (torch.cdist(test, means).argmin(1) == raw.test.y).float().mean()
    assert 0.4 < accuracy < 0.9  # by the nearest class mean; chance is 0.1


# ---- what is refused


def fails(name: str, folder: Path, *words: str, download: bool = False) -> None:
    with pytest.raises(UserError) as caught:
        load(name, folder, download)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.usefixtures("forbidden_network")
@pytest.mark.parametrize(
    ("name", "file"),
    [("mnist", "train-images-idx3-ubyte"), ("cifar10", "data_batch_1"), ("cifar100", "cifar-100-python/train")],
)
def test_missing_files_are_named_with_their_folder_and_the_remedy(tmp_path: Path, name: str, file: str) -> None:
    """rehearsal.md 1.6: examples of the reference fail because nothing is there and nothing says so."""
    fails(name, tmp_path, name, str(tmp_path), file, "--download", "--dataset-dir")
    fails(name, tmp_path / "absent", name, str(tmp_path / "absent"), "does not exist", "--download")
    assert not (tmp_path / "absent").exists()


@pytest.mark.usefixtures("forbidden_network")
def test_one_missing_file_is_named_alone(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UserError) as caught:
        load("cifar10", tmp_path)
    assert "data_batch_3" in str(caught.value)
    assert "data_batch_2" not in str(caught.value)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def scribbled(content: bytes) -> bytes:
    return b"<html>404 not found</html>" * 40


@pytest.mark.usefixtures("forbidden_network")
@pytest.mark.parametrize("damage", [cut, emptied, scribbled])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("file", MNIST_FILES)
def test_a_damaged_mnist_file_is_named(
    tmp_path: Path, file: str, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    write_mnist(tmp_path, suffix)
    path = tmp_path / "MNIST" / "raw" / f"{file}{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    fails("mnist", tmp_path, str(path), "damaged", "--download")


@pytest.mark.usefixtures("forbidden_network")
@pytest.mark.parametrize("damage", [cut, emptied, scribbled])
@pytest.mark.parametrize(
    ("name", "file"), [("cifar10", "data_batch_4"), ("cifar10", "test_batch"), ("cifar100", "train")]
)
def test_a_damaged_cifar_file_is_named(tmp_path: Path, name: str, file: str, damage: Callable[[bytes], bytes]) -> None:
    write_cifar(tmp_path, name)
    (path,) = tmp_path.rglob(file)
    path.write_bytes(damage(path.read_bytes()))
    fails(name, tmp_path, str(path), "damaged", "--download")


@pytest.mark.usefixtures("forbidden_network")
def test_mnist_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes((0x801).to_bytes(4, "big") + (19).to_bytes(4, "big") + whole[8:27])
    fails("mnist", tmp_path, str(labels), "19 labels for 20 images")
    labels.write_bytes(whole[:-1] + b"\x0a")
    fails("mnist", tmp_path, str(labels), "label 10")
    write_mnist(tmp_path, num=(0, 5))
    fails("mnist", tmp_path, "train-images", "no samples")


@pytest.mark.usefixtures("forbidden_network")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": [3] * 19}, ["20 images", "19 labels"]),
        ({"labels": [10] * 20}, ["0 to 9"]),
        ({"labels": [-1] * 20}, ["0 to 9"]),
        ({"data": np.zeros((20, 3072), dtype=np.float32)}, ["float32"]),
        ({"data": np.zeros((20, 3071), dtype=np.uint8)}, ["damaged"]),
        ({"data": None}, ["damaged"]),
    ],
)
def test_a_cifar_batch_with_wrong_content_is_refused(tmp_path: Path, changes: dict, words: list[str]) -> None:
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **changes}))
    fails("cifar10", tmp_path, str(path), *words)


# ---- downloads


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_a_download_without_network_says_so_in_one_line(tmp_path: Path, name: str) -> None:
    fails(name, tmp_path / "new", name, str(tmp_path / "new"), "download", "the test has no network", download=True)


@pytest.mark.usefixtures("forbidden_network")
def test_download_does_not_fetch_what_is_there(tmp_path: Path) -> None:
    write_mnist(tmp_path, ".gz")
    write_cifar(tmp_path, "cifar100")
    assert len(load("mnist", tmp_path, download=True).train) == 30
    assert len(load("cifar100", tmp_path, download=True).train) == 20
