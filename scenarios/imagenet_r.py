"""ImageNet-R (Hendrycks et al. 2021): renditions of 200 classes of ImageNet, as art, cartoons, toys and the like.

It comes without a split, and three are in use. Accuracies on different ones do not compare, so each is a data set here:

- imagenet_r: train/<class>/ and test/<class>/, as the code of SLCA and PILOT ships it;
- imagenet_r_random80: <class>/ as the archive unpacks, 80 % of all images drawn with a fixed seed for training, as L2P
  and HiDe-Prompt do it;
- imagenet_r_lists: <class>/ and the lists train.txt and test.txt, with lines like "n01443537/art_0.jpg", as CODA-Prompt
  and HiDe-PET have theirs in YAML.

Expected inside --dataset-dir, or inside its imagenet-r/. Label k is the k-th class in the order of names.
"""

from itertools import chain
from pathlib import Path

import torch

from reprise.scenarios.image_files import (
    ImageFiles,
    class_folders,
    image_names,
    in_class_folders,
    labels_of,
    require_listed,
)
from reprise.scenarios.imagenet import RAW, TRANSFORM
from reprise.scenarios.raw import DATASETS, RawData, damaged, home, require_files, text_lines

SUBFOLDER = "imagenet-r"
TRAIN_SHARE, SPLIT_SEED = 0.8, 42  # HiDe-Prompt's numbers
FROM_ARCHIVE = "imagenet-r.tar there (from github.com/hendrycks/imagenet-r; --download cannot fetch it)"
FOLDERS_REMEDY = "put the images there, sorted into train/<class>/ and test/<class>/ (--download cannot fetch them)"
UNPACK_REMEDY = f"unpack {FROM_ARCHIVE}"
LISTS_REMEDY = f"put the lists beside the class folders of {FROM_ARCHIVE}"
LIST_AGAIN = "get the list again"


@DATASETS.register("imagenet_r")
def imagenet_r(folder: Path, download: bool) -> RawData:
    """Images (3, 256, 256) of 200 classes, or of as many as there are class folders, split by the folders."""
    root = home(folder, SUBFOLDER)
    train, test, num_classes = in_class_folders("imagenet_r", root, ("train", "test"), RAW, FOLDERS_REMEDY)
    return RawData(train, test, num_classes, TRANSFORM)


@DATASETS.register("imagenet_r_random80")
def imagenet_r_random80(folder: Path, download: bool) -> RawData:
    """The same images, 80 % of them, whatever their classes, for training. The split does not depend on --seed."""
    dataset, root = "imagenet_r_random80", home(folder, SUBFOLDER)
    require_files(dataset, root, [], UNPACK_REMEDY)
    classes = class_folders(dataset, root, UNPACK_REMEDY)
    names = [image_names(dataset, root, root / name) for name in classes]
    labels = labels_of([len(of_class) for of_class in names])
    images = ImageFiles(dataset, root, list(chain.from_iterable(names)), labels, RAW)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    chosen, held_out = (part.sort().values for part in order.tensor_split([int(TRAIN_SHARE * len(images))]))
    train, test = (images.take(rows, labels[rows]) for rows in (chosen, held_out))
    return RawData(train, test, len(classes), TRANSFORM)


@DATASETS.register("imagenet_r_lists")
def imagenet_r_lists(folder: Path, download: bool) -> RawData:
    """The same images, those that the lists name; the classes are those that the training list names."""
    dataset, root = "imagenet_r_lists", home(folder, SUBFOLDER)
    lists = [root / "train.txt", root / "test.txt"]
    require_files(dataset, root, lists, LISTS_REMEDY)
    train, test = (_listed(dataset, root, file) for file in lists)
    label_of = {name: label for label, name in enumerate(sorted({_class_of(name) for name in train}))}
    for name in test:
        if _class_of(name) not in label_of:
            raise damaged(dataset, lists[1], f"'{name}' is of a class that {lists[0].name} has not", LIST_AGAIN)

    def images(names: list[str]) -> ImageFiles:
        return ImageFiles(dataset, root, names, torch.tensor([label_of[_class_of(name)] for name in names]), RAW)

    return RawData(images(train), images(test), len(label_of), TRANSFORM)


def _listed(dataset: str, root: Path, file: Path) -> list[str]:
    names = [line.strip() for line in text_lines(dataset, file, LIST_AGAIN)]
    for number, name in enumerate(names, 1):
        if name.count("/") != 1 or name.startswith("/"):
            raise damaged(dataset, file, f"line {number} is {name[:60]!r}, not 'class/image'", LIST_AGAIN)
    require_listed(dataset, root, names, file)
    return names


def _class_of(name: str) -> str:
    return name.partition("/")[0]
