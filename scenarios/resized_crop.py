"""Views of large photographs: a random part of each, scaled to one size, in training; the middle in evaluation.

RandomResizedCrop (Szegedy et al. 2015, arXiv 1409.4842, section 6) with torchvision's numbers, for a whole batch at
once, on any device, uint8 in and uint8 out. transforms.py has the transforms that leave the scale as it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reprise.scenarios.transforms import Normalised, to_device

AREA = (0.08, 1.0)  # of the image
ASPECT = (3 / 4, 4 / 3)  # width by height
ATTEMPTS = 10  # at a part that fits into the image; the whole image where all fail
AT_ONCE = 8  # images on a CPU: room for the floats of a whole batch costs more than sampling them


@dataclass(frozen=True)
class CroppedImageTransform(Normalised):
    """Square raw images (b, C, H, H), H >= size, to views (b, C, size, size) of the same dtype.

    Training: a random part, scaled bilinearly, mirrored left to right with probability 1/2. Evaluation: the middle.
    """

    size: int = 224

    def view(self, x: Tensor) -> Tensor:
        """The middle of every image."""
        start = (x.shape[-1] - self.size) // 2
        return x[..., start : start + self.size, start : start + self.size].contiguous()

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A part of every image by its own draw from `generator`, which may live on the CPU."""
        side = x.shape[-1]
        assert x.shape[-2] == side, f"images are square, got {tuple(x.shape)}"
        boxes, mirrored = random_boxes(len(x), side, generator)
        top, left, height, width, mirrored = to_device(torch.stack([*boxes, mirrored]), x.device).unsqueeze(2)
        # Centres of the view's pixels in pixels of the image. Not beyond the part's own outermost centres: the view is
        # that of the part cut out first, and scaled then.
        steps = (torch.arange(self.size, device=x.device) + 0.5) / self.size
        rows = top + (steps * height - 0.5).clamp(min=0).minimum(height - 1)
        across = torch.where(mirrored.bool(), 1 - steps, steps)
        columns = left + (across * width - 0.5).clamp(min=0).minimum(width - 1)
        few = AT_ONCE if x.device.type == "cpu" else max(len(x), 1)
        pieces = zip(x.split(few), rows[:, :, None].split(few), columns[:, None, :].split(few), strict=True)
        return torch.cat([sample_at(*piece) for piece in pieces])


def sample_at(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of square images (b, C, H, H) at places in pixels, both broadcast to (b or 1, h, w); x's dtype.

    Places outside an image are black.
    """
    half = (x.shape[-1] - 1) / 2
    grid = torch.stack(torch.broadcast_tensors(columns / half - 1, rows / half - 1), dim=-1)
    grid = grid.expand(len(x), -1, -1, -1)
    values = torch.nn.functional.grid_sample(x.to(torch.float32), grid, mode="bilinear", align_corners=True)
    return values if x.is_floating_point() else values.round_().to(x.dtype)


def random_boxes(num: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Parts of `num` images of side x side pixels: rows top, left, height and width, float32 (4, num); mirrored (num,).

    The first of several attempts that fits is taken, in one go for all images.
    """
    draws = torch.rand((2, num, ATTEMPTS), generator=generator, device=generator.device)
    area = side * side * (AREA[0] + (AREA[1] - AREA[0]) * draws[0])
    low, high = (torch.tensor(ratio).log() for ratio in ASPECT)
    ratio = torch.exp(low + (high - low) * draws[1])
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width <= side) & (height <= side)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    none = ~fits.any(dim=1)
    height, width = (v.gather(1, first).squeeze(1).masked_fill(none, side) for v in (height, width))
    places = torch.rand((3, num), generator=generator, device=generator.device)
    top, left = (places[0] * (side - height + 1)).floor(), (places[1] * (side - width + 1)).floor()
    return torch.stack([top, left, height, width]), (places[2] < 0.5).to(torch.float32)
