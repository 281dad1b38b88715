"""Residual networks (He et al. 2016) from timm, without pretrained weights; small images get a stem that keeps them.

The usual stem shrinks an image by 4 in each direction before the first block: at 32x32 pixels that leaves little.
"""

from functools import partial

from torch import nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape, image_shape
from reprise.backbone.from_timm import create

LARGEST_SMALL_IMAGE = 64  # pixels


def make(name: str, num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    channels, height, width = image_shape(name, sample_shape)
    model = create(name, num_classes, channels, zero_init_last=False)
    if max(height, width) <= LARGEST_SMALL_IMAGE:
        # He et al. 2016, section 4.2: a 3x3 convolution with stride 1 and no pooling.
        model.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def regime(epochs: int, options: Options) -> Phases:
    """SGD with momentum; the rate falls to 0.5, 0.05 and 0.01 of its peak at 21/30, 26/30 and 28/30 of the epochs.

    The reference's milestones (epochs 21, 26, 28), relative to the epochs so that shorter trainings decay too.
    """
    return [
        {"epoch": 0, "optimizer": "SGD", "lr_factor": 1.0, "momentum": 0.9, "weight_decay": 5e-5},
        {"epoch": epochs * 21 / 30, "lr_factor": 0.5},
        {"epoch": epochs * 26 / 30, "lr_factor": 0.05},
        {"epoch": epochs * 28 / 30, "lr_factor": 0.01},
    ]


for _name in ("resnet18", "resnet50"):
    BACKBONES.register(_name)(Backbone(make=partial(make, _name), lr=0.0125, regime=regime))
