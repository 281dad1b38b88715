"""Multilayer perceptron, by default with two hidden layers of 400 as in Split-MNIST studies (van de Ven 2022).

Takes samples of any shape. The network of the demo.
"""

from itertools import pairwise
from math import prod

from torch import nn

from reprise.backbone.base import BACKBONES, Backbone, Options, Phases, Shape
from reprise.runtime.errors import UserError


def make(num_classes: int, sample_shape: Shape, options: Options) -> nn.Module:
    """Flatten, then Linear and ReLU per entry of options["hidden"], then Linear to the classes."""
    hidden = options["hidden"]
    if not isinstance(hidden, list) or not all(type(width) is int and width > 0 for width in hidden):
        raise UserError(f"backbone_config: hidden {hidden!r} is not a list of layer widths; e.g. 'hidden': [400, 400]")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise([prod(sample_shape), *hidden]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    layers.append(nn.Linear(hidden[-1] if hidden else prod(sample_shape), num_classes))
    return nn.Sequential(*layers)


def regime(epochs: int, options: Options) -> Phases:
    """Plain stochastic gradient descent, constant after warm-up."""
    return [{"epoch": 0, "optimizer": "SGD", "lr_factor": 1.0, "momentum": 0.0, "weight_decay": 0.0}]


BACKBONES.register("mlp")(Backbone(make=make, lr=0.05, regime=regime, options={"hidden": [400, 400]}))
