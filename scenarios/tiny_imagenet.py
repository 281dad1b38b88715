"""Tiny ImageNet (Le and Yang 2015): 200 classes of ImageNet in images of 64x64 pixels, decoded on demand.

Expected inside --dataset-dir, or inside its TinyImageNet/, as the archive unpacks: tiny-imagenet-200/ with wnids.txt,
train/<wnid>/images/*.JPEG and val/images/ with val/val_annotations.txt. Label k is line k of wnids.txt. The archive's
own test images have no labels: its validation images are the test set here.
"""

from itertools import chain
from pathlib import Path

import torch

from reprise.scenarios.image_files import ImageFiles, image_names, labels_of
from reprise.scenarios.raw import DATASETS, RawData, damaged, home, require_files, text_lines
from reprise.scenarios.transforms import ImageTransform

NAME, SIZE = "tinyimagenet", 64
SUBFOLDER = "tiny-imagenet-200"
REMEDY = "unpack tiny-imagenet-200.zip there (from cs231n.stanford.edu; --download cannot fetch it)"
AGAIN = "unpack it from the archive again"


@DATASETS.register(NAME)
def tinyimagenet(folder: Path, download: bool) -> RawData:
    """100,000 training and 10,000 test images (3, 64, 64) of 200 classes, or as many as the files hold."""
    folder = home(folder, "TinyImageNet")
    root = folder / SUBFOLDER
    classes_file, annotations = root / "wnids.txt", root / "val" / "val_annotations.txt"
    require_files(NAME, folder, [classes_file, root / "train", annotations], REMEDY)
    classes = [line.strip() for line in text_lines(NAME, classes_file, AGAIN) if line.strip()]
    if not classes or len(set(classes)) < len(classes):
        raise damaged(NAME, classes_file, f"{len(classes)} lines name {len(set(classes))} classes", AGAIN)
    # The crops and flips of CIFAR's recipe; statistics of the training pixels.
    transform = ImageTransform((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), padding=4, flip=True)
    return RawData(_train(folder, root, classes), _test(folder, annotations, classes), len(classes), transform)


def _train(folder: Path, root: Path, classes: list[str]) -> ImageFiles:
    places = [root / "train" / name / "images" for name in classes]
    require_files(NAME, folder, places, REMEDY)
    names = [image_names(NAME, folder, place) for place in places]
    return ImageFiles(NAME, folder, list(chain.from_iterable(names)), labels_of([len(n) for n in names]), SIZE)


def _test(folder: Path, annotations: Path, classes: list[str]) -> ImageFiles:
    label_of = {name: label for label, name in enumerate(classes)}
    place = annotations.parent.relative_to(folder) / "images"
    names, labels = [], []
    for number, line in enumerate(text_lines(NAME, annotations, AGAIN), 1):
        # File, class and the corners of a box, separated by tabulators.
        words = line.split("\t")
        if len(words) < 2 or words[1] not in label_of:
            reason = f"line {number} is {line[:60]!r}, not an image with one of the classes of wnids.txt"
            raise damaged(NAME, annotations, reason, AGAIN)
        names.append(str(place / words[0]))
        labels.append(label_of[words[1]])
    return ImageFiles(NAME, folder, names, torch.tensor(labels), SIZE)
