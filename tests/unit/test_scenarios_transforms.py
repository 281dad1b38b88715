"""Image transforms: equal to a slow reference per sample, independent per sample and per rank, none in evaluation."""

import pytest
import torch
from torch import Tensor

from reprise.runtime.seeds import torch_generator
from reprise.scenarios.transforms import ImageTransform

CIFAR = ImageTransform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), padding=4, flip=True)


def images(num: int, size: int = 8) -> Tensor:
    return torch.randint(256, (num, 3, size, size + 2), generator=torch_generator(0, "images"), dtype=torch.uint8)


def slow_train(transform: ImageTransform, x: Tensor, generator: torch.Generator) -> Tensor:
    """The same draws, one sample and one pixel column at a time."""
    num, channels, height, width = x.shape
    pad = transform.padding
    top, left, flip = (torch.randint(high, (num,), generator=generator) for high in (2 * pad + 1, 2 * pad + 1, 2))
    out = torch.zeros(x.shape)
    for i in range(num):
        canvas = torch.zeros(channels, height + 2 * pad, width + 2 * pad)
        canvas[:, pad : pad + height, pad : pad + width] = x[i]
        cut = canvas[:, top[i] : top[i] + height, left[i] : left[i] + width]
        cut = cut.flip(2) if flip[i] else cut
        for c in range(channels):
            out[i, c] = (cut[c] / 255 - transform.mean[c]) / transform.std[c]
    return out


def train(transform: ImageTransform, x: Tensor, generator: torch.Generator) -> Tensor:
    return transform.normalise(transform.augment(x, generator))


def test_training_equals_a_per_sample_reference() -> None:
    x = images(50)
    fast = train(CIFAR, x, torch_generator(1, "augment"))
    torch.testing.assert_close(fast, slow_train(CIFAR, x, torch_generator(1, "augment")))
    assert fast.dtype == torch.float32


def test_every_shift_and_both_directions_occur_equally_often() -> None:
    transform = ImageTransform(mean=(0.0,), std=(1.0,), padding=1, flip=True)
    picture = torch.arange(1, 13, dtype=torch.uint8).view(1, 1, 3, 4)
    num = 18_000
    out = train(transform, picture.expand(num, 1, 3, 4), torch_generator(2, "augment"))
    _, counts = out.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 18  # 3 x 3 places, 2 directions
    chi_square = float(((counts - num / 18) ** 2 / (num / 18)).sum())
    assert chi_square < 33.41  # 17 degrees of freedom, p = 0.01


def test_evaluation_never_augments() -> None:
    """rehearsal.md 6.1-11: the reference flips CIFAR's validation images."""
    x = images(20)
    expected = (x.float() / 255 - torch.tensor(CIFAR.mean).view(3, 1, 1)) / torch.tensor(CIFAR.std).view(3, 1, 1)
    for _ in range(3):
        torch.testing.assert_close(CIFAR.normalise(CIFAR.view(x)), expected)


def test_without_augmentation_training_is_evaluation_and_draws_nothing() -> None:
    transform = ImageTransform(mean=(0.5,), std=(0.5,), peak=16.0)
    x = torch.tensor([0, 8, 16], dtype=torch.uint8).view(1, 1, 1, 3)
    generator = torch_generator(3, "augment")
    before = generator.get_state()
    assert train(transform, x, generator).flatten().tolist() == [-1.0, 0.0, 1.0]
    assert torch.equal(generator.get_state(), before)


def test_ranks_augment_differently_and_each_repeats_itself() -> None:
    """rehearsal.md 6.1-12: correlated augmentation streams."""
    x = images(16)
    first, again, other = (train(CIFAR, x, torch_generator(7, "augment", rank)) for rank in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first != other).flatten(1).any(dim=1).sum() >= 14


@pytest.mark.parametrize("num", [0, 1])
def test_batches_of_any_size_keep_their_shape_and_their_input(num: int) -> None:
    x = images(num)
    kept = x.clone()
    assert CIFAR.augment(x, torch_generator(1, "augment")).shape == x.shape
    assert torch.equal(x, kept)


def test_float_samples_are_normalised_alike() -> None:
    x = images(4)
    assert torch.equal(CIFAR.normalise(x.float()), CIFAR.normalise(x))
