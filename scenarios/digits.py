"""Handwritten digits: 1,797 real images of 8x8 pixels that ship with scikit-learn (UCI "optical recognition").

The data set of the demo and of most tests: no files, no network. Not to be confused with MNIST.
"""

from pathlib import Path

import numpy as np
import torch

from reprise.scenarios.raw import DATASETS, RawData
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import ImageTransform


@DATASETS.register("digits")
def digits(folder: Path, download: bool) -> RawData:
    """1,347 training and 450 test images (1, 8, 8) with values 0 to 16. The split does not depend on --seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        bunch.images.astype(np.uint8)[:, None], bunch.target, test_size=0.25, stratify=bunch.target, random_state=0
    )
    return RawData(
        train=ArrayDataset(torch.from_numpy(x_train), torch.from_numpy(y_train).long()),
        test=ArrayDataset(torch.from_numpy(x_test), torch.from_numpy(y_test).long()),
        num_classes=10,
        transform=ImageTransform(mean=(0.5,), std=(0.5,), peak=16.0),
    )
