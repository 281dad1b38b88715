"""Street View House Numbers (Netzer et al. 2011), cropped digits of 32x32 pixels in colour.

Expected inside --dataset-dir, or inside its SVHN/: train_32x32.mat and test_32x32.mat. The files call the digit 0 class
10; here label k is digit k. The additional training images of extra_32x32.mat are not used.
"""

from pathlib import Path

import numpy as np
import torch

from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios.mat_files import from_zero, read_mat
from reprise.scenarios.raw import DATASETS, FETCH_AGAIN, RawData, damaged, download_failed, home, require_files
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import ImageTransform

NAME, NUM_CLASSES, SIZE = "svhn", 10, 32
PARTS = ("train", "test")


@DATASETS.register(NAME)
def svhn(folder: Path, download: bool) -> RawData:
    """73,257 training and 26,032 test images (3, 32, 32) of 10 classes, or as many as the files hold."""
    folder = home(folder, "SVHN")
    files = [folder / f"{part}_32x32.mat" for part in PARTS]
    if download and not all(file.is_file() for file in files):
        _download(folder)
    require_files(NAME, folder, files, "fetch it with --download")
    train, test = (_read(file) for file in files)
    # Statistics of the training pixels. No flips and no shifts: the images show the neighbouring digits, too.
    return RawData(train, test, NUM_CLASSES, ImageTransform((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)))


def _download(folder: Path) -> None:
    ensure_torchvision()
    from torchvision.datasets import SVHN

    try:
        for part in PARTS:
            SVHN(str(folder), split=part, download=True)
    except (OSError, RuntimeError) as error:  # no network, no space, a file with a wrong checksum
        raise download_failed(NAME, folder, error) from error


def _read(file: Path) -> ArrayDataset:
    x, y = read_mat(NAME, file, ("X", "y"), FETCH_AGAIN)
    if x.dtype != np.uint8 or x.shape[:-1] != (SIZE, SIZE, 3) or y.shape != x.shape[-1:]:
        raise damaged(NAME, file, f"images {x.shape} of type {x.dtype} with labels {y.shape}")
    digits = (from_zero(NAME, file, y, NUM_CLASSES, FETCH_AGAIN) + 1) % NUM_CLASSES
    return ArrayDataset(torch.from_numpy(x).permute(3, 2, 0, 1).contiguous(), digits)
