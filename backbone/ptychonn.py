"""PtychoNN (Cherukara et al. 2020): from a diffraction pattern to the amplitude and the phase of the object.

One encoder, two decoders; no batch normalisation. The only backbone here that reconstructs.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape, image_shape, number
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest

SHRINKS_BY = 16  # four poolings
SCHEDULES = ("exp_range", "triangular", "triangular2", "constant")


class PtychoNN(nn.Module):
    """Patterns (b, C, H, W) to (b, 2, H, W): amplitude, and phase between -pi and pi. H, W: multiples of 16.

    width: channels of the first block; they double from block to block.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        down = [channels, width, 2 * width, 4 * width, 8 * width]
        up = [8 * width, 8 * width, 4 * width, 2 * width, width]
        enlarge = partial(nn.Upsample, scale_factor=2, mode="bilinear")
        self.encoder = _blocks(down, partial(nn.MaxPool2d, 2))
        self.amplitude = nn.Sequential(_blocks(up, enlarge), nn.Conv2d(width, 1, kernel_size=3, padding=1))
        self.phase = nn.Sequential(_blocks(up, enlarge), nn.Conv2d(width, 1, kernel_size=3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x)
        return torch.cat([self.amplitude(code), math.pi * self.phase(code)], dim=1)


def _blocks(channels: list[int], resize: Callable[[], nn.Module]) -> nn.Sequential:
    """Per step from one number of channels to the next: two convolutions with ReLU, then `resize`."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(outputs, outputs, kernel_size=3, padding=1), nn.ReLU()]
        layers.append(resize())
    return nn.Sequential(*layers)


def target_shape(sample_shape: Shape) -> Shape:
    """Amplitude and phase, each of the pattern's size."""
    _, height, width = image_shape("ptychonn", sample_shape)
    return 2, height, width


def make(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    channels, height, width = image_shape("ptychonn", sample_shape)
    if height % SHRINKS_BY or width % SHRINKS_BY:
        raise UserError(
            f"backbone 'ptychonn' needs images whose height and width are multiples of {SHRINKS_BY} pixels, got "
            f"{height}x{width}; crop or pad them"
        )
    filters = options["width"]
    if type(filters) is not int or filters < 1:
        raise UserError(f"backbone_config: width {filters!r} is not a whole number from 1; the published one is 32")
    return PtychoNN(channels, filters)


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error of the amplitude plus that of the phase, per sample: two (n, 2, H, W) to (n,)."""
    return (outputs - y).abs().mean(dim=(2, 3)).sum(dim=1)


def regime(epochs: int, options: Options) -> Phases:
    """Adam, not scaled by the ranks; the rate swings between lr_min and lr, whatever the epochs (Smith 2017).

    The cycle goes by samples and runs on from task to task, because a task may be one short epoch.
    """
    name = str(options["lr_schedule"]).removesuffix("_cyclic_lr")  # the reference writes exp_range_cyclic_lr
    if name not in SCHEDULES:
        hint = nearest(name, SCHEDULES)
        raise UserError(f"backbone_config: unknown lr_schedule {name!r}{hint}; choose one of: {', '.join(SCHEDULES)}")
    phase = {"epoch": 0, "optimizer": "Adam", "lr_factor": 1.0, "scaling": "none", "schedule": name}
    if name != "constant":
        phase |= {"lr_min": number(options, "lr_min", zero=True), "step_cycle_size": number(options, "step_cycle_size")}
    if name == "exp_range":
        phase["gamma"] = number(options, "gamma")
    return [phase]


BACKBONES.register("ptychonn")(
    Backbone(
        make=make,
        lr=8.8e-4,
        regime=regime,
        options={"width": 32, "lr_schedule": "exp_range", "lr_min": 1e-4, "step_cycle_size": 2944, "gamma": 0.99985},
        target_shape=target_shape,
        loss=loss,
    )
)
