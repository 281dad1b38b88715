"""Networks: `build` makes one by name, `default_lr` and `default_regime` say how it is trained by default.

`BACKBONES` lists the names. Importing a family's file registers it, hence the unused imports; timm is imported when a
network of it is built.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from reprise.backbone import mlp, mnistnet, resnet  # noqa: F401
from reprise.backbone.base import BACKBONES, Backbone, Phases, Shape
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest

__all__ = ["BACKBONES", "Backbone", "build", "default_lr", "default_regime"]


def build(name: str, *, num_classes: int, sample_shape: Shape, config: Mapping[str, Any]) -> nn.Module:
    """A new network with random weights (torch's global generator), on the CPU: (b, *sample_shape) -> (b, num_classes).

    config: keys of --backbone-config besides lr. UserError for an unknown name or key, or unfit samples.
    """
    entry = BACKBONES.get(name)
    return entry.make(num_classes, sample_shape, _options(name, entry, config))


def default_lr(name: str) -> float:
    """Learning rate of one rank, before scaling by the number of ranks."""
    return BACKBONES.get(name).lr


def default_regime(name: str, epochs: int, config: Mapping[str, Any]) -> Phases:
    """Phases for train/regime.py, with milestones relative to `epochs`, the epochs of a task."""
    entry = BACKBONES.get(name)
    _options(name, entry, config)
    return entry.regime(epochs)


def _options(name: str, entry: Backbone, config: Mapping[str, Any]) -> dict[str, Any]:
    for key in config:
        if key not in entry.options:
            known = ", ".join(["lr", *sorted(entry.options)])
            raise UserError(
                f"backbone_config: '{name}' has no key '{key}'{nearest(key, entry.options)}; it takes: {known}"
            )
    return {**entry.options, **config}
