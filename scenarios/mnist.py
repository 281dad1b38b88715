"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017), read from idx files by continuum's loader
(torchvision's parser underneath).

Expected inside --dataset-dir, torchvision's layout: MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, or the same
in FashionMNIST/raw, each as it is or with .gz as distributed. No checksums are asked for, but sizes are: the parser
itself accepts files cut short.
"""

import gzip
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios.raw import DATASETS, RawData, damaged, download_failed, require_files, unreadable
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import ImageTransform

NUM_CLASSES, SIZE = 10, 28
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
TRAIN, TEST = "train", "t10k"


@dataclass(frozen=True)
class _Family:
    """What differs between the two: names, and statistics of the training pixels."""

    name: str
    continuum_class: str  # and the folder that torchvision gives it
    mean: float
    std: float

    @property
    def subfolder(self) -> Path:
        return Path(self.continuum_class, "raw")

    def found(self, folder: Path, name: str) -> Path:
        """The file as it lies in the folder, packed or not; the unpacked name when there is neither."""
        plain = folder / self.subfolder / name
        packed = plain.with_name(f"{name}.gz")
        return packed if packed.is_file() and not plain.is_file() else plain


MNIST = _Family("mnist", "MNIST", mean=0.1307, std=0.3081)
FASHION_MNIST = _Family("fashionmnist", "FashionMNIST", mean=0.2860, std=0.3530)


@DATASETS.register("mnist")
def mnist(folder: Path, download: bool) -> RawData:
    """60,000 training and 10,000 test images (1, 28, 28) of digits, or as many as the files hold."""
    return _load(MNIST, folder, download)


@DATASETS.register("fashionmnist")
def fashionmnist(folder: Path, download: bool) -> RawData:
    """60,000 training and 10,000 test images (1, 28, 28) of clothes, or as many as the files hold."""
    return _load(FASHION_MNIST, folder, download)


def _load(family: _Family, folder: Path, download: bool) -> RawData:
    ensure_torchvision()
    names = [f"{part}-{kind}" for part in (TRAIN, TEST) for kind in (IMAGES, LABELS)]
    if download and not all(family.found(folder, name).is_file() for name in names):
        _download(family, folder)
    require_files(family.name, folder, [family.found(folder, name) for name in names], "fetch it with --download")
    # The parser reads unpacked files only, and the data folder may be read-only or shared with other ranks.
    with TemporaryDirectory(prefix="reprise-mnist-") as unpacked:
        root = folder
        if any(family.found(folder, name).suffix == ".gz" for name in names):
            root = Path(unpacked)
            (root / family.subfolder).mkdir(parents=True)
            for name in names:
                _unpack(family, family.found(folder, name), root / family.subfolder / name)
        train, test = _read(family, folder, root, TRAIN), _read(family, folder, root, TEST)
    return RawData(train, test, NUM_CLASSES, ImageTransform(mean=(family.mean,), std=(family.std,)))


def _download(family: _Family, folder: Path) -> None:
    from continuum import datasets

    try:
        getattr(datasets, family.continuum_class)(str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:  # no network, no space, a mirror's file with a wrong checksum
        raise download_failed(family.name, folder, error) from error


def _unpack(family: _Family, source: Path, target: Path) -> None:
    opener = gzip.open if source.suffix == ".gz" else open
    try:
        with opener(source, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(family.name, source, str(error)) from error
    except OSError as error:
        raise UserError(f"data set '{family.name}': cannot unpack '{source}': {error.strerror or error}") from error


def _read(family: _Family, folder: Path, root: Path, part: str) -> ArrayDataset:
    """Samples of one part, read below `root`; errors name the file in `folder`."""
    from continuum import datasets

    names = [f"{part}-{kind}" for kind in (IMAGES, LABELS)]
    counts = [_check(family, family.found(folder, name), root / family.subfolder / name) for name in names]
    if counts[0] != counts[1]:
        raise damaged(family.name, family.found(folder, names[1]), f"{counts[1]} labels for {counts[0]} images")
    # Not get_data(): it takes labels without a 0 among them for labels that count from 1.
    loaded = getattr(datasets, family.continuum_class)(str(root), train=part == TRAIN, download=False).dataset
    return ArrayDataset(loaded.data.unsqueeze(1), loaded.targets)


def _check(family: _Family, shown: Path, file: Path) -> int:
    """Samples in an idx file, after comparing its header with its size and, for labels, its values with the classes."""
    images = file.name.endswith(IMAGES)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise unreadable(family.name, shown, error) from error
    words = [int.from_bytes(content[at : at + 4], "big") for at in range(0, 16 if images else 8, 4)]
    expected = [0x803, words[1], SIZE, SIZE] if images else [0x801, words[1]]
    if words != expected:
        raise damaged(family.name, shown, f"its header is not that of MNIST {'images' if images else 'labels'}")
    size = 4 * len(words) + words[1] * (SIZE * SIZE if images else 1)
    if len(content) != size:
        raise damaged(family.name, shown, f"{len(content)} bytes instead of {size}")
    if words[1] == 0:
        raise damaged(family.name, shown, "it holds no samples")
    if not images and max(content[8:]) >= NUM_CLASSES:
        raise damaged(family.name, shown, f"label {max(content[8:])} is none of the {NUM_CLASSES} classes")
    return words[1]
