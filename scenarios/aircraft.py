"""FGVC-Aircraft (Maji et al. 2013): photographs of 100 variants of aircraft, decoded on demand.

Expected inside --dataset-dir, or inside its fgvc-aircraft-2013b/, as the archive unpacks: data/ with images/*.jpg,
variants.txt, images_variant_trainval.txt and images_variant_test.txt, with lines like "1025794 707-320". Label k is
line k of variants.txt. Training and validation images are for training, as HiDe-PET has it.
"""

from pathlib import Path

import torch

from reprise.scenarios.image_files import AGAIN, ImageFiles, require_listed
from reprise.scenarios.imagenet import RAW, TRANSFORM
from reprise.scenarios.raw import DATASETS, RawData, damaged, home, require_files, text_lines

NAME = "aircraft100"
REMEDY = "unpack fgvc-aircraft-2013b.tar.gz there (from robots.ox.ac.uk; --download cannot fetch it)"


@DATASETS.register(NAME)
def aircraft100(folder: Path, download: bool) -> RawData:
    """6,667 training and 3,333 test images (3, 256, 256) of 100 classes, or as many as the lists name."""
    root = home(folder, "fgvc-aircraft-2013b")
    data = root / "data"
    variants_file = data / "variants.txt"
    lists = [data / f"images_variant_{part}.txt" for part in ("trainval", "test")]
    require_files(NAME, root, [data / "images", variants_file, *lists], REMEDY)
    variants = [line.strip() for line in text_lines(NAME, variants_file, AGAIN) if line.strip()]
    if not variants or len(set(variants)) < len(variants):
        raise damaged(NAME, variants_file, f"{len(variants)} lines name {len(set(variants))} variants", AGAIN)
    label_of = {name: label for label, name in enumerate(variants)}
    train, test = (_part(data, file, label_of) for file in lists)
    return RawData(train, test, len(variants), TRANSFORM)


def _part(data: Path, file: Path, label_of: dict[str, int]) -> ImageFiles:
    names, labels = [], []
    for number, line in enumerate(text_lines(NAME, file, AGAIN), 1):
        image, _, variant = line.strip().partition(" ")
        if variant not in label_of:
            reason = f"line {number} is {line[:60]!r}, not an image with one of the variants of variants.txt"
            raise damaged(NAME, file, reason, AGAIN)
        names.append(f"images/{image}.jpg")
        labels.append(label_of[variant])
    require_listed(NAME, data, names, file)
    return ImageFiles(NAME, data, names, torch.tensor(labels), RAW)
