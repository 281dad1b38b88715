"""ImageNet-1k (Russakovsky et al. 2015), the same with faces blurred, and subsets of 100 classes from text files.

Expected inside --dataset-dir, or inside the subfolder of it that the reference uses (ImageNet/, ImageNet_blurred/,
ImageNet100/, ImageNet100-small/): train/<class>/*.JPEG and val/<class>/*.JPEG. A subset has beside them its lists, with
lines like "train/n01440764/n01440764_18.JPEG 0". Images are decoded on demand, never read into memory as a whole.
"""

from pathlib import Path

import torch

from reprise.scenarios.image_files import ImageFiles, in_class_folders
from reprise.scenarios.raw import DATASETS, RawData, damaged, home, require_files, text_lines
from reprise.scenarios.resized_crop import CroppedImageTransform

RAW, VIEW = 256, 224  # pixels: as stored, and as the network sees them; validation cuts them as the reference does
TRAIN, TEST = "train", "val"
SUBSET_CLASSES = 100
# Statistics of ImageNet's training pixels. The blurred images use them too: its authors (Yang et al. 2022,
# arXiv 2103.06191) train on them with the recipe of the original images, and so does the reference.
TRANSFORM = CroppedImageTransform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=VIEW)
LIST_REMEDY = "get the list again"
REMEDY = (
    "unpack the images there, sorted into train/<class>/ and val/<class>/ (from image-net.org; --download cannot fetch "
    "them)"
)


@DATASETS.register("imagenet")
def imagenet(folder: Path, download: bool) -> RawData:
    """Images (3, 256, 256) of 1,000 classes, or of as many as there are class folders; label k is the k-th of them."""
    return _folders("imagenet", home(folder, "ImageNet"))


@DATASETS.register("imagenet_blurred")
def imagenet_blurred(folder: Path, download: bool) -> RawData:
    """The same images with the faces blurred, in the same folders."""
    return _folders("imagenet_blurred", home(folder, "ImageNet_blurred"))


@DATASETS.register("imagenet100")
def imagenet100(folder: Path, download: bool) -> RawData:
    """100 classes of ImageNet, the images that train_100.txt and val_100.txt list (Douillard et al. 2020)."""
    return _listed("imagenet100", home(folder, "ImageNet100"), "100")


@DATASETS.register("imagenet100small")
def imagenet100small(folder: Path, download: bool) -> RawData:
    """Fewer images of the same classes, those that train_100_small.txt and val_100_small.txt list."""
    return _listed("imagenet100small", home(folder, "ImageNet100-small"), "100_small")


def _folders(dataset: str, root: Path) -> RawData:
    train, test, num_classes = in_class_folders(dataset, root, (TRAIN, TEST), RAW, REMEDY)
    return RawData(train, test, num_classes, TRANSFORM)


def _listed(dataset: str, root: Path, subset: str) -> RawData:
    lists = [root / f"{part}_{subset}.txt" for part in (TRAIN, TEST)]
    require_files(dataset, root, lists, f"put the lists there and {REMEDY}")
    train, test = (_read_list(dataset, root, file) for file in lists)
    return RawData(train, test, SUBSET_CLASSES, TRANSFORM)


def _read_list(dataset: str, root: Path, file: Path) -> ImageFiles:
    """The images that a list names, in its order; that they exist shows when they are read."""
    names, labels = [], []
    for number, line in enumerate(text_lines(dataset, file, LIST_REMEDY), 1):
        words = line.split()
        if len(words) != 2 or not words[1].isdecimal() or int(words[1]) >= SUBSET_CLASSES:
            wanted = f"'path label' with a label from 0 to {SUBSET_CLASSES - 1}"
            raise damaged(dataset, file, f"line {number} is {line[:60]!r}, not {wanted}", LIST_REMEDY)
        names.append(words[0])
        labels.append(int(words[1]))
    return ImageFiles(dataset, root, names, torch.tensor(labels), RAW)
