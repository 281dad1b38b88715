"""CandleNet: a one-dimensional convolutional network for gene expression, after the CANDLE benchmark NT3.

For the benchmark's 60,483 genes it has the reference's 773760-200-20 head; other lengths from 38 on get a head to fit.
"""

from torch import Tensor, nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape
from reprise.runtime.errors import UserError

SMALLEST = 38  # values: below this nothing is left after two convolutions and the pooling


class CandleNet(nn.Module):
    """Sequences (b, C, L) to logits (b, num_classes)."""

    def __init__(self, channels: int, length: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(channels, 128, kernel_size=20),
            nn.ReLU(),
            nn.Conv1d(128, 128, kernel_size=10),
            nn.ReLU(),
            nn.MaxPool1d(10),
        )
        cells = (length - 19 - 9) // 10
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * cells, 200),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(200, 20),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(20, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def make(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    if len(sample_shape) != 2:
        raise UserError(
            f"backbone 'candlenet' needs sequences (channels, length), not samples of shape {sample_shape}; "
            "--backbone mlp takes any"
        )
    channels, length = sample_shape
    if length < SMALLEST:
        raise UserError(
            f"backbone 'candlenet' needs sequences of at least {SMALLEST} values, got {length}; use --backbone mlp"
        )
    return CandleNet(channels, length, num_classes)


def regime(epochs: int, options: Options) -> Phases:
    """Plain SGD as in NT3, constant after warm-up. The reference has none for this network and fails without."""
    return [{"epoch": 0, "optimizer": "SGD", "lr_factor": 1.0, "momentum": 0.0, "weight_decay": 0.0}]


BACKBONES.register("candlenet")(Backbone(make=make, lr=0.001, regime=regime))
