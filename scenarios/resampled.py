"""Views of images at the side a network wants, whatever the side of the images: parts, places and filters as published.

A view is two weighted sums of an image's pixels, over its rows and over its columns: one pair of small matrices per
sample crops, scales, mirrors and smooths a whole batch at once, on any device, with the antialias filters of PIL and
torchvision. uint8 in and uint8 out. Which preset uses what: transform_presets.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reprise.scenarios.resized_crop import AT_ONCE, random_boxes
from reprise.scenarios.transforms import Normalised, to_device

CUBIC = -0.5  # the coefficient of PIL's cubic filter (Keys 1981), and of torch's with antialias


@dataclass(frozen=True)
class ResampledTransform(Normalised):
    """Square raw images (b, C, H, H) of any H to views (b, C, size, size) of the same dtype.

    Evaluation: the image resized to `resized` pixels, and the middle cut out. Training: a random part scaled to `size`
    (Szegedy et al. 2015, see resized_crop.py), or, with cut_from, the image resized to so many pixels and cut at a
    random place; then mirrored left to right with probability 1/2. brightness: for training, the values of each image
    are multiplied by one number, uniform in 1 - brightness .. 1 + brightness. bicubic: the filter; False: bilinear.
    """

    size: int = 224
    resized: int = 256
    cut_from: int | None = None
    bicubic: bool = False
    brightness: float = 0.0

    def view(self, x: Tensor) -> Tensor:
        """The middle of every image."""
        side = _side(x)
        first = round((self.resized - self.size) / 2)
        if side == self.resized:
            return x[..., first : first + self.size, first : first + self.size].contiguous()
        scale = side / self.resized
        # Filled in and not copied to the device, which the evaluation would wait for.
        place = [torch.full((1,), float(v), device=x.device) for v in (first * scale, self.size * scale, 0, side)]
        matrices = self._matrices(torch.stack(place), side).expand(len(x), -1, -1)
        return self._applied(x, matrices, matrices, None)

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A part of every image by its own draws from `generator`, which may live on the CPU."""
        side, num = _side(x), len(x)
        if self.cut_from is None:
            # Cut out first, then scaled: the filter sees nothing beyond the part.
            (top, left, height, width), mirrored = random_boxes(num, side, generator)
            down = torch.stack([top, height, top, top + height])
            across = torch.stack([left, width, left, left + width])
        else:
            draws = torch.rand((3, num), generator=generator, device=generator.device)
            scale = side / self.cut_from
            top, left = (draws[:2] * (self.cut_from - self.size + 1)).floor() * scale
            extent, whole = torch.full_like(top, self.size * scale), torch.full_like(top, side)
            down, across = (torch.stack([start, extent, torch.zeros_like(top), whole]) for start in (top, left))
            mirrored = (draws[2] < 0.5).to(torch.float32)
        factors = torch.ones(num, device=generator.device)
        if self.brightness:
            draws = torch.rand(num, generator=generator, device=generator.device)
            factors = 1 + self.brightness * (2 * draws - 1)
        # One tensor for all draws: one copy to the device.
        drawn = to_device(torch.cat([down, across, mirrored[None], factors[None]]), x.device)
        rows, columns = self._matrices(drawn[:4], side), self._matrices(drawn[4:8], side)
        columns = torch.where(drawn[8].bool().view(-1, 1, 1), columns.flip(1), columns)
        return self._applied(x, rows, columns, drawn[9] if self.brightness else None)

    def _matrices(self, place: Tensor, side: int) -> Tensor:
        """What each of `side` pixels along an axis counts for each of `size` new ones, (b, size, side).

        place (4, b): where the part begins, how long it is, and the first and last edge of the pixels that may count.
        """
        start, extent, low, high = place.view(4, -1, 1, 1)
        scale = extent / self.size
        centres = start + scale * (torch.arange(self.size, device=place.device) + 0.5).view(1, -1, 1)
        pixels = torch.arange(side, device=place.device) + 0.5
        # Where the image shrinks the filter grows with it: antialias.
        distances = ((pixels - centres) / scale.clamp(min=1)).abs()
        counts = _cubic(distances) if self.bicubic else (1 - distances).clamp(min=0)
        counts = counts * ((pixels > low) & (pixels < high))
        return counts / counts.sum(dim=2, keepdim=True)

    def _applied(self, x: Tensor, rows: Tensor, columns: Tensor, factors: Tensor | None) -> Tensor:
        few = AT_ONCE if x.device.type == "cpu" else max(len(x), 1)
        pieces = zip(x.to(torch.float32).split(few), rows.split(few), columns.split(few), strict=True)
        values = torch.cat([down[:, None] @ some @ across[:, None].mT for some, down, across in pieces])
        if x.is_floating_point():
            return values if factors is None else values * factors.view(-1, 1, 1, 1)
        values = values.round_().clamp_(0, self.peak)
        if factors is not None:
            # Cut off and not rounded, as PIL and torchvision do it.
            values = values.mul_(factors.view(-1, 1, 1, 1)).clamp_(max=self.peak).floor_()
        return values.to(x.dtype)


def _side(x: Tensor) -> int:
    assert x.shape[-2] == x.shape[-1], f"images are square, got {tuple(x.shape)}"
    return x.shape[-1]


def _cubic(distances: Tensor) -> Tensor:
    """Keys 1981, equation 15, with the coefficient CUBIC."""
    near = ((CUBIC + 2) * distances - (CUBIC + 3)) * distances**2 + 1
    far = CUBIC * (((distances - 5) * distances + 8) * distances - 4)
    return torch.where(distances < 1, near, torch.where(distances < 2, far, 0.0))
