"""Does loading keep up? Images per second of our loader and transforms, against plain torchvision's way, in one run:

    python -m reprise.benchmarks.loading [--quick]

Plain: one PIL image at a time through torchvision's transforms, in torch's DataLoader. Both give normalised float32
batches after the same augmentation. The two take turns; the ratio is the median of the turns' ratios. The JPEG files
are written by the benchmark itself, in ImageNet's usual size.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios.image_files import ImageFiles
from reprise.scenarios.imagenet import TRANSFORM
from reprise.scenarios.loader import train_loader
from reprise.scenarios.sampler import TrainSampler
from reprise.scenarios.task import ArrayDataset, Samples
from reprise.scenarios.transforms import ImageTransform, Transform

BATCH = 64
WIDTH, HEIGHT = 500, 375  # pixels: the median of ImageNet's files
CIFAR = ImageTransform((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), padding=4, flip=True)


class Plain(Dataset[tuple[Tensor, int]]):
    """The same samples, one at a time, through torchvision's transforms of PIL images."""

    def __init__(self, samples: Samples, transform: Transform) -> None:
        self.samples = samples
        self.transform = transform
        self._transforms: Any = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._transforms is None:  # not before: a loader process has to import torchvision our way
            self._transforms = plain_transforms(self.transform)
        if isinstance(self.samples, ImageFiles):
            with Image.open(self.samples.path(index)) as file:
                image = file.convert("RGB")
        else:
            assert isinstance(self.samples, ArrayDataset)
            image = Image.fromarray(self.samples.x[index].permute(1, 2, 0).numpy())
        return self._transforms(image), int(self.samples.labels[index])


def plain_transforms(transform: Transform) -> Any:
    """What torchvision offers for the same augmentation."""
    ensure_torchvision()
    from torchvision import transforms

    if isinstance(transform, ImageTransform):
        crop = transforms.RandomCrop(32, padding=transform.padding)
    else:
        crop = transforms.RandomResizedCrop(TRANSFORM.size)
    statistics = CIFAR if isinstance(transform, ImageTransform) else TRANSFORM
    return transforms.Compose(
        [
            crop,
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(statistics.mean, statistics.std),
        ]
    )


def cifar_like(num: int) -> ArrayDataset:
    """Images in memory, in CIFAR's shape."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (num, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ArrayDataset(x, torch.arange(num) % 10)


def jpeg_files(folder: Path, num: int) -> ImageFiles:
    """Photograph-like JPEG files: smooth shapes under some grain."""
    random = np.random.default_rng(0)
    for i in range(num):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-12, 13, smooth.shape, dtype=np.int16)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.JPEG", quality=90)
    return ImageFiles("imagenet", folder, [f"{i:05d}.JPEG" for i in range(num)], torch.arange(num) % 10, 256)


def rate(batches: Iterable[Any], transform: Transform | None, generator: torch.Generator) -> float:
    """Images per second over one epoch, transformed here where a transform is given; starting workers is not counted.

    The clock starts with the first batch, whose images therefore do not count.
    """
    images, started = 0, 0.0
    for step, (x, _) in enumerate(batches):
        if transform is not None:
            x = transform.normalise(transform.augment(x, generator))
        assert x.dtype == torch.float32
        if step:
            images += len(x)
        else:
            started = perf_counter()
    return images / (perf_counter() - started)


def compare(samples: Samples, transform: Transform, workers: int, turns: int) -> tuple[float, float, float]:
    """Ours and plain in images per second, and the median ratio."""
    generator = torch.Generator().manual_seed(0)
    sampler = TrainSampler(len(samples), BATCH, rank=0, world_size=1, seed=0, task=0)
    ours = train_loader(samples, sampler, workers=workers)
    arguments: dict[str, Any] = {"multiprocessing_context": "forkserver", "persistent_workers": True} if workers else {}
    plain = DataLoader(Plain(samples, transform), BATCH, shuffle=True, num_workers=workers, **arguments)
    rates = []
    for turn in range(turns + 1):
        sampler.set_epoch(turn)
        rates.append((rate(ours, transform, generator), rate(plain, None, generator)))
    rates = rates[1:]  # the first turn warms up
    return median(a for a, _ in rates), median(b for _, b in rates), median(a / b for a, b in rates)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Images per second of loading, against plain torchvision.")
    parser.add_argument("--quick", action="store_true", help="few images and turns: does it work at all")
    quick = parser.parse_args(argv).quick
    turns = 1 if quick else 5
    torch.set_num_threads(1)  # one core does what the step would otherwise wait for
    print(f"batch {BATCH}, torch threads 1, {turns} turn(s)")
    print(f"{'samples':<12}{'workers':>8}{'ours img/s':>13}{'plain img/s':>13}{'ratio':>8}")
    with TemporaryDirectory(prefix="reprise-loading-") as folder:
        sets: list[tuple[str, Samples, Transform]] = [
            ("in memory", cifar_like(2_048 if quick else 10_240), CIFAR),
            ("JPEG files", jpeg_files(Path(folder), 192 if quick else 640), TRANSFORM),
        ]
        for name, samples, transform in sets:
            for workers in (0, 2):
                ours, plain, ratio = compare(samples, transform, workers, turns)
                print(f"{name:<12}{workers:>8}{ours:>13,.0f}{plain:>13,.0f}{ratio:>8.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
