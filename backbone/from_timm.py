"""Makes a network of timm, always with random weights. The families that come from timm call it."""

from typing import Any

from torch import nn

from reprise.runtime.vision import ensure_torchvision


def create(timm_name: str, num_classes: int, channels: int, **settings: Any) -> nn.Module:
    """Network (b, channels, height, width) -> logits (b, num_classes); nothing is downloaded."""
    ensure_torchvision()
    import timm

    model: nn.Module = timm.create_model(
        timm_name, pretrained=False, num_classes=num_classes, in_chans=channels, **settings
    )
    return model
