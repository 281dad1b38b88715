"""Domain-incremental tasks: the same classes in other looks. Pixels permuted, images rotated, data sets in sequence.

Looks are computed for a batch when it is gathered: as many tasks as one likes share the memory of one data set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.runtime.seeds import torch_generator
from reprise.scenarios.raw import RawData
from reprise.scenarios.resized_crop import sample_at
from reprise.scenarios.task import Batch, Indices, Rows, Samples
from reprise.scenarios.transforms import ImageTransform, Normalised, Transform

Look = Callable[[Tensor], Tensor]
"""Raw samples (b, C, H, W) to raw samples of the same dtype; can be pickled, for loader processes."""

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


class Seen(Samples):
    """Samples as a look shows them."""

    def __init__(self, samples: Samples, look: Look) -> None:
        self.samples = samples
        self.look = look
        self.sample_dtype, self.target_shape, self.labels = samples.sample_dtype, samples.target_shape, samples.labels
        self.sample_shape = tuple(look(torch.zeros((1, *samples.sample_shape), dtype=self.sample_dtype)).shape[1:])

    def gather(self, indices: Indices, out: Rows = (None, None)) -> Batch:
        x, y = self.samples.gather(indices)
        x = self.look(x)
        return (x, y) if out[0] is None else (out[0].copy_(x), out[1].copy_(y))


class Joined(Samples):
    """Several parts one after the other, of one shape and dtype."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        first = parts[0]
        self.parts = tuple(parts)
        self.sample_shape, self.sample_dtype = first.sample_shape, first.sample_dtype
        self.target_shape = first.target_shape
        self.labels = torch.cat([part.labels for part in parts])
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def gather(self, indices: Indices, out: Rows = (None, None)) -> Batch:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        x, y = self.room(len(rows), out)
        owner = torch.searchsorted(self._ends, rows, right=True)
        for number in owner.unique().tolist():
            places = (owner == number).nonzero().squeeze(1)
            part = self.parts[number]
            x[places], y[places] = part.gather(rows[places] - (int(self._ends[number]) - len(part)))
        return x, y


@dataclass(frozen=True)
class Permute:
    """Pixels in another order, the same one for every image and channel. order: (H * W,)."""

    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(2).index_select(2, self.order).view_as(x)


@dataclass(frozen=True)
class Rotate:
    """Square images turned counter-clockwise about their centre, corners that come from outside black."""

    degrees: float

    def __call__(self, x: Tensor) -> Tensor:
        angle = torch.deg2rad(torch.tensor(self.degrees))
        centre = (x.shape[-1] - 1) / 2
        offsets = torch.arange(x.shape[-1]) - centre
        down, right = offsets[:, None], offsets[None, :]
        rows = centre + angle.sin() * right + angle.cos() * down
        columns = centre + angle.cos() * right - angle.sin() * down
        return sample_at(x, rows[None], columns[None])


@dataclass(frozen=True)
class Fit:
    """Images in the shape and range of other ones: channels repeated or weighed by luminance, resized, rescaled."""

    shape: tuple[int, ...]
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        channels, height, width = self.shape
        values = x.to(torch.float32) * self.scale
        if channels < x.shape[1]:
            values = (values * torch.tensor(LUMINANCE).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        if (height, width) != tuple(x.shape[2:]):
            values = torch.nn.functional.interpolate(values, (height, width), mode="bilinear", antialias=True)
        return values.round().to(x.dtype).expand(-1, channels, -1, -1).contiguous()


def looks(dataset: str, raw: RawData, domain: str, num_tasks: int, seed: int) -> list[Look | None]:
    """How each task sees the data set; None, for the first: as it is. domain: "permuted" or "rotated"."""
    _check_whole_images(dataset, raw, domain)
    return [None, *(_LOOKS[domain](raw, seed, task) for task in range(1, num_tasks))]


def as_the_first(names: Sequence[str], raws: Sequence[RawData]) -> list[Look | None]:
    """How the images of each data set become like those of the first, in shape and range of values; None: they are."""
    first = raws[0]
    fitting: list[Look | None] = []
    for name, raw in zip(names, raws, strict=True):
        if not (isinstance(raw.transform, Normalised) and isinstance(first.transform, Normalised)):
            raise UserError(f"datasets: '{name}' is not one of images with classes; leave it out of the sequence")
        if raw.num_classes != first.num_classes:
            raise UserError(
                f"datasets: '{name}' has {raw.num_classes} classes, '{names[0]}' {first.num_classes}; all tasks of "
                "scenario 'domain' have the same classes, so leave one of the two out"
            )
        shape, scale = first.train.sample_shape, first.transform.peak / raw.transform.peak
        fitting.append(None if (raw.train.sample_shape, scale) == (shape, 1) else Fit(shape, scale))
    return fitting


def without_augmentation(transform: Transform) -> Transform:
    """A shift or a mirror image of permuted pixels, or of an image at an angle, is none of its domain."""
    assert isinstance(transform, ImageTransform)
    return replace(transform, padding=0, flip=False)


def _check_whole_images(dataset: str, raw: RawData, domain: str) -> None:
    if not isinstance(raw.transform, ImageTransform):
        raise UserError(
            f"domain '{domain}' is for images that are used whole, and those of '{dataset}' are not; choose another "
            "data set, or a sequence of them with the key 'datasets'"
        )


def _permute(raw: RawData, seed: int, task: int) -> Look:
    num_pixels = raw.train.sample_shape[1] * raw.train.sample_shape[2]
    return Permute(torch.randperm(num_pixels, generator=torch_generator(seed, "permutation", task)))


def _rotate(raw: RawData, seed: int, task: int) -> Look:
    return Rotate(180 * float(torch.rand((), generator=torch_generator(seed, "rotation", task))))


_LOOKS = {"permuted": _permute, "rotated": _rotate}
