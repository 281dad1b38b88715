"""What a backbone is to the rest of the project, and the registry of backbones. One file per family fills it.

backbone/__init__.py holds the functions that main.py calls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from reprise.runtime.errors import UserError
from reprise.runtime.registry import Registry

Shape = tuple[int, ...]
Phases = list[dict[str, Any]]


@dataclass(frozen=True)
class Backbone:
    """A network family and how it is trained unless the user says otherwise.

    make: (num_classes, sample_shape, options) -> module that maps (b, *sample_shape) float32 to logits
    (b, num_classes). lr: learning rate of one rank, before scaling. regime: epochs of a task -> phases for
    train/regime.py. options: the keys of --backbone-config that it takes, with their defaults. loss: (outputs, y) ->
    per-sample losses (n,); None: cross-entropy.
    """

    make: Callable[[int, Shape, Mapping[str, Any]], nn.Module]
    lr: float
    regime: Callable[[int], Phases]
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[[Tensor, Tensor], Tensor] | None = None


BACKBONES: Registry[Backbone] = Registry("backbone")


def image_shape(name: str, sample_shape: Shape) -> tuple[int, int, int]:
    """Channels, height, width; UserError when samples are not images."""
    if len(sample_shape) != 3:
        raise UserError(
            f"backbone '{name}' needs images (channels, height, width), not samples of shape {sample_shape}"
        )
    channels, height, width = sample_shape
    return channels, height, width
