"""ConvNeXt base (Liu et al. 2022) from timm, without pretrained weights."""

from torch import nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape, image_shape, warmed_cosine
from reprise.backbone.from_timm import create

SMALLEST = 32  # pixels: its strided convolutions have no padding, a smaller image has shrunk to nothing before the last


def make(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    channels, _, _ = image_shape("convnext", sample_shape, SMALLEST)
    return create("convnext_base", num_classes, channels, drop_rate=0.5)


def regime(epochs: int, options: Options) -> Phases:
    """AdamW, scaled without a cap: linear warm-up from 0, then half a cosine down to lr_min."""
    return warmed_cosine("AdamW", options, scaling="linear", weight_decay=0.05)


# Liu et al. 2022, table 5: 4e-3 for a batch of 4096; this is the share of a rank with 64.
BACKBONES.register("convnext")(Backbone(make=make, lr=6.25e-5, regime=regime, options={"lr_min": 1e-6}))
