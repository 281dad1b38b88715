"""Vision transformers (Dosovitskiy et al. 2021): timm's, with pre-trained weights where asked, and `vit` of any size.

timm's are made by any_timm.py and trained by its recipe. A name like vit_base_patch16_224.orig_in21k names the weights
too; without a tag, --backbone-config asks for them with pretrained.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from reprise.backbone import any_timm, pretrained, timm_weights
from reprise.backbone.base import BACKBONES, Backbone, Options, Shape, Weights, image_shape
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest
from reprise.runtime.vision import ensure_torchvision

MODULES = ("vision_transformer", "deit")  # of timm: their networks are all of its class VisionTransformer
ASKING = {"pretrained": None, "checkpoint_format": pretrained.AUTO, "resize_positions": False}
SIZES = {"patch_size": 4, "depth": 6, "embed_dim": 192, "num_heads": 3}


def entry(name: str) -> Backbone | None:
    """The vision transformer that timm calls `name`, with or without a tag; None where timm has none of that name."""
    ensure_torchvision()
    from timm.models import is_model_in_modules

    architecture, dot, tag = name.partition(".")
    if not is_model_in_modules(architecture, MODULES):
        return None
    plain = any_timm.entry(architecture)
    if dot:
        tagged = timm_weights.TimmWeights(architecture, tag)
        return _with_weights(plain, {"resize_positions": False}, lambda options: tagged)
    return _with_weights(plain, ASKING, partial(_asked_for, architecture))


def make(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    """A transformer of the sizes in `options`, for images of sample_shape, with random weights."""
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    channels, height, width = image_shape("vit", sample_shape)
    for key in SIZES:
        if type(options[key]) is not int or options[key] < 1:
            raise UserError(f"backbone_config: {key} {options[key]!r} is not a whole number from 1; correct it")
    patch, dim, heads, size = (options[key] for key in ("patch_size", "embed_dim", "num_heads", "img_size"))
    if dim % heads:
        raise UserError(f"backbone_config: embed_dim {dim} is no multiple of num_heads {heads}; choose one that is")
    if size is not None and (height, width) != (size, size):
        raise UserError(f"backbone_config: img_size {size!r}, and the images are {height}x{width}; leave it out")
    if height % patch or width % patch:
        raise UserError(
            f"backbone_config: patch_size {patch} does not divide images of {height}x{width}; choose another"
        )
    model: nn.Module = VisionTransformer(
        img_size=(height, width),
        patch_size=patch,
        in_chans=channels,
        num_classes=num_classes,
        embed_dim=dim,
        depth=options["depth"],
        num_heads=heads,
    )
    return model


def _with_weights(plain: Backbone, keys: dict[str, Any], weights: Callable[[Options], Weights | None]) -> Backbone:
    """`plain` with further keys of --backbone-config, among them those that say which weights are loaded."""

    def filled(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
        network = plain.make(num_classes, sample_shape, options)
        asked = weights(options)
        if asked is not None:
            pretrained.load(network, asked.find(), asked.format, resize_positions=options["resize_positions"])
        return network

    return replace(plain, make=filled, options={**plain.options, **keys}, weights=weights)


def _asked_for(architecture: str | None, options: Options) -> Weights | None:
    """The weights that --backbone-config asks for; architecture: None where timm does not know it."""
    asked, format, resizes = options["pretrained"], options["checkpoint_format"], options["resize_positions"]
    pretrained.check_format(format)
    if not isinstance(resizes, bool):
        raise UserError(f"backbone_config: resize_positions {resizes!r} is neither true nor false; correct it")
    if asked is None:
        if resizes or format != pretrained.AUTO:
            key = "resize_positions" if resizes else "checkpoint_format"
            raise UserError(f"backbone_config: {key} has no meaning without pretrained; leave it out")
        return None
    tags = timm_weights.tags(architecture) if architecture else []
    if asked in tags:
        if format != pretrained.AUTO:
            raise UserError(f"backbone_config: checkpoint_format has no meaning for timm's '{asked}'; leave it out")
        return timm_weights.TimmWeights(str(architecture), asked)
    path = Path(str(asked)).expanduser()
    if not path.is_file():
        nor = f", nor a tag of timm's{nearest(str(asked), tags) or ';'} there are: {', '.join(tags)}" if tags else ""
        raise UserError(f"backbone_config: pretrained '{asked}' is no file{nor or '; correct the path'}")
    return pretrained.LocalFile(path, format, timm_weights.usual_input(architecture) if architecture else None)


BACKBONES.register("vit")(
    _with_weights(
        Backbone(
            make=make, lr=any_timm.LR, regime=any_timm.regime, options={**any_timm.OPTIONS, "img_size": None, **SIZES}
        ),
        ASKING,
        partial(_asked_for, None),
    )
)
