"""notMNIST (Bulatov 2011): the letters A to J in the typefaces of the web, grey images of 28x28 pixels.

Expected inside --dataset-dir, or inside its notMNIST/, as the archive of 5-Datasets unpacks (Ebrahimi et al. 2020,
arXiv 2003.09553): Train/<letter>/*.png and Test/<letter>/*.png. Label k is the k-th letter. Some of the archive's files
are empty; they are left out.
"""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from reprise.scenarios.image_files import AGAIN, image_names, labels_of, opened
from reprise.scenarios.raw import DATASETS, RawData, damaged, home, require_files
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import ImageTransform

logger = logging.getLogger(__name__)

NAME, LETTERS, SIZE = "notmnist", "ABCDEFGHIJ", 28
REMEDY = "unpack notMNIST.zip there (--download cannot fetch it)"


@DATASETS.register(NAME)
def notmnist(folder: Path, download: bool) -> RawData:
    """Images (1, 28, 28) of 10 classes, as many as there are files; all of them in memory."""
    folder = home(folder, "notMNIST")
    train, test = (_read(folder, part) for part in ("Train", "Test"))
    # The statistics that 5-Datasets was published with.
    return RawData(train, test, len(LETTERS), ImageTransform((0.4254,), (0.4501,)))


def _read(folder: Path, part: str) -> ArrayDataset:
    places = [folder / part / letter for letter in LETTERS]
    require_files(NAME, folder, places, REMEDY)
    of_letters = [[folder / name for name in image_names(NAME, folder, place)] for place in places]
    whole = [[path for path in paths if path.stat().st_size] for paths in of_letters]
    empty = sum(map(len, of_letters)) - sum(map(len, whole))
    if empty:
        logger.warning("data set '%s': %d empty files of '%s' are left out", NAME, empty, folder / part)
    pixels = [_pixels(path) for paths in whole for path in paths]
    return ArrayDataset(torch.from_numpy(np.stack(pixels)[:, None]), labels_of([len(paths) for paths in whole]))


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    with opened(NAME, path) as image:
        pixels = np.array(image.convert("L"))
    if pixels.shape != (SIZE, SIZE):
        raise damaged(NAME, path, f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels, not {SIZE}x{SIZE}", AGAIN)
    return pixels
