"""Backbones: shapes, learning, default regimes, and one line for samples or keys that do not fit."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from reprise import backbone
from reprise.runtime.errors import UserError
from reprise.train.options import Options
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
    ("resnet50", (3, 16, 16)),
    ("mobilenetv3", (1, 28, 28)),
    ("efficientnetv2", (3, 32, 32)),
    ("ghostnet", (3, 32, 32)),
    ("candlenet", (1, 60)),
    ("candlenet", (3, 38)),
    ("test_vit", (1, 32, 32)),  # a network of timm that we have no recipe for
    ("test_convnext", (3, 32, 32)),
]

# Name -> parameters with three channels and 1000 classes, as timm's table of results states them in millions.
FROM_TIMM = {
    "resnet18": 11.69,
    "resnet50": 25.56,
    "mobilenetv3": 1.59,
    "efficientnetv2": 21.46,
    "convnext": 88.59,
    "ghostnet": 2.59,
    "vit_tiny_patch16_224": 5.72,
}


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


@pytest.mark.parametrize(
    ("name", "shape", "factor"),
    [
        ("mlp", (1, 12, 12), 1),
        ("mnistnet", (1, 12, 12), 1),
        ("resnet18", (1, 12, 12), 1),
        ("mobilenetv3", (1, 32, 32), 1),
        ("ghostnet", (1, 32, 32), 1),
        ("candlenet", (1, 40), 30),  # its rate is for hundreds of epochs
        ("test_vit", (1, 32, 32), 10),  # likewise
    ],
)
def test_learns_a_batch_by_heart_under_its_own_regime(name: str, shape: tuple[int, ...], factor: float) -> None:
    """factor: times the default learning rate, so that 40 steps show it."""
    torch.manual_seed(0)
    network = backbone.build(name, num_classes=4, sample_shape=shape, config={})
    x, y = torch.randn(8, *shape), torch.arange(8) % 4
    losses = losses_of(name, network, x, y, factor * backbone.default_lr(name))
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])


def losses_of(name: str, network: nn.Module, x: Tensor, y: Tensor, lr: float) -> list[float]:
    """Of 40 steps under the default regime and the backbone's own loss: the first two of three epochs."""
    regime = Regime(
        backbone.default_regime(name, 3, {}),
        lr=lr,
        batches_per_step=1,
        samples_per_step=len(x),
        warmup_epochs=0,
        epochs=3,
    )
    optimizer, loss_of, losses = regime.build_optimizer(network.parameters()), backbone.loss(name), []
    for step in range(40):
        regime.apply(optimizer, step / 20, step)
        optimizer.zero_grad()
        loss = loss_of(network(x), y).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", FROM_TIMM)
@pytest.mark.parametrize("num_classes", [1, 2, 1000])
def test_a_network_of_timm_has_its_parameters_and_any_number_of_classes(name: str, num_classes: int) -> None:
    """On a device without memory or arithmetic: whole networks at their full size, for nothing."""
    with torch.device("meta"):
        network = backbone.build(name, num_classes=num_classes, sample_shape=(3, 224, 224), config={})
        logits = network(torch.zeros(2, 3, 224, 224))
    assert logits.shape == (2, num_classes)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    if num_classes == 1000:
        assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(
            FROM_TIMM[name], abs=0.005
        )


def test_drop_rates_are_those_of_the_reference() -> None:
    """rehearsal.md 3."""
    with torch.device("meta"):
        rates = {
            name: backbone.build(name, num_classes=2, sample_shape=(3, 32, 32), config={}).drop_rate
            for name in set(FROM_TIMM) & set(backbone.BACKBONES.names())
        }
    dropping = {name: rate for name, rate in rates.items() if rate}
    assert dropping == {"ghostnet": 0.225, "efficientnetv2": 0.225, "convnext": 0.5}


@pytest.mark.parametrize("name", ["mnistnet", "resnet18", "mobilenetv3", "ghostnet", "ptychonn", "test_vit"])
def test_channels_last_changes_the_layout_and_not_the_outputs(name: str) -> None:
    torch.manual_seed(0)
    targets = (2, 32, 32) if name == "ptychonn" else None
    network = backbone.build(name, num_classes=5, sample_shape=(3, 32, 32), config={}, target_shape=targets).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        network.to(memory_format=torch.channels_last)
        outputs = network(x.to(memory_format=torch.channels_last))
    assert outputs.shape == expected.shape
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("name", [*backbone.BACKBONES.names(), "vit_tiny_patch16_224"])
@pytest.mark.parametrize("epochs", [0, 1, 3, 30])
def test_every_default_regime_carries_an_optimizer_through_any_number_of_epochs(name: str, epochs: int) -> None:
    """rehearsal.md 3: three of the reference's networks have no regime that runs."""
    phases = backbone.default_regime(name, epochs, {})
    assert all(phase["epoch"] <= epochs for phase in phases)
    lr = backbone.default_lr(name)
    warmup = min(5, epochs // 5)  # the default of --warmup-epochs
    regime = Regime(phases, lr=lr, batches_per_step=8, samples_per_step=512, warmup_epochs=warmup, epochs=epochs)
    parameter = nn.Parameter(torch.ones(4))
    optimizer = regime.build_optimizer([parameter])
    rates = []
    for step in range(4 * epochs):
        rates.append(regime.apply(optimizer, step / 4, step))
        parameter.grad = torch.ones(4)
        optimizer.step()
    assert all(0 < rate <= 8 * lr * 1.0001 for rate in rates[1:])
    assert torch.isfinite(parameter).all()
    assert epochs == 0 or (parameter < 1).all()


def test_the_help_names_every_backbone() -> None:
    assert f"network: {', '.join(backbone.BACKBONES.names())}, or any of timm" in str(
        Options.model_fields["backbone"].description
    )


@pytest.mark.parametrize(
    ("name", "shape", "config", "words"),
    [
        ("mnistnet", (1, 8, 8), {}, ["mnistnet", "10x10", "8x8", "--backbone mlp"]),
        ("mnistnet", (64,), {}, ["mnistnet", "images", "(64,)"]),
        ("convnext", (3, 28, 28), {}, ["convnext", "32x32", "28x28", "resnet18"]),
        ("convnext", (3, 64, 64), {"lr-min": 0.1}, ["'lr-min'", "did you mean 'lr_min'"]),
        ("candlenet", (3, 32, 32), {}, ["candlenet", "sequences", "(3, 32, 32)", "--backbone mlp"]),
        ("candlenet", (1, 37), {}, ["candlenet", "38", "37", "--backbone mlp"]),
        ("test_vit", (64,), {}, ["test_vit", "images", "(64,)", "--backbone mlp"]),
        ("test_vit", (3, 40, 40), {}, ["test_vit", "3x40x40", "divisible", "like resnet18"]),
        ("vit_tiny_patch16_224", (3, 40, 24), {}, ["vit_tiny", "patches of 16x16", "40x24", "crop or pad"]),
        ("test_convnext", (3, 8, 8), {}, ["test_convnext", "3x8x8", "Kernel size", "like resnet18"]),
        ("vit_tiny_patch16_225", (3, 32, 32), {}, ["'vit_tiny_patch16_225'", "did you mean 'vit_tiny_patch16_224'"]),
        ("resnet18", (64,), {}, ["resnet18", "images", "(64,)"]),
        ("mlp", (64,), {"hiden": [1]}, ["'hiden'", "did you mean 'hidden'", "lr, hidden"]),
        ("mlp", (64,), {"hidden": 400}, ["hidden 400", "[400, 400]"]),
        ("mlp", (64,), {"hidden": [400, 0]}, ["hidden [400, 0]"]),
        ("mlp", (64,), {"hidden": [True]}, ["hidden [True]"]),
        ("resnet18", (3, 32, 32), {"lr_min": 0.1}, ["resnet18", "'lr_min'", "it takes: lr"]),
        ("resnet19", (3, 32, 32), {}, ["'resnet19'", "did you mean 'resnet18'", "timm's", "did you mean 'resnet"]),
        ("qqqq", (3, 32, 32), {}, ["'qqqq'", "mlp, mnistnet, mobilenetv3", "timm's"]),
        ("resnet10t", (3, 32, 32), {"depth": 3}, ["'resnet10t'", "no key 'depth'", "lr, lr_min"]),
        ("resnet18.a1_in1k", (3, 32, 32), {}, ["'resnet18.a1_in1k'", "did you mean 'resnet18'"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    name: str, shape: tuple[int, ...], config: dict, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        backbone.build(name, num_classes=10, sample_shape=shape, config=config)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("efficientnetv2", {"lr_min": -1}, ["lr_min -1", "from 0"]),
        ("convnext", {"lr_min": "low"}, ["lr_min 'low'", "from 0"]),
        ("test_vit", {"lr_min": True}, ["lr_min True"]),
        ("ptychonn", {"lr_min": float("nan")}, ["lr_min nan"]),
        ("ptychonn", {"step_cycle_size": 0}, ["step_cycle_size 0", "above 0"]),
        ("ptychonn", {"gamma": 0}, ["gamma 0", "above 0"]),
        ("ptychonn", {"lr_schedule": "triangle"}, ["'triangle'", "did you mean 'triangular'"]),
        ("ptychonn", {"lr_schedule": 3}, ["lr_schedule '3'", "exp_range, triangular"]),
    ],
)
def test_settings_of_a_schedule_are_checked_under_the_name_they_were_given(
    name: str, config: dict, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        backbone.default_regime(name, 3, config)
    assert all(word in str(caught.value) for word in ["backbone_config", *words]), str(caught.value)


@pytest.mark.parametrize("config", [{}, {"x": 1}])
def test_a_name_and_its_keys_can_be_checked_without_data(config: dict) -> None:
    for name in [*backbone.BACKBONES.names(), "resnet10t"]:
        if not config:
            backbone.check(name, config)
            continue
        with pytest.raises(UserError, match="no key 'x'"):
            backbone.check(name, config)
    with pytest.raises(UserError, match="unknown backbone 'mpl', did you mean 'mlp'"):
        backbone.check("mpl", config)


def test_an_unknown_key_is_refused_by_the_regime_too() -> None:
    with pytest.raises(UserError, match="no key 'x'"):
        backbone.default_regime("mlp", 3, {"x": 1})
