"""PtychoNN: its layers against a forward pass written out here, its loss against numbers, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from reprise import backbone
from reprise.runtime.errors import UserError
from reprise.train.regime import Regime


def build(shape: tuple[int, int, int] = (1, 32, 32), **config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return backbone.build(
        "ptychonn", num_classes=1, sample_shape=shape, config={"width": 4, **config}, target_shape=(2, *shape[1:])
    )


def forward_by_hand(weights: list[Tensor], x: Tensor) -> Tensor:
    """rehearsal.md 3: four blocks of two convolutions down to 1/16, and for each head four back up."""
    left = iter(weights)

    def convolved(x: Tensor) -> Tensor:
        return F.conv2d(x, next(left), next(left), padding=1)

    for _ in range(4):
        x = F.max_pool2d(F.relu(convolved(F.relu(convolved(x)))), 2)
    heads = []
    for _ in range(2):
        head = x
        for _ in range(4):
            head = F.relu(convolved(F.relu(convolved(head))))
            head = F.interpolate(head, scale_factor=2, mode="bilinear", align_corners=False)
        heads.append(convolved(head))
    assert next(left, None) is None
    return torch.cat([heads[0], math.pi * torch.tanh(heads[1])], dim=1)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 32, 32), (2, 48, 16)])
def test_forward_is_encoder_and_two_decoders(shape: tuple[int, int, int]) -> None:
    network, x = build(shape), torch.randn(3, *shape)
    outputs = network(x)
    assert outputs.shape == (3, 2, *shape[1:])
    torch.testing.assert_close(outputs, forward_by_hand(list(network.parameters()), x))
    outputs.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_by_default_it_has_the_published_widths() -> None:
    """rehearsal.md 3: 32, 64, 128, 256 channels on the way down; weights and biases of 3x3 convolutions."""
    down = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    up = [(256, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (64, 32), (32, 32), (32, 1)]
    with torch.device("meta"):
        network = build(width=32)
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(9 * i * o + o for i, o in down + 2 * up)


def test_phases_lie_between_minus_pi_and_pi_and_amplitudes_anywhere() -> None:
    network = build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
        amplitude, phase = network(10 * torch.randn(2, 1, 32, 32)).unbind(dim=1)
    assert float(phase.abs().max()) == pytest.approx(math.pi)
    assert float(amplitude.abs().max()) > 2 * math.pi


def test_loss_is_the_sum_of_both_mean_absolute_errors_per_sample() -> None:
    outputs, y = torch.zeros(2, 2, 2, 2), torch.zeros(2, 2, 2, 2)
    y[0, 0] = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # amplitude off by 1 on average
    y[0, 1] = 0.5
    outputs[1, 1, 0, 0] = -2.0
    assert backbone.loss("ptychonn")(outputs, y).tolist() == [1.5, 0.5]


def test_other_backbones_take_cross_entropy_per_sample() -> None:
    """log(1 + 3) where the logits favour the other class by log 3."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    for name in ("resnet18", "test_vit"):
        losses = backbone.loss(name)(logits, torch.tensor([0, 1])).tolist()
        assert losses == pytest.approx([math.log(4), math.log(4 / 3)])


def test_learns_a_batch_by_heart_under_its_own_regime() -> None:
    network = build((1, 16, 16))
    regime = Regime(
        backbone.default_regime("ptychonn", 1, {"step_cycle_size": 80}),
        lr=backbone.default_lr("ptychonn"),
        batches_per_step=1,
        samples_per_step=4,
        warmup_epochs=0,
        epochs=1,
    )
    optimizer = regime.build_optimizer(network.parameters())
    x = torch.rand(4, 1, 16, 16)
    y = torch.cat([x, 1 - x], dim=1)
    losses = []
    for step in range(60):
        regime.apply(optimizer, step / 60, step)
        optimizer.zero_grad()
        loss = backbone.loss("ptychonn")(network(x), y).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("name", "shape", "target_shape", "config", "words"),
    [
        ("ptychonn", (1, 24, 32), (2, 24, 32), {}, ["multiples of 16", "24x32", "crop or pad"]),
        ("ptychonn", (64,), (2, 64, 64), {}, ["ptychonn", "images", "(64,)"]),
        ("ptychonn", (1, 32, 32), None, {}, ["(2, 32, 32)", "has classes", "resnet18"]),
        ("ptychonn", (1, 32, 32), (2, 64, 64), {}, ["(2, 32, 32)", "(2, 64, 64)"]),
        ("resnet18", (1, 32, 32), (2, 32, 32), {}, ["resnet18", "gives classes", "(2, 32, 32)", "ptychonn"]),
        ("ptychonn", (1, 32, 32), (2, 32, 32), {"width": 0}, ["width 0", "from 1"]),
        ("ptychonn", (1, 32, 32), (2, 32, 32), {"width": True}, ["width True"]),
        ("ptychonn", (1, 32, 32), (2, 32, 32), {"widht": 4}, ["'widht'", "did you mean 'width'"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    name: str, shape: tuple[int, ...], target_shape: tuple[int, ...] | None, config: dict, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        backbone.build(name, num_classes=1, sample_shape=shape, config=config, target_shape=target_shape)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
