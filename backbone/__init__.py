"""Networks: `build` makes one by name, `default_lr`, `default_regime` and `loss` say how it is trained by default.

`BACKBONES` holds those with a recipe of their own; every other name is looked up in timm (vit.py, any_timm.py).
Importing a family's file registers it, hence the unused imports; timm, which takes seconds, is imported only where it
is needed. `fetch` alone downloads.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from reprise.backbone import (  # noqa: F401
    any_timm,
    candlenet,
    convnext,
    efficientnetv2,
    ghostnet,
    mlp,
    mnistnet,
    mobilenetv3,
    ptychonn,
    resnet,
    vit,
)
from reprise.backbone.base import BACKBONES, Backbone, ExpectedInput, Loss, Options, Phases, Shape, Weights
from reprise.backbone.fingerprint import fingerprint
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest

__all__ = [
    "BACKBONES",
    "Backbone",
    "ExpectedInput",
    "build",
    "check",
    "default_lr",
    "default_regime",
    "expected_input",
    "fetch",
    "fingerprint",
    "loss",
]


def check(name: str, config: Mapping[str, Any]) -> None:
    """Raise UserError for an unknown name, an unknown key of --backbone-config, or unknown pre-trained weights.

    Needs no data; see `build`. Weights that `fetch` can get need not be there yet.
    """
    _weights(name, config)


def fetch(name: str, config: Mapping[str, Any]) -> None:
    """Download the pre-trained weights that `config` asks for, unless they are on this machine or it asks for none."""
    weights = _weights(name, config)
    if weights is not None:
        weights.fetch()


def expected_input(name: str, config: Mapping[str, Any]) -> ExpectedInput | None:
    """Size, mean and std of the images that the pre-trained weights were made with; None: random weights, or unknown.

    It may have to read the weights' file.
    """
    weights = _weights(name, config)
    return None if weights is None else weights.expects()


def build(
    name: str, *, num_classes: int, sample_shape: Shape, config: Mapping[str, Any], target_shape: Shape | None = None
) -> nn.Module:
    """A new network on the CPU. Its weights are random (torch's global generator) where `config` asks for no others.

    It maps (b, *sample_shape) float32 to logits (b, num_classes) or, with a target_shape, to (b, *target_shape).
    config: keys of --backbone-config besides lr. UserError for an unknown name or key, unfit samples or targets, or
    pre-trained weights that are not there or do not fit.
    """
    entry, options = _entry(name), _options(name, config)
    made = entry.target_shape(sample_shape) if entry.target_shape else None
    if made != target_shape:
        if made is None:
            problem = f"gives classes, the data set has targets of shape {target_shape}; use --backbone ptychonn"
        elif target_shape is None:
            problem = f"reconstructs targets of shape {made} and the data set has classes; use another, like resnet18"
        else:
            problem = f"reconstructs targets of shape {made} and those of the data set have shape {target_shape}"
        raise UserError(f"backbone '{name}' {problem}")
    return entry.make(num_classes, sample_shape, options)


def default_lr(name: str) -> float:
    """Learning rate of one rank, before scaling by the number of ranks."""
    return _entry(name).lr


def default_regime(name: str, epochs: int, config: Mapping[str, Any]) -> Phases:
    """Phases for train/regime.py, with milestones relative to `epochs`, the epochs of a task."""
    return _entry(name).regime(epochs, _options(name, config))


def loss(name: str) -> Loss:
    """(outputs, y) -> per-sample losses (n,): the backbone's own, else cross-entropy."""
    return _entry(name).loss or nn.CrossEntropyLoss(reduction="none")


def _entry(name: str) -> Backbone:
    return BACKBONES.get(name) if name in BACKBONES.names() else vit.entry(name) or any_timm.entry(name)


def _options(name: str, config: Mapping[str, Any]) -> Options:
    own = _entry(name).options
    for key in config:
        if key not in own:
            known = ", ".join(["lr", *sorted(own)])
            raise UserError(f"backbone_config: '{name}' has no key '{key}'{nearest(key, own)}; it takes: {known}")
    return {**own, **config}


def _weights(name: str, config: Mapping[str, Any]) -> Weights | None:
    choose, options = _entry(name).weights, _options(name, config)
    return choose(options) if choose else None
