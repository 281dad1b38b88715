"""Every other network of timm, by timm's own name, with one recipe for all. Registers nothing; `entry` is the way in.

Nobody has looked at these networks one by one, so a sample goes through each before it is accepted.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape, image_shape, warmed_cosine
from reprise.backbone.from_timm import create
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest
from reprise.runtime.vision import ensure_torchvision

LR = 6.25e-5  # Touvron et al. 2021: 5e-4 for a batch of 512; this is the share of a rank with 64
OPTIONS = {"lr_min": 1e-6}


def entry(name: str) -> Backbone:
    """The backbone that timm calls `name`; UserError with the nearest of our names and of timm's when it has none."""
    ensure_torchvision()
    import timm

    known = timm.list_models()
    if name not in known:
        ours = BACKBONES.names()
        raise UserError(
            f"unknown backbone '{name}'{nearest(name, ours) or ';'} choose one of: {', '.join(ours)}; or one of timm's "
            f"{len(known)} networks{nearest(name, set(known).difference(ours))}"
        )
    return Backbone(make=partial(make, name), lr=LR, regime=regime, options=OPTIONS)


def make(name: str, num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    import timm

    channels, height, width = image_shape(name, sample_shape)
    # Transformers with learnt positions are built for one size, by default that of their pretrained weights.
    about = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": (height, width)} if about and about.fixed_input_size else {}
    try:
        model = create(name, num_classes, channels, **size)
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, channels, height, width))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"backbone '{name}' does not take images of {channels}x{height}x{width} ({' '.join(str(error).split())}); "
            "use another, like resnet18, which takes any size"
        ) from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None) if size else None
    if patch and (height % patch[0] or width % patch[1]):
        # timm would leave out the rows and columns that fill no patch, and say nothing.
        raise UserError(
            f"backbone '{name}' cuts images into patches of {patch[0]}x{patch[1]} pixels, which {height}x{width} is no "
            "multiple of; crop or pad the images, or use another, like resnet18"
        )
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        raise UserError(f"backbone '{name}' of timm gives no logits per class; use another, like resnet18")
    return model.train()


def regime(epochs: int, options: Options) -> Phases:
    """AdamW, linear warm-up from 0, then half a cosine down to lr_min: it suits transformers and trains the others."""
    return warmed_cosine("AdamW", options, weight_decay=0.05)
