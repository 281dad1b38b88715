"""Backbones: shapes, learning, default regimes, and one line for samples or keys that do not fit."""

import math
from collections.abc import Iterator

import pytest
import torch

from reprise import backbone
from reprise.runtime.errors import UserError
from reprise.train.regime import Regime

SHAPES = [
    ("mlp", (1, 8, 8)),
    ("mlp", (7,)),
    ("mlp", (3, 32, 32)),
    ("mnistnet", (1, 28, 28)),
    ("mnistnet", (3, 32, 32)),
    ("mnistnet", (1, 10, 11)),
    ("resnet18", (1, 8, 8)),
    ("resnet18", (3, 32, 32)),
    ("resnet18", (3, 65, 65)),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as these are slower with more, and very slow where other work keeps the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_forward_gives_logits_and_backward_reaches_every_parameter(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = backbone.build(name, num_classes=6, sample_shape=shape, config={})
    logits = network(torch.randn(3, *shape))
    assert logits.shape == (3, 6)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 5, 3])).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", backbone.BACKBONES.names())
def test_each_backbone_learns_a_batch_by_heart_under_its_own_regime(name: str) -> None:
    torch.manual_seed(0)
    network = backbone.build(name, num_classes=4, sample_shape=(1, 12, 12), config={})
    regime = Regime(
        backbone.default_regime(name, 3, {}), lr=backbone.default_lr(name), scale=1, warmup_epochs=0, epochs=3
    )
    optimizer = regime.build_optimizer(network.parameters())
    x, y = torch.randn(8, 1, 12, 12), torch.arange(8) % 4
    losses = []
    for step in range(40):
        regime.apply(optimizer, step / 20)  # the first two epochs
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])


def test_the_same_seed_gives_the_same_weights() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        network = backbone.build("mlp", num_classes=3, sample_shape=(4,), config={})
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_mlp_has_two_hidden_layers_of_400_or_those_asked_for() -> None:
    def widths(config: dict) -> list[tuple[int, ...]]:
        network = backbone.build("mlp", num_classes=10, sample_shape=(1, 8, 8), config=config)
        return [tuple(p.shape) for p in network.parameters() if p.ndim == 2]

    assert widths({}) == [(400, 64), (400, 400), (10, 400)]
    assert widths({"hidden": [5]}) == [(5, 64), (10, 5)]
    assert widths({"hidden": []}) == [(10, 64)]


def test_mnistnet_has_the_head_of_the_reference() -> None:
    """rehearsal.md 3: fully connected 1600-50-10 for 28x28 images."""
    network = backbone.build("mnistnet", num_classes=10, sample_shape=(1, 28, 28), config={})
    assert [tuple(p.shape) for p in network.parameters() if p.ndim == 2] == [(50, 1600), (10, 50)]


@pytest.mark.parametrize(("pixels", "kernel", "cells"), [(32, 3, 4), (64, 3, 8), (65, 7, 3)])
def test_resnet18_keeps_the_resolution_of_small_images(pixels: int, kernel: int, cells: int) -> None:
    network = backbone.build("resnet18", num_classes=2, sample_shape=(3, pixels, pixels), config={}).eval()
    assert network.conv1.kernel_size == (kernel, kernel)
    assert network.forward_features(torch.zeros(1, 3, pixels, pixels)).shape == (1, 512, cells, cells)


def test_resnet18_does_not_start_its_residual_branches_at_zero() -> None:
    network = backbone.build("resnet18", num_classes=2, sample_shape=(3, 32, 32), config={})
    assert float(network.layer1[0].bn2.weight.detach().min()) == 1.0
    expected = math.sqrt(2 / (64 * 9))  # Kaiming, fan out, for the new stem
    assert float(network.conv1.weight.detach().std()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", backbone.BACKBONES.names())
@pytest.mark.parametrize("epochs", [0, 1, 5, 30])
def test_every_backbone_has_a_regime_for_any_number_of_epochs(name: str, epochs: int) -> None:
    """rehearsal.md 3: mnistnet has none in the reference, its examples fail."""
    phases = backbone.default_regime(name, epochs, {})
    regime = Regime(phases, lr=backbone.default_lr(name), scale=8, warmup_epochs=0, epochs=epochs)
    assert regime.learning_rate(0.0) > 0
    assert all(phase["epoch"] <= epochs for phase in phases)


@pytest.mark.parametrize(
    ("name", "shape", "config", "words"),
    [
        ("mnistnet", (1, 8, 8), {}, ["mnistnet", "10x10", "8x8", "--backbone mlp"]),
        ("mnistnet", (64,), {}, ["mnistnet", "images", "(64,)"]),
        ("resnet18", (64,), {}, ["resnet18", "images", "(64,)"]),
        ("mlp", (64,), {"hiden": [1]}, ["'hiden'", "did you mean 'hidden'", "lr, hidden"]),
        ("mlp", (64,), {"hidden": 400}, ["hidden 400", "[400, 400]"]),
        ("mlp", (64,), {"hidden": [400, 0]}, ["hidden [400, 0]"]),
        ("mlp", (64,), {"hidden": [True]}, ["hidden [True]"]),
        ("resnet18", (3, 32, 32), {"lr_min": 0.1}, ["resnet18", "'lr_min'", "it takes: lr"]),
        ("resnet19", (3, 32, 32), {}, ["'resnet19'", "did you mean 'resnet18'"]),
        ("vgg", (3, 32, 32), {}, ["'vgg'", "mlp, mnistnet, resnet18"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    name: str, shape: tuple[int, ...], config: dict, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        backbone.build(name, num_classes=10, sample_shape=shape, config=config)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_refused_by_the_regime_too() -> None:
    with pytest.raises(UserError, match="no key 'x'"):
        backbone.default_regime("mlp", 3, {"x": 1})
