"""Stanford Dogs (Khosla et al. 2011): photographs of 120 breeds of dogs, decoded on demand.

Expected inside --dataset-dir, or inside its stanford_dogs/, as the archives unpack: Images/<breed>/*.jpg, and
train_list.mat and test_list.mat (or lists/ with them), with the path of each image in Images/ and its class from 1.
Label k is class k + 1.
"""

from pathlib import Path

from reprise.scenarios.image_files import AGAIN, ImageFiles, require_listed
from reprise.scenarios.imagenet import RAW, TRANSFORM
from reprise.scenarios.mat_files import from_zero, read_mat
from reprise.scenarios.raw import DATASETS, RawData, damaged, home, require_files

NAME, NUM_CLASSES = "dogs120", 120
REMEDY = "unpack images.tar and lists.tar there (from vision.stanford.edu; --download cannot fetch them)"


@DATASETS.register(NAME)
def dogs120(folder: Path, download: bool) -> RawData:
    """12,000 training and 8,580 test images (3, 256, 256) of 120 classes, or as many as the lists name."""
    root = home(folder, "stanford_dogs")
    lists = [home(root, "lists") / f"{part}_list.mat" for part in ("train", "test")]
    require_files(NAME, root, [root / "Images", *lists], REMEDY)
    train, test = (_part(root, file) for file in lists)
    return RawData(train, test, NUM_CLASSES, TRANSFORM)


def _part(root: Path, file: Path) -> ImageFiles:
    paths, labels = read_mat(NAME, file, ("file_list", "labels"), AGAIN)
    if paths.shape != labels.shape:
        raise damaged(NAME, file, f"{labels.size} labels for {paths.size} images", AGAIN)
    names = [f"Images/{path}" for path in paths.tolist()]
    require_listed(NAME, root, names, file)
    return ImageFiles(NAME, root, names, from_zero(NAME, file, labels, NUM_CLASSES, AGAIN), RAW)
