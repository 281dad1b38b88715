"""Image transforms: equal to a slow reference per sample, independent per sample and per rank, none in evaluation."""

import pytest
import torch
from torch import Tensor

from reprise.runtime.seeds import torch_generator
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios import resized_crop
from reprise.scenarios.resized_crop import CroppedImageTransform, random_boxes
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
    floats = x.float()
    assert torch.equal(CIFAR.normalise(floats), CIFAR.normalise(x))
    assert torch.equal(floats, x.float())  # and stay what they are


# ---- random parts of large images

CROPPED = CroppedImageTransform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), size=24)


def squares(num: int, side: int = 40) -> Tensor:
    coarse = torch.rand((num, 3, 6, 6), generator=torch_generator(0, "squares"))
    return (255 * torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)).byte()


def test_random_parts_equal_those_that_are_cut_out_and_scaled_one_by_one() -> None:
    x = squares(60)
    boxes, mirrored = random_boxes(len(x), 40, torch_generator(4, "augment"))
    fast = CROPPED.augment(x, torch_generator(4, "augment"))
    assert (fast.shape, fast.dtype) == ((60, 3, 24, 24), torch.uint8)
    assert 10 < int(mirrored.sum()) < 50
    for i in range(len(x)):
        top, left, height, width = map(int, boxes[:, i])
        part = x[i : i + 1, :, top : top + height, left : left + width].float()
        assert part.shape == (1, 3, height, width)
        scaled = torch.nn.functional.interpolate(part, size=(24, 24), mode="bilinear", align_corners=False)
        expected = scaled.flip(3) if mirrored[i] else scaled
        assert (fast[i] - expected[0]).abs().max() <= 0.51  # half a grey level: the rounding to uint8


def test_random_parts_have_the_areas_and_shapes_of_torchvision() -> None:
    ensure_torchvision()
    from torchvision.transforms import RandomResizedCrop

    num, side = 4000, 256
    boxes, mirrored = random_boxes(num, side, torch_generator(5, "augment"))
    top, left, height, width = boxes
    assert bool(((height >= 1) & (width >= 1) & (top >= 0) & (left >= 0)).all())
    assert bool(((top + height <= side) & (left + width <= side)).all())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image = torch.zeros(1, side, side)
        theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(num)])
    ours = torch.stack([top, left, height, width], dim=1)
    theirs = theirs.float()
    for a, b in (
        (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        (ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
        (ours[:, 0], theirs[:, 0]),
        (ours[:, 1], theirs[:, 1]),
    ):
        points = torch.cat([a, b]).sort().values
        shares = [torch.searchsorted(v.sort().values, points, right=True) / num for v in (a, b)]
        assert float((shares[0] - shares[1]).abs().max()) < 1.63 * (2 / num) ** 0.5  # Kolmogorov-Smirnov, p = 0.01
    assert 0.47 < float(mirrored.mean()) < 0.53


def test_where_no_attempt_fits_the_part_is_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resized_crop, "ASPECT", (100.0, 200.0))
    boxes, _ = random_boxes(20, 40, torch_generator(6, "augment"))
    assert boxes.T.tolist() == [[0, 0, 40, 40]] * 20


def test_evaluation_takes_the_middle_and_draws_nothing() -> None:
    x = squares(5)
    assert torch.equal(CROPPED.view(x), x[:, :, 8:32, 8:32])
    assert CROPPED.augment(x[:0], torch_generator(7, "augment")).shape == (0, 3, 24, 24)
    first, again, other = (CROPPED.augment(x, torch_generator(7, "augment", rank)) for rank in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
