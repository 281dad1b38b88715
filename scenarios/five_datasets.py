"""5-Datasets (Ebrahimi et al. 2020, arXiv 2003.09553): SVHN, MNIST, CIFAR-10, notMNIST and Fashion-MNIST in one.

Expected inside --dataset-dir: the files of all five, as each of them wants them. Its 50 classes are those of the first,
of the second and so on, so that class-incremental tasks of 10 classes are the five data sets, in the order of L2P and
HiDe-PET.
"""

from pathlib import Path

import torch

from reprise.scenarios.domains import Fit
from reprise.scenarios.raw import DATASETS, RawData
from reprise.scenarios.task import ArrayDataset, Divisible
from reprise.scenarios.transforms import ImageTransform

NAME = "5datasets"
PARTS = ("svhn", "mnist", "cifar10", "notmnist", "fashionmnist")
CLASSES_EACH = 10
SHAPE = (3, 32, 32)
AT_ONCE = 4096  # images: their floats take 50 MiB


@DATASETS.register(NAME)
def five_datasets(folder: Path, download: bool) -> RawData:
    """Images (3, 32, 32) of 50 classes, as many as the files hold: about 260,000 for training, 800 MB in memory.

    Grey images get three equal channels and are resized from 28x28 pixels.
    """
    raws = [DATASETS.get(name)(folder, download) for name in PARTS]
    train, test = _joined([raw.train for raw in raws]), _joined([raw.test for raw in raws])
    # One normalisation for all: each with its own would tell the network the data set. No flips: there are digits.
    transform = ImageTransform((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return RawData(train, test, CLASSES_EACH * len(PARTS), transform)


def _joined(parts: list[Divisible]) -> ArrayDataset:
    fit = Fit(SHAPE, scale=1.0)
    batches = []
    for part in parts:
        for rows in torch.arange(len(part)).split(AT_ONCE):
            x, _ = part.gather(rows)
            batches.append(x if part.sample_shape == SHAPE else fit(x))
    labels = [part.labels + CLASSES_EACH * number for number, part in enumerate(parts)]
    return ArrayDataset(torch.cat(batches), torch.cat(labels))
