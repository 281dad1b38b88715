"""CORe50 (Lomonaco and Maltoni 2017): 50 objects filmed in 11 sessions, images of 128x128 pixels, decoded on demand.

Expected inside --dataset-dir, or inside its CORe50/, as the archive unpacks: core50_128x128/s<session>/o<object>/*.png.
Sessions 3, 7 and 10 are the test set (the split of its authors). Label k is object k + 1.
"""

from itertools import chain
from pathlib import Path

import torch

from reprise.scenarios.image_files import ImageFiles, image_names, labels_of
from reprise.scenarios.raw import DATASETS, RawData, home, require_files
from reprise.scenarios.transforms import ImageTransform

NAME, SIZE, NUM_CLASSES = "core50", 128, 50
SESSIONS = range(1, 12)
TEST_SESSIONS = (3, 7, 10)
SUBFOLDER = "core50_128x128"
REMEDY = "unpack core50_128x128.zip there (from the CORe50 website; --download cannot fetch it)"


@DATASETS.register(NAME)
def core50(folder: Path, download: bool) -> RawData:
    """119,894 training and 44,972 test images (3, 128, 128) of 50 classes, or as many as the files hold."""
    folder = home(folder, "CORe50")
    require_files(NAME, folder, [folder / SUBFOLDER / f"s{session}" for session in SESSIONS], REMEDY)
    train = _sessions(folder, [session for session in SESSIONS if session not in TEST_SESSIONS])
    # ImageNet's statistics: the images are photographs too, and none of their own are published.
    transform = ImageTransform((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return RawData(train, _sessions(folder, TEST_SESSIONS), NUM_CLASSES, transform)


def _sessions(folder: Path, sessions: tuple[int, ...] | list[int]) -> ImageFiles:
    """The images of some sessions, session by session: their order is that of the recordings."""
    names: list[str] = []
    labels = []
    for session in sessions:
        places = [folder / SUBFOLDER / f"s{session}" / f"o{label + 1}" for label in range(NUM_CLASSES)]
        require_files(NAME, folder, places, REMEDY)
        of_objects = [image_names(NAME, folder, place) for place in places]
        names.extend(chain.from_iterable(of_objects))
        labels.append(labels_of([len(of_object) for of_object in of_objects]))
    return ImageFiles(NAME, folder, names, torch.cat(labels), SIZE)
