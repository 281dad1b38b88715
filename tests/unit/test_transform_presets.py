"""Network inputs by published recipes: equal to torchvision's own operations image by image, drawn per sample."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from dataset_files import photograph, save_image, write_cifar, write_imagenet, write_mnist, write_tinyimagenet
from PIL import Image
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.runtime.seeds import torch_generator
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios import Scenario, build
from reprise.scenarios.image_files import ImageFiles
from reprise.scenarios.resampled import ResampledTransform
from reprise.scenarios.resized_crop import random_boxes
from reprise.scenarios.transform_presets import NORMALISATIONS, OWN, PRESETS
from reprise.train.options import TransformConfig, parse

ensure_torchvision()
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms.v2 import functional  # noqa: E402

FILTERS = {False: InterpolationMode.BILINEAR, True: InterpolationMode.BICUBIC}
SIDES = [20, 56, 64, 75]  # for views of 56: much smaller, the same, as evaluation resizes to, as cut_from


def squares(num: int, side: int) -> Tensor:
    coarse = torch.rand((num, 3, 6, 6), generator=torch_generator(0, "squares"))
    return (255 * torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)).byte()


def transform(**options: object) -> ResampledTransform:
    return ResampledTransform((0.0,), (1.0,), **{"size": 56, "resized": 64, **options})  # type: ignore[arg-type]


def augmented(of: ResampledTransform, x: Tensor, seed: int = 4, rank: int = 0) -> Tensor:
    return of.augment(x, torch_generator(seed, "augment", rank))


# ---- views, one by one


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_random_parts_are_torchvisions_resized_crop(side: int, bicubic: bool) -> None:
    """Floats, so that nothing hides behind a rounding."""
    x = squares(12, side).float()
    boxes, mirrored = random_boxes(len(x), side, torch_generator(4, "augment", 0))
    ours = augmented(transform(bicubic=bicubic), x)
    assert ours.shape == (12, 3, 56, 56)
    assert 2 < int(mirrored.sum()) < 10
    for i in range(len(x)):
        top, left, height, width = map(int, boxes[:, i])
        expected = functional.resized_crop(x[i], top, left, height, width, [56, 56], FILTERS[bicubic], antialias=True)
        expected = functional.horizontal_flip(expected) if mirrored[i] else expected
        torch.testing.assert_close(ours[i], expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_random_places_are_torchvisions_crop_of_the_resized_image(side: int, bicubic: bool) -> None:
    x = squares(12, side).float()
    draws = torch.rand((3, 12), generator=torch_generator(4, "augment", 0))
    ours = augmented(transform(bicubic=bicubic, cut_from=75), x)
    for i in range(len(x)):
        whole = functional.resize(x[i], [75, 75], FILTERS[bicubic], antialias=True)
        expected = functional.crop(whole, int(20 * draws[0, i]), int(20 * draws[1, i]), 56, 56)
        expected = functional.horizontal_flip(expected) if draws[2, i] < 0.5 else expected
        torch.testing.assert_close(ours[i], expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_evaluation_is_torchvisions_resize_and_center_crop_and_draws_nothing(side: int, bicubic: bool) -> None:
    x = squares(5, side).float()
    of = transform(bicubic=bicubic, brightness=0.3)
    expected = functional.center_crop(functional.resize(x, [64], FILTERS[bicubic], antialias=True), [56])
    for _ in range(2):
        torch.testing.assert_close(of.view(x), expected, rtol=0, atol=2e-3)


def test_grey_levels_are_rounded_and_stay_in_their_range() -> None:
    checks = (255 * (torch.arange(20) // 3 % 2)).byte().expand(2, 3, 20, 20)
    of = transform(bicubic=True)
    floats, levels = of.view(checks.float()), of.view(checks)
    assert floats.min() < -5, "a cubic filter overshoots at an edge"
    assert floats.max() > 260
    assert levels.dtype == torch.uint8
    assert torch.equal(levels, floats.round().clamp(0, 255).byte())
    of_digits = ResampledTransform((0.0,), (1.0,), peak=16.0, size=56, resized=64, bicubic=True)
    assert int(of_digits.view(checks // 16).max()) == 16


def test_brightness_is_torchvisions_with_a_factor_for_each_image() -> None:
    x = squares(12, 20)
    plain = augmented(transform(bicubic=True), x)
    generator = torch_generator(4, "augment", 0)
    random_boxes(len(x), 20, generator)
    factors = 1 + 0.25 * (2 * torch.rand(12, generator=generator) - 1)
    bright = augmented(transform(bicubic=True, brightness=0.25), x)
    for i in range(len(x)):
        expected = functional.adjust_brightness(plain[i], float(factors[i]))
        # Next to a whole number the product may fall to either side of it.
        assert (bright[i].int() - expected.int()).abs().max() <= 1
        assert (bright[i] != expected).float().mean() < 0.01


# ---- what is drawn


def test_places_are_uniform_directions_even_and_factors_uniform() -> None:
    num = 18_000
    x = (1 + torch.arange(9, dtype=torch.uint8)).view(1, 1, 3, 3).expand(num, 1, 3, 3)
    of = ResampledTransform((0.0,), (1.0,), size=1, resized=3, cut_from=3)
    corners = augmented(of, x)[:, 0, 0, 0].long()
    counts = torch.bincount(corners, minlength=10)[1:]
    assert float(((counts - num / 9) ** 2 / (num / 9)).sum()) < 20.09  # 8 degrees of freedom, p = 0.01
    halves = torch.tensor([[0, 0], [100, 100]]).byte().T.reshape(1, 1, 2, 2).expand(num, 1, 2, 2)
    of = ResampledTransform((0.0,), (1.0,), size=2, resized=2, cut_from=2)
    mirrored = augmented(of, halves)[:, 0, 0, 0] > 50
    assert abs(float(mirrored.float().mean()) - 0.5) < 2.58 * (0.25 / num) ** 0.5
    white = torch.full((num, 1, 8, 8), 100.0)
    of = ResampledTransform((0.0,), (1.0,), size=2, resized=2, brightness=0.2)
    factors = augmented(of, white)[:, 0, 0, 0].div(100).sort().values
    uniform = (factors - 0.8) / 0.4
    steps = (torch.arange(num) + 0.5) / num
    assert float((uniform - steps).abs().max()) < 1.63 / num**0.5  # Kolmogorov-Smirnov, p = 0.01


@pytest.mark.parametrize("name", PRESETS)
def test_samples_and_ranks_are_drawn_independently_and_repeat(name: str, tmp_path: Path) -> None:
    of = digits(preset=name, size=14, normalise="none").transform
    x = squares(1, 8).mul(16 / 255).byte().expand(16, 3, 8, 8)
    first, again, other = (augmented(of, x, rank=rank) for rank in (0, 0, 1))
    assert torch.equal(first, again)
    assert len(first.flatten(1).unique(dim=0)) >= 10
    assert not torch.equal(first, other)
    assert augmented(of, x[:0]).shape == (0, 3, 14, 14)
    kept = x.clone()
    augmented(of, x)
    assert torch.equal(x, kept)


# ---- recipes on data sets


def digits(**options: object) -> Scenario:
    return build("digits", "none", **{"class_order_seed": None, "given": False, **options})  # type: ignore[arg-type]


def of_cifar(folder: Path, **options: object) -> Scenario:
    write_cifar(folder, "cifar10")
    return build("cifar10", folder, class_order_seed=None, given=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("preset", "recipe", "mean", "std"),
    [
        ("hide", (None, False, 0.0), (0.0,), (1.0,)),
        ("hide_cifar", (None, True, 63 / 255), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        ("slca", (None, True, 0.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("slca_cub", (300, True, 0.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_presets_have_the_published_numbers(
    tmp_path: Path, preset: str, recipe: tuple[int | None, bool, float], mean: tuple, std: tuple
) -> None:
    scenario = of_cifar(tmp_path, preset=preset)
    of = scenario.transform
    assert isinstance(of, ResampledTransform)
    assert (of.cut_from, of.bicubic, of.brightness) == recipe
    assert (of.size, of.resized, of.mean, of.std) == (224, 256, mean, std)
    assert (scenario.sample_shape, scenario.input_shape) == ((3, 32, 32), (3, 224, 224))
    half = of_cifar(tmp_path, preset=preset, size=112, normalise="half").transform
    assert (half.size, half.resized, half.cut_from) == (112, 128, recipe[0] and 150)
    assert (half.mean, half.std) == ((0.5,), (0.5,))


def test_normalisations_are_what_their_names_say(tmp_path: Path) -> None:
    x = squares(4, 32)
    for name, (mean, std) in NORMALISATIONS.items():
        ours = of_cifar(tmp_path, normalise=name).transform.normalise(x)
        channels = [list(values) * (3 // len(values)) for values in (mean, std)]
        torch.testing.assert_close(ours, functional.normalize(x.float() / 255, *channels))
    own = of_cifar(tmp_path).transform
    assert of_cifar(tmp_path, normalise="own").transform == own
    assert of_cifar(tmp_path, normalise="none").transform.padding == own.padding == 4


def test_own_augmentation_at_another_size_is_resized_last(tmp_path: Path) -> None:
    plain, large = of_cifar(tmp_path).transform, of_cifar(tmp_path, size=56)
    x = squares(8, 32)
    moved = plain.augment(x, torch_generator(1, "augment"))
    ours = large.transform.augment(x, torch_generator(1, "augment"))
    for theirs, before in ((ours, moved), (large.transform.view(x), x)):
        expected = functional.resize(before.float(), [56, 56], antialias=True).round().byte()
        assert torch.equal(theirs, expected)
    assert (large.sample_shape, large.input_shape) == ((3, 32, 32), (3, 56, 56))


def imagenet(folder: Path, **options: object) -> Scenario:
    return build("imagenet", folder, class_order_seed=None, given=False, **options)  # type: ignore[arg-type]


def pil(samples: ImageFiles, index: int) -> Image.Image:
    with Image.open(samples.path(index)) as image:
        return image.convert("RGB")


def assert_same_image(ours: Tensor, theirs: Image.Image) -> None:
    """But for roundings: torch and PIL make one after every pass."""
    assert (ours.int() - functional.pil_to_tensor(theirs).int()).abs().max() <= 2


@pytest.mark.parametrize("preset", PRESETS)
def test_photographs_are_decoded_for_the_recipe(tmp_path: Path, preset: str) -> None:
    write_imagenet(tmp_path)
    scenario = imagenet(tmp_path, preset=preset, size=56)
    train, test = scenario.tasks[0].train, scenario.tasks[0].test
    mode = FILTERS[PRESETS[preset].bicubic]
    x, views = train.gather(range(3))[0], scenario.transform.view(test.gather(range(3))[0])
    for i in range(3):
        if preset == "slca_cub":
            assert_same_image(x[i], functional.resize(pil(train, i), [75, 75], mode))
        else:
            resized = functional.resize(pil(train, i), [64], mode)
            assert_same_image(x[i], functional.center_crop(resized, [64]))
            resized = functional.resize(pil(test, i), [64], mode)
            assert_same_image(views[i], functional.center_crop(resized, [56]))
    assert scenario.input_shape == tuple(views.shape[1:]) == (3, 56, 56)
    own = imagenet(tmp_path, size=56)
    assert (own.sample_shape, own.input_shape) == ((3, 64, 64), (3, 56, 56))


def test_a_squeezed_photograph_is_evaluated_cut(tmp_path: Path) -> None:
    """SLCA trains on images resized to a square and tests on the middle of images in their own proportions."""
    save_image(tmp_path / "a.png", photograph(120, 80, 1))
    samples = ImageFiles("cub200", tmp_path, ["a.png"], torch.tensor([0]), 256)
    squeezed = samples.resized(60, bicubic=True, whole=True).part(0, 1).take(torch.tensor([0]), torch.tensor([0]))
    cut = samples.resized(60, bicubic=True, whole=False)
    image = pil(samples, 0)
    assert_same_image(squeezed[0][0], functional.resize(image, [60, 60], FILTERS[True]))
    assert_same_image(cut[0][0], functional.center_crop(functional.resize(image, [60], FILTERS[True]), [60]))


def test_small_images_in_files_stay_as_they_are_until_the_device(tmp_path: Path) -> None:
    write_tinyimagenet(tmp_path)
    options = {"class_order_seed": None, "given": False, "preset": "hide"}
    scenario = build("tinyimagenet", tmp_path, **options)  # type: ignore[arg-type]
    assert (scenario.sample_shape, scenario.input_shape) == ((3, 64, 64), (3, 224, 224))


def test_images_of_domains_may_be_resized_but_not_cut(tmp_path: Path) -> None:
    rotated = {"scenario": "domain", "domain": "rotated", "num_tasks": 2, "given": True}
    scenario = digits(**rotated, size=16)
    assert scenario.input_shape == (1, 16, 16)
    fails(lambda: digits(**rotated, preset="hide"), "preset 'hide'", "domain 'rotated'", "leave the preset out")
    write_mnist(tmp_path)
    sequence = build(
        "mnist",
        tmp_path,
        scenario="domain",
        datasets=["mnist", "digits"],
        preset="hide",
        size=32,
        class_order_seed=None,
        given=True,
    )
    x, _ = sequence.tasks[1].train.gather([0, 1])
    assert x.shape == (2, 1, 28, 28)
    assert sequence.input_shape == (1, 32, 32)


# ---- options


def fails(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_offer_what_there_is() -> None:
    fields = TransformConfig.model_fields
    assert get_args(fields["preset"].annotation) == (OWN, *PRESETS)
    assert set(get_args(fields["normalise"].annotation)) == {OWN, *NORMALISATIONS}
    options = parse(["--transform-config", "{'preset': 'hide', 'size': 224, 'normalise': 'imagenet'}"]).options
    assert options.transform_config.model_dump() == {"preset": "hide", "size": 224, "normalise": "imagenet"}
    assert parse([]).options.transform_config.model_dump() == {"preset": "own", "size": None, "normalise": "own"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("preset=hides", ["preset", "did you mean 'hide'"]),
        ("size=0", ["size", "from 1"]),
        ("normalise=imagnet", ["normalise", "did you mean 'imagenet'"]),
        ("mean=0.5", ["mean", "preset"]),
    ],
)
def test_unknown_names_and_sizes_are_refused(config: str, words: list[str]) -> None:
    fails(lambda: parse(["--transform-config", config]), "--transform-config", *words)


def test_what_does_not_fit_the_data_set_is_refused() -> None:
    fails(lambda: digits(normalise="imagenet"), "'imagenet'", "3 channels", "'digits' have 1", "own, none or half")
    fails(lambda: digits(preset="hide_cifar"), "normalise 'cifar'", "3 channels")
    assert digits(preset="hide_cifar", normalise="half", size=16).input_shape == (1, 16, 16)
    options = {"class_order_seed": None, "given": False, "preset": "hide"}
    fails(lambda: build("ptycho_synthetic", "none", **options), "'ptycho_synthetic'", "leave it out")  # type: ignore[arg-type]
