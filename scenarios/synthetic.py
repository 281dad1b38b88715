"""Synthetic images in CIFAR's shape, made in memory: for tests and measurements that must not need files or network.

Learnable, not trivial: a class has several templates, each image is one of them moved, dimmed and covered with noise.
Not a benchmark: accuracies on it say nothing about real images.
"""

from pathlib import Path

import torch
from torch import Tensor

from reprise.runtime.seeds import torch_generator
from reprise.scenarios.raw import DATASETS, RawData
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import ImageTransform

NUM_CLASSES = 10
TRAIN_PER_CLASS, TEST_PER_CLASS = 500, 100
TEMPLATES_PER_CLASS = 5
SIZE, GRID = 32, 4  # pixels, and the cells of a template before smoothing
LARGEST_SHIFT = 4  # pixels in each direction
NOISE = 2.0  # standard deviation, in units of a template's own


@DATASETS.register("synthetic")
def synthetic(folder: Path, download: bool) -> RawData:
    """10 classes of 500 training and 100 test images (3, 32, 32). The same on every rank and for every --seed."""
    generator = torch_generator(0, "synthetic data set")
    cells = torch.randn((NUM_CLASSES * TEMPLATES_PER_CLASS, 3, GRID, GRID), generator=generator)
    full = SIZE + 2 * LARGEST_SHIFT
    templates = torch.nn.functional.interpolate(cells, size=(full, full), mode="bilinear")
    train, test = (_images(templates, per_class, generator) for per_class in (TRAIN_PER_CLASS, TEST_PER_CLASS))
    transform = ImageTransform(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), padding=LARGEST_SHIFT)
    return RawData(train, test, NUM_CLASSES, transform)


def _images(templates: Tensor, per_class: int, generator: torch.Generator) -> ArrayDataset:
    """`per_class` images of every class, in random order of classes."""
    y = torch.arange(NUM_CLASSES).repeat_interleave(per_class)[
        torch.randperm(NUM_CLASSES * per_class, generator=generator)
    ]
    num = len(y)
    chosen = y * TEMPLATES_PER_CLASS + torch.randint(TEMPLATES_PER_CLASS, (num,), generator=generator)
    top, left = torch.randint(2 * LARGEST_SHIFT + 1, (2, num), generator=generator)
    contrast = 0.5 + torch.rand((num, 1, 1, 1), generator=generator)
    rows = (top[:, None] + torch.arange(SIZE)).view(num, 1, SIZE, 1)
    columns = (left[:, None] + torch.arange(SIZE)).view(num, 1, 1, SIZE)
    clean = templates[chosen.view(num, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1), rows, columns]
    noisy = contrast * clean + NOISE * torch.randn(clean.shape, generator=generator)
    return ArrayDataset((127.5 + 32 * noisy).clamp(0, 255).to(torch.uint8), y)
