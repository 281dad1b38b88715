"""EfficientNetV2 small (Tan & Le 2021) from timm, without pretrained weights."""

from torch import nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape, image_shape, warmed_cosine
from reprise.backbone.from_timm import create


def make(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    channels, _, _ = image_shape("efficientnetv2", sample_shape)
    return create("efficientnetv2_s", num_classes, channels, drop_rate=0.225)


def regime(epochs: int, options: Options) -> Phases:
    """RMSprop, not scaled by the ranks: linear warm-up from 0, then half a cosine down to lr_min."""
    return warmed_cosine("RMSprop", options, scaling="none", alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1.5e-5)


BACKBONES.register("efficientnetv2")(Backbone(make=make, lr=2.5e-5, regime=regime, options={"lr_min": 1e-6}))
