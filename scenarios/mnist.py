"""MNIST (LeCun et al. 1998), read from idx files by continuum's loader (torchvision's parser underneath).

Expected inside --dataset-dir, torchvision's layout: MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, each as it
is or with .gz as distributed. No checksums are asked for, but sizes are: the parser itself accepts files cut short.
"""

import gzip
import shutil
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios.raw import DATASETS, RawData, damaged, download_failed, require_files, unreadable
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import ImageTransform

NUM_CLASSES, SIZE = 10, 28
SUBFOLDER = Path("MNIST", "raw")
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
TRAIN, TEST = "train", "t10k"


@DATASETS.register("mnist")
def mnist(folder: Path, download: bool) -> RawData:
    """60,000 training and 10,000 test images (1, 28, 28), or as many as the files hold."""
    ensure_torchvision()
    names = [f"{part}-{kind}" for part in (TRAIN, TEST) for kind in (IMAGES, LABELS)]
    if download and not all(_found(folder, name).is_file() for name in names):
        _download(folder)
    require_files("mnist", folder, [_found(folder, name) for name in names], "fetch it with --download")
    # The parser reads unpacked files only, and the data folder may be read-only or shared with other ranks.
    with TemporaryDirectory(prefix="reprise-mnist-") as unpacked:
        root = folder
        if any(_found(folder, name).suffix == ".gz" for name in names):
            root = Path(unpacked)
            (root / SUBFOLDER).mkdir(parents=True)
            for name in names:
                _unpack(_found(folder, name), root / SUBFOLDER / name)
        train, test = _read(folder, root, TRAIN), _read(folder, root, TEST)
    return RawData(train, test, NUM_CLASSES, ImageTransform(mean=(0.1307,), std=(0.3081,)))


def _found(folder: Path, name: str) -> Path:
    """The file as it lies in the folder, packed or not; the unpacked name when there is neither."""
    plain = folder / SUBFOLDER / name
    packed = plain.with_name(f"{name}.gz")
    return packed if packed.is_file() and not plain.is_file() else plain


def _download(folder: Path) -> None:
    from continuum.datasets import MNIST

    try:
        MNIST(str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:  # no network, no space, a mirror's file with a wrong checksum
        raise download_failed("mnist", folder, error) from error


def _unpack(source: Path, target: Path) -> None:
    opener = gzip.open if source.suffix == ".gz" else open
    try:
        with opener(source, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged("mnist", source, str(error)) from error
    except OSError as error:
        raise UserError(f"data set 'mnist': cannot unpack '{source}': {error.strerror or error}") from error


def _read(folder: Path, root: Path, part: str) -> ArrayDataset:
    """Samples of one part, read below `root`; errors name the file in `folder`."""
    from continuum.datasets import MNIST

    counts = [
        _check(_found(folder, f"{part}-{kind}"), root / SUBFOLDER / f"{part}-{kind}") for kind in (IMAGES, LABELS)
    ]
    if counts[0] != counts[1]:
        raise damaged("mnist", _found(folder, f"{part}-{LABELS}"), f"{counts[1]} labels for {counts[0]} images")
    # Not get_data(): it takes labels without a 0 among them for labels that count from 1.
    loaded = MNIST(str(root), train=part == TRAIN, download=False).dataset
    return ArrayDataset(loaded.data.unsqueeze(1), loaded.targets)


def _check(shown: Path, file: Path) -> int:
    """Samples in an idx file, after comparing its header with its size and, for labels, its values with the classes."""
    images = file.name.endswith(IMAGES)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise unreadable("mnist", shown, error) from error
    words = [int.from_bytes(content[at : at + 4], "big") for at in range(0, 16 if images else 8, 4)]
    expected = [0x803, words[1], SIZE, SIZE] if images else [0x801, words[1]]
    if words != expected:
        raise damaged("mnist", shown, f"its header is not that of MNIST {'images' if images else 'labels'}")
    size = 4 * len(words) + words[1] * (SIZE * SIZE if images else 1)
    if len(content) != size:
        raise damaged("mnist", shown, f"{len(content)} bytes instead of {size}")
    if words[1] == 0:
        raise damaged("mnist", shown, "it holds no samples")
    if not images and max(content[8:]) >= NUM_CLASSES:
        raise damaged("mnist", shown, f"label {max(content[8:])} is none of the {NUM_CLASSES} classes")
    return words[1]
