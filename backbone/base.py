"""What a backbone is to the rest of the project, and the registry of backbones. One file per family fills it.

backbone/__init__.py holds the functions that main.py calls.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from reprise.runtime.errors import UserError
from reprise.runtime.registry import Registry

Shape = tuple[int, ...]
Options = Mapping[str, Any]
Phases = list[dict[str, Any]]
Loss = Callable[[Tensor, Tensor], Tensor]


class ExpectedInput(NamedTuple):
    """What weights were trained on: images of size (height, width), less mean and over std per channel, from [0, 1]."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Weights(Protocol):
    """Pre-trained weights that a configuration asks for. format: of their file, see pretrained.read."""

    @property
    def format(self) -> str: ...

    def find(self) -> Path:
        """Their file; UserError where it is not on this machine. Never downloads."""

    def fetch(self) -> None:
        """Download the file unless it is on this machine; UserError where that fails."""

    def expects(self) -> ExpectedInput | None:
        """What the network should be shown; None where nobody knows."""


@dataclass(frozen=True)
class Backbone:
    """A network family and how it is trained unless the user says otherwise.

    make: (num_classes, sample_shape, options) -> module that maps (b, *sample_shape) float32 to logits
    (b, num_classes), or to (b, *target_shape(sample_shape)) where the network reconstructs. lr: learning rate of one
    rank, before scaling. regime: (epochs of a task, options) -> phases for train/regime.py. options: the keys of
    --backbone-config that it takes, with their defaults. target_shape: of what it makes of one sample; None: logits.
    loss: (outputs, y) -> per-sample losses (n,); None is cross-entropy. weights: options -> the pre-trained weights
    that `make` loads, None for random ones; UserError where the options ask for what cannot be.
    """

    make: Callable[[int, Shape, Options], nn.Module]
    lr: float
    regime: Callable[[int, Options], Phases]
    options: Options = field(default_factory=dict)
    target_shape: Callable[[Shape], Shape] | None = None
    loss: Loss | None = None
    weights: Callable[[Options], Weights | None] | None = None


BACKBONES: Registry[Backbone] = Registry("backbone")


def image_shape(name: str, sample_shape: Shape, smallest: int = 1) -> tuple[int, int, int]:
    """Channels, height, width; UserError when samples are no images, or smaller than `smallest` pixels on a side."""
    if len(sample_shape) != 3:
        raise UserError(
            f"backbone '{name}' needs images (channels, height, width), not samples of shape {sample_shape}; "
            "--backbone mlp takes any"
        )
    channels, height, width = sample_shape
    if min(height, width) < smallest:
        raise UserError(
            f"backbone '{name}' needs images of at least {smallest}x{smallest} pixels, got {height}x{width}; "
            "use --backbone mlp or resnet18, which take any size"
        )
    return channels, height, width


def warmed_cosine(optimizer: str, options: Options, **settings: Any) -> Phases:
    """Linear warm-up from 0, then half a cosine down to the option lr_min; settings: further keys of the phase."""
    lr_min = number(options, "lr_min", zero=True)
    phase = {"epoch": 0, "optimizer": optimizer, "lr_factor": 1.0, "warmup_from": "zero", "schedule": "cosine"}
    return [{**phase, "lr_min": lr_min, **settings}]


def number(options: Options, key: str, *, zero: bool = False) -> float:
    """A number out of --backbone-config; UserError unless it is above 0, or from 0 where `zero` may be."""
    value = options[key]
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if not right or (value == 0 and not zero):
        raise UserError(f"backbone_config: {key} {value!r} is not a number {'from' if zero else 'above'} 0; correct it")
    return float(value)
