"""Handwritten digits: 1,797 real images of 8x8 pixels that ship with scikit-learn (UCI "optical recognition").

The data set of the demo and of most tests: no files, no network. Not to be confused with MNIST.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reprise.scenarios.raw import DATASETS, RawData
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import ImageTransform

_TRANSFORM = ImageTransform(mean=(0.5,), std=(0.5,), peak=16.0)
_PEAK = 16


@DATASETS.register("digits")
def digits(folder: Path, download: bool) -> RawData:
    """1,347 training and 450 test images (1, 8, 8) with values 0 to 16. The split does not depend on --seed."""
    (x_train, y_train), (x_test, y_test) = _split()
    return RawData(ArrayDataset(x_train, y_train), ArrayDataset(x_test, y_test), 10, _TRANSFORM)


@DATASETS.register("digits_two_domains")
def digits_two_domains(folder: Path, download: bool) -> RawData:
    """20 classes: the digits as they are, and as 10 further classes inverted and turned by 90 degrees.

    902 training images, none in both domains and none of digits_pretraining; 900 test images.
    """
    (x_train, y_train), (x_test, y_test) = _split()
    first, second, _ = _thirds(y_train)
    train = ArrayDataset(
        torch.cat([x_train[first], _other_domain(x_train[second])]), torch.cat([y_train[first], 10 + y_train[second]])
    )
    test = ArrayDataset(torch.cat([x_test, _other_domain(x_test)]), torch.cat([y_test, 10 + y_test]))
    return RawData(train, test, 20, _TRANSFORM)


@DATASETS.register("digits_pretraining")
def digits_pretraining(folder: Path, download: bool) -> RawData:
    """The training images of the digits that digits_two_domains leaves out, to pre-train a network for it with."""
    (x_train, y_train), (x_test, y_test) = _split()
    part = _thirds(y_train)[2]
    return RawData(ArrayDataset(x_train[part], y_train[part]), ArrayDataset(x_test, y_test), 10, _TRANSFORM)


def _split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        bunch.images.astype(np.uint8)[:, None], bunch.target, test_size=0.25, stratify=bunch.target, random_state=0
    )
    return (
        (torch.from_numpy(x_train), torch.from_numpy(y_train).long()),
        (torch.from_numpy(x_test), torch.from_numpy(y_test).long()),
    )


def _thirds(labels: Tensor) -> list[Tensor]:
    """Rows of three disjoint parts, with as many of each class up to one."""
    by_class = [torch.nonzero(labels == label).flatten() for label in range(10)]
    return [torch.cat([rows[part::3] for rows in by_class]) for part in range(3)]


def _other_domain(x: Tensor) -> Tensor:
    return _PEAK - x.rot90(dims=(2, 3))
