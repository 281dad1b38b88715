"""Stanford Cars (Krause et al. 2013): photographs of 196 models of cars, decoded on demand.

Expected inside --dataset-dir, or inside its stanford_cars/, torchvision's layout: cars_train/ and cars_test/ with the
images, devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat (beside devkit/, or in it) with the class of
each, from 1. Label k is class k + 1.
"""

from pathlib import Path

from reprise.scenarios.image_files import AGAIN, ImageFiles, require_listed
from reprise.scenarios.imagenet import RAW, TRANSFORM
from reprise.scenarios.mat_files import from_zero, read_mat
from reprise.scenarios.raw import DATASETS, RawData, damaged, home, require_files

NAME, NUM_CLASSES = "cars196", 196
TEST_LIST = "cars_test_annos_withlabels.mat"
REMEDY = "put cars_train/, cars_test/, devkit/ and the test labels there (--download cannot fetch them)"


@DATASETS.register(NAME)
def cars196(folder: Path, download: bool) -> RawData:
    """8,144 training and 8,041 test images (3, 256, 256) of 196 classes, or as many as the annotations name."""
    root = home(folder, "stanford_cars")
    train_list, test_list = root / "devkit" / "cars_train_annos.mat", root / TEST_LIST
    if not test_list.exists() and (root / "devkit" / TEST_LIST).exists():
        test_list = root / "devkit" / TEST_LIST
    require_files(NAME, root, [root / "cars_train", root / "cars_test", train_list, test_list], REMEDY)
    train, test = _part(root, "cars_train", train_list), _part(root, "cars_test", test_list)
    return RawData(train, test, NUM_CLASSES, TRANSFORM)


def _part(root: Path, part: str, file: Path) -> ImageFiles:
    (annotations,) = read_mat(NAME, file, ("annotations",), AGAIN)
    fields = annotations.dtype.names or ()
    if not {"fname", "class"} <= set(fields):
        reason = f"its annotations have {', '.join(fields) or 'no fields'}, not fname and class"
        raise damaged(NAME, file, reason, AGAIN)
    names = [f"{part}/{name}" for name in annotations["fname"].tolist()]
    require_listed(NAME, root, names, file)
    return ImageFiles(NAME, root, names, from_zero(NAME, file, annotations["class"], NUM_CLASSES, AGAIN), RAW)
