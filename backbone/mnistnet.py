"""MnistNet: the small convolutional network of the reference, two 3x3 convolutions and two linear layers.

For 28x28 images it has the reference's 1600-50-10 head; other sizes from 10x10 on work, with a head to fit.
"""

from torch import Tensor, nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape, image_shape

SMALLEST = 10  # pixels: below this nothing is left after two convolutions and two poolings


class MnistNet(nn.Module):
    """Images (b, C, H, W) to logits (b, num_classes)."""

    def __init__(self, channels: int, height: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        cells = _after_features(height) * _after_features(width)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * cells, 50),
            nn.ReLU(),
            nn.Linear(50, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def _after_features(pixels: int) -> int:
    return ((pixels - 2) // 2 - 2) // 2


def make(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    channels, height, width = image_shape("mnistnet", sample_shape, SMALLEST)
    return MnistNet(channels, height, width, num_classes)


def regime(epochs: int, options: Options) -> Phases:
    """SGD with momentum 0.5, constant after warm-up. The reference has none for this network and fails without."""
    return [{"epoch": 0, "optimizer": "SGD", "lr_factor": 1.0, "momentum": 0.5, "weight_decay": 0.0}]


BACKBONES.register("mnistnet")(Backbone(make=make, lr=0.01, regime=regime))
