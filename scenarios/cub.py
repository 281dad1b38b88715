"""CUB-200-2011 (Wah et al. 2011): photographs of 200 kinds of birds, about 30 of each for training, decoded on demand.

Expected inside --dataset-dir, or inside its CUB_200_2011/, as the archive unpacks: images/, and images.txt,
image_class_labels.txt and train_test_split.txt, with a line per image of its number and its path in images/, its class
from 1, and whether it is for training (1) or not (0). Label k is class k + 1.
"""

from pathlib import Path

import torch

from reprise.scenarios.image_files import AGAIN, ImageFiles, require_listed
from reprise.scenarios.imagenet import RAW, TRANSFORM
from reprise.scenarios.raw import DATASETS, RawData, damaged, home, require_files, text_lines

NAME, NUM_CLASSES = "cub200", 200
REMEDY = "unpack CUB_200_2011.tgz there (from data.caltech.edu; --download cannot fetch it)"


@DATASETS.register(NAME)
def cub200(folder: Path, download: bool) -> RawData:
    """5,994 training and 5,794 test images (3, 256, 256) of 200 classes, or as many as the lists name."""
    root = home(folder, "CUB_200_2011")
    files = [root / name for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")]
    require_files(NAME, root, [root / "images", *files], REMEDY)
    paths, classes, parts = (_by_number(file) for file in files)
    for file, column in zip(files[1:], (classes, parts), strict=True):
        if column.keys() != paths.keys():
            other = min(column.keys() ^ paths.keys())
            raise damaged(NAME, file, f"image {other} is not in both this list and {files[0].name}", AGAIN)
    label_of = {str(label + 1): label for label in range(NUM_CLASSES)}
    rows: dict[str, tuple[list[str], list[int]]] = {"1": ([], []), "0": ([], [])}
    for number, path in paths.items():
        if classes[number] not in label_of:
            reason = f"class {classes[number][:60]!r} of image {number} is not in 1 to {NUM_CLASSES}"
            raise damaged(NAME, files[1], reason, AGAIN)
        if parts[number] not in rows:
            raise damaged(NAME, files[2], f"image {number} has {parts[number][:60]!r}, not 0 or 1", AGAIN)
        names, labels = rows[parts[number]]
        names.append(f"images/{path}")
        labels.append(label_of[classes[number]])
    train, test = (_images(root, *rows[part], files) for part in ("1", "0"))
    return RawData(train, test, NUM_CLASSES, TRANSFORM)


def _images(root: Path, names: list[str], labels: list[int], files: list[Path]) -> ImageFiles:
    require_listed(NAME, root, names, files[0] if names else files[2])
    return ImageFiles(NAME, root, names, torch.tensor(labels), RAW)


def _by_number(file: Path) -> dict[int, str]:
    """Number of an image -> the rest of its line, in the list's order."""
    column = {}
    for number, line in enumerate(text_lines(NAME, file, AGAIN), 1):
        words = line.split(maxsplit=1)
        if len(words) != 2 or not words[0].isdecimal():
            raise damaged(NAME, file, f"line {number} is {line[:60]!r}, not the number of an image and a value", AGAIN)
        column[int(words[0])] = words[1].strip()
    return column
