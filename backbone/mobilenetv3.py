"""MobileNetV3 small (Howard et al. 2019) at half width, from timm, without pretrained weights."""

from torch import nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape, image_shape
from reprise.backbone.from_timm import create

DECAY_EPOCHS = (8, 12, 16, 22, 26)  # of 30


def make(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    channels, _, _ = image_shape("mobilenetv3", sample_shape)
    return create("mobilenetv3_small_050", num_classes, channels)


def regime(epochs: int, options: Options) -> Phases:
    """RMSprop, scaled without a cap; the rate falls by a sixth of its peak at each milestone.

    The reference subtracts 6.25e-5 each time, a sixth of the rate it was written for; as a share it fits any rate.
    """
    first = {
        "epoch": 0,
        "optimizer": "RMSprop",
        "lr_factor": 1.0,
        "scaling": "linear",
        "alpha": 0.9,
        "momentum": 0.9,
        "eps": 1e-3,
        "weight_decay": 1e-5,
    }
    decays = [
        {"epoch": epochs * epoch / 30, "lr_factor": 1 - count / 6} for count, epoch in enumerate(DECAY_EPOCHS, start=1)
    ]
    return [first, *decays]


BACKBONES.register("mobilenetv3")(Backbone(make=make, lr=3.75e-4, regime=regime))
