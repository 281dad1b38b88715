"""Recipes for network inputs by name: what published code of continual learning does to images, size and normalisation.

scenarios/scenario.py applies one to a data set as it was read. The names are the values of --transform-config.
"""

from dataclasses import dataclass, replace

from reprise.runtime.errors import UserError
from reprise.scenarios.image_files import ImageFiles
from reprise.scenarios.raw import RawData
from reprise.scenarios.resampled import ResampledTransform
from reprise.scenarios.resized_crop import CroppedImageTransform
from reprise.scenarios.transforms import ImageTransform, Normalised

OWN = "own"
SIZE = 224  # pixels: the views of the published recipes
RESIZED, CUT_FROM = 256, 300  # what images are resized to for them: in evaluation, and in training where places are cut


@dataclass(frozen=True)
class Preset:
    """What differs between the recipes, see ResampledTransform; normalise: one of NORMALISATIONS."""

    normalise: str
    bicubic: bool = False
    cut: bool = False
    brightness: float = 0.0


PRESETS = {
    "hide": Preset("none"),
    "hide_cifar": Preset("cifar", bicubic=True, brightness=63 / 255),
    "slca": Preset("imagenet", bicubic=True),
    "slca_cub": Preset("imagenet", bicubic=True, cut=True),
}
"""hide, hide_cifar: HiDe-PET's for all data sets but CIFAR, and for CIFAR. slca: SLCA's for ImageNet-R; slca_cub: for
CUB-200 and Cars-196. For CIFAR SLCA's is hide_cifar."""

NORMALISATIONS = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""Mean and standard deviation of values from 0 to 1, per channel; one number: of every channel."""


def with_preset(dataset: str, raw: RawData, preset: str, size: int | None, normalise: str) -> RawData:
    """The data set with views of `size` pixels by a recipe, normalised another way.

    preset: "own", the data set's, or one of PRESETS. size: None for the preset's own. normalise: "own", the preset's,
    or one of NORMALISATIONS. Photographs in files are decoded at the size that the recipe resizes them to for
    evaluation, so that random parts are parts of what evaluation cuts its views from; other images stay as they are and
    are resized with each batch. UserError for data without images, and for a normalisation of other channels.
    """
    if (preset, size, normalise) == (OWN, None, OWN):
        return raw
    own, recipe = raw.transform, PRESETS.get(preset)
    if not isinstance(own, Normalised):
        raise UserError(f"transform_config is for images with classes, and data set '{dataset}' has none; leave it out")
    if recipe and normalise == OWN:
        normalise = recipe.normalise
    mean, std = (own.mean, own.std) if normalise == OWN else NORMALISATIONS[normalise]
    channels = raw.train.sample_shape[0]
    if len(mean) not in (1, channels):
        raise UserError(
            f"transform_config normalise '{normalise}' is for {len(mean)} channels, and images of '{dataset}' have "
            f"{channels}; choose own, none or half"
        )
    own = replace(own, mean=mean, std=std)
    if recipe:
        return _resampled(raw, own, recipe, size or SIZE)
    return replace(raw, transform=own) if size is None else _sized(raw, own, size)


def _sized(raw: RawData, own: Normalised, size: int) -> RawData:
    """The data set's own recipe with views of another size."""
    assert isinstance(own, ImageTransform | CroppedImageTransform)
    if isinstance(own, CroppedImageTransform):
        raw = _decoded(raw, size * RESIZED // SIZE)
    return replace(raw, transform=replace(own, size=size))


def _resampled(raw: RawData, own: Normalised, recipe: Preset, size: int) -> RawData:
    resized, cut_from = size * RESIZED // SIZE, size * CUT_FROM // SIZE if recipe.cut else None
    if isinstance(own, CroppedImageTransform):
        raw = _decoded(raw, cut_from or resized, bicubic=recipe.bicubic, whole=recipe.cut)
    transform = ResampledTransform(
        own.mean,
        own.std,
        own.peak,
        size=size,
        resized=resized,
        cut_from=cut_from,
        bicubic=recipe.bicubic,
        brightness=recipe.brightness,
    )
    return replace(raw, transform=transform)


def _decoded(raw: RawData, size: int, *, bicubic: bool = False, whole: bool = False) -> RawData:
    """Photographs in files at another size. whole: training images squeezed into the square, test images cut still."""
    assert isinstance(raw.train, ImageFiles)
    assert isinstance(raw.test, ImageFiles)
    train = raw.train.resized(size, bicubic=bicubic, whole=whole)
    return replace(raw, train=train, test=raw.test.resized(size, bicubic=bicubic, whole=False))
