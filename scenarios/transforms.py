"""From stored samples to network inputs, a batch at a time and on the batch's device.

Samples stay raw (uint8) in data sets and in the rehearsal buffer; a strategy transforms them just before the forward
pass, so that a replayed sample is augmented anew. Evaluation never augments.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Transform(Protocol):
    """What lies between a stored sample and the network. All of it batched, on the batch's device, first axis samples.

    Cut in two so that a strategy may store what the network saw (DER's logits belong to one view of a sample) in the
    few bytes of the data set's own type.
    """

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of every raw sample, of the raw dtype; `generator` may live on the CPU."""

    def view(self, x: Tensor) -> Tensor:
        """The view of every raw sample that evaluation uses, of the raw dtype and of the shape that augment makes."""

    def normalise(self, x: Tensor) -> Tensor:
        """Views to float32 network inputs."""


@dataclass(frozen=True)
class Unchanged:
    """Samples that are network inputs as they are, and the only view of themselves."""

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The samples."""
        return x

    def view(self, x: Tensor) -> Tensor:
        """The samples."""
        return x

    def normalise(self, x: Tensor) -> Tensor:
        """The samples, float32."""
        return x.to(torch.float32)


@dataclass(frozen=True)
class Normalised:
    """Views (b, C, H, W) of values 0 to `peak` to float32 (value / peak - mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    peak: float = 255.0

    def normalise(self, x: Tensor) -> Tensor:
        """float32 (value / peak - mean) / std."""
        mean, std = self._constants(x.device)
        # In place: on a CPU a new block of a batch's size costs more than the arithmetic.
        return x.to(torch.float32, copy=True).sub_(mean).div_(std)

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation on the scale of the raw values, (C, 1, 1) each."""
        key = (self, device)
        if key not in _constants:
            mean, std = (self.peak * torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.std))
            _constants[key] = mean.to(device), std.to(device)
        return _constants[key]


# Made once per device: building them in every step would make the step wait for a copy to the device.
_constants: dict[tuple[Normalised, torch.device], tuple[Tensor, Tensor]] = {}


@dataclass(frozen=True)
class ImageTransform(Normalised):
    """Raw images (b, C, H, W), shifted and mirrored, and resized last.

    padding: for training, cut each image at a random place out of itself with so many black pixels on every side;
    0 for none. flip: for training, mirror each image left to right with probability 1/2. size: side of the views in
    pixels; None for that of the images.
    """

    padding: int = 0
    flip: bool = False
    size: int | None = None

    def view(self, x: Tensor) -> Tensor:
        """The images, as they are or resized."""
        return x if self.size is None else resized(x, self.size)

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Shift and mirror every image by its own draw from `generator`, which may live on the CPU."""
        return self.view(self._moved(x, generator))

    def _moved(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if not self.padding and not self.flip:
            return x
        batch, channels, height, width = x.shape
        shifts = 2 * self.padding + 1
        # One tensor for all draws: one copy to the device.
        draws = torch.stack(
            [
                torch.randint(high, (batch,), generator=generator, device=generator.device)
                for high in (shifts, shifts, 2 if self.flip else 1)
            ]
        )
        top, left, mirrored = to_device(draws, x.device).unsqueeze(2)
        rows = top + torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device)
        columns = left + torch.where(mirrored.bool(), width - 1 - columns, columns)
        padded = torch.nn.functional.pad(x, [self.padding] * 4)
        samples = torch.arange(batch, device=x.device).view(batch, 1, 1, 1)
        planes = torch.arange(channels, device=x.device).view(1, channels, 1, 1)
        return padded[samples, planes, rows.view(batch, 1, height, 1), columns.view(batch, 1, 1, width)]


def resized(x: Tensor, size: int) -> Tensor:
    """Images (b, C, H, W) as (b, C, size, size) of the same dtype: bilinear with antialias, as torchvision's resize."""
    values = torch.nn.functional.interpolate(x.to(torch.float32), (size, size), mode="bilinear", antialias=True)
    return values if x.is_floating_point() else values.round_().to(x.dtype)


def to_device(draws: Tensor, device: torch.device) -> Tensor:
    """Random draws where they are used; the step does not wait for their copy."""
    if device.type == "cuda" and not draws.is_cuda:
        draws = draws.pin_memory()
    return draws.to(device, non_blocking=True)
