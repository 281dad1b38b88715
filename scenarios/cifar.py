"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read from their pickled batches by continuum's loader over torchvision's.

Expected inside --dataset-dir, or inside its CIFAR10/ or CIFAR100/, as the archives unpack: cifar-10-batches-py/ and
cifar-100-python/. The batches are read one at a time and without torchvision's checksums, so that an error can name the
file and a subset of the data is fine.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios.raw import DATASETS, RawData, damaged, download_failed, home, require_files, unreadable
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import ImageTransform


@dataclass(frozen=True)
class _Family:
    """What differs between the two: names of the files, number of classes, statistics of the training pixels."""

    name: str
    torchvision_class: str
    subfolder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def path(self, folder: Path, file: str) -> Path:
        return folder / self.subfolder / file


CIFAR10 = _Family(
    name="cifar10",
    torchvision_class="CIFAR10",
    subfolder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_files=("test_batch",),
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = _Family(
    name="cifar100",
    torchvision_class="CIFAR100",
    subfolder="cifar-100-python",
    train_files=("train",),
    test_files=("test",),
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


@DATASETS.register("cifar10")
def cifar10(folder: Path, download: bool) -> RawData:
    """50,000 training and 10,000 test images (3, 32, 32) of 10 classes, or as many as the files hold."""
    return _load(CIFAR10, folder, download)


@DATASETS.register("cifar100")
def cifar100(folder: Path, download: bool) -> RawData:
    """50,000 training and 10,000 test images (3, 32, 32) of 100 classes, or as many as the files hold."""
    return _load(CIFAR100, folder, download)


def _load(family: _Family, folder: Path, download: bool) -> RawData:
    ensure_torchvision()
    folder = home(folder, family.torchvision_class)
    files = [family.path(folder, file) for file in family.train_files + family.test_files]
    if download and not all(file.is_file() for file in files):
        _download(family, folder)
    require_files(family.name, folder, files, "unpack the python archive there, or fetch it with --download")
    train, test = (_read_all(family, folder, files) for files in (family.train_files, family.test_files))
    # Random crops with 4 black pixels around the image, and flips: He et al. 2016 (arXiv 1512.03385), section 4.2.
    transform = ImageTransform(family.mean, family.std, padding=4, flip=True)
    return RawData(train, test, family.num_classes, transform)


def _download(family: _Family, folder: Path) -> None:
    import torchvision
    from continuum.datasets import PyTorchDataset

    try:
        PyTorchDataset(str(folder), getattr(torchvision.datasets, family.torchvision_class), train=True, download=True)
    except (OSError, RuntimeError) as error:  # no network, no space, an archive with a wrong checksum
        raise download_failed(family.name, folder, error) from error


def _read_all(family: _Family, folder: Path, files: tuple[str, ...]) -> ArrayDataset:
    parts = [_read_one(family, folder, file) for file in files]
    return ArrayDataset(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))


def _read_one(family: _Family, folder: Path, file: str) -> ArrayDataset:
    import torchvision
    from continuum.datasets import PyTorchDataset

    path = family.path(folder, file)

    class OneFile(getattr(torchvision.datasets, family.torchvision_class)):  # type: ignore[misc]
        train_list = ((file, None),)

        def _check_integrity(self) -> bool:
            return True  # checked below, by content

        def _load_meta(self) -> None:
            pass  # the classes' names are not used

    try:
        loaded = PyTorchDataset(str(folder), OneFile, train=True, download=False).dataset
    except OSError as error:
        raise unreadable(family.name, path, error) from error
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        raise damaged(family.name, path, f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    # Not get_data(): it takes a batch without class 0 for one whose labels count from 1.
    x, y = np.asarray(loaded.data), np.asarray(loaded.targets)
    if x.dtype != np.uint8 or len(x) != len(y) or not len(y):
        raise damaged(family.name, path, f"{len(x)} images of type {x.dtype} with {len(y)} labels")
    if y.dtype.kind != "i" or y.min() < 0 or y.max() >= family.num_classes:
        raise damaged(family.name, path, f"labels are not all in 0 to {family.num_classes - 1}")
    return ArrayDataset(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y.astype(np.int64)))
