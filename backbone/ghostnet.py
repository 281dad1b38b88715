"""GhostNet (Han et al. 2020) at half width, from timm, without pretrained weights."""

from torch import nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape, image_shape
from reprise.backbone.from_timm import create


def make(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    channels, _, _ = image_shape("ghostnet", sample_shape)
    return create("ghostnet_050", num_classes, channels, drop_rate=0.225)


def regime(epochs: int, options: Options) -> Phases:
    """SGD with momentum; 0.5, 0.05 and 0.01 of the peak from 15/30, 21/30 and 28/30 of the epochs on."""
    return [
        {"epoch": 0, "optimizer": "SGD", "lr_factor": 1.0, "momentum": 0.9, "weight_decay": 1.5e-5},
        {"epoch": epochs * 15 / 30, "lr_factor": 0.5},
        {"epoch": epochs * 21 / 30, "lr_factor": 0.05},
        {"epoch": epochs * 28 / 30, "lr_factor": 0.01},
    ]


BACKBONES.register("ghostnet")(Backbone(make=make, lr=0.01, regime=regime))
