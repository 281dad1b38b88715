"""Images that stay in their files: names and labels are in memory, a batch is decoded when it is asked for.

Data sets of photographs (imagenet.py, cub.py and others) are made of these. Decoding is per file, so it is work for
loader processes (--dataloader-workers); everything after it is batched (transforms.py, resized_crop.py).
"""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.scenarios.raw import damaged, require_files, unreadable
from reprise.scenarios.task import Batch, Divisible, Indices, Rows

SUFFIXES = (".jpeg", ".jpg", ".png")
AGAIN = "unpack it from the archive again"
DRAFT = 2  # times the size that is wanted: what a JPEG is decoded to at least, see ImageFiles._pixels


class ImageFiles(Divisible):
    """RGB images (3, size, size), uint8: the shorter side resized to `size`, the longer one cut to it in the middle.

    names: of the files, inside `folder`. Bilinear, or bicubic, with antialias, as Resize and CenterCrop of torchvision
    do it. whole: both sides resized to `size` instead, so that nothing is cut and proportions change.
    """

    target_shape = None
    sample_dtype = torch.uint8

    def __init__(
        self,
        dataset: str,
        folder: Path,
        names: Sequence[str] | npt.NDArray[np.bytes_],
        labels: Tensor,
        size: int,
        *,
        bicubic: bool = False,
        whole: bool = False,
    ) -> None:
        assert len(names) == len(labels)
        self.dataset = dataset
        self.folder = folder
        # One block of bytes: a list of a million names would be copied page by page in every loader process.
        self.names = names if isinstance(names, np.ndarray) else np.array([os.fsencode(name) for name in names])
        self.labels = labels
        self.size = size
        self.bicubic = bicubic
        self.whole = whole
        self.sample_shape = (3, size, size)

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(bytes(self.names[index]))

    def gather(self, indices: Indices, out: Rows = (None, None)) -> Batch:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        x, y = self.room(len(rows), out)
        for place, row in zip(x, rows.tolist(), strict=True):
            place.copy_(self._fitted(self._pixels(self.path(row))))
        torch.index_select(self.labels, 0, rows, out=y)
        return x, y

    def take(self, rows: Tensor, labels: Tensor) -> "ImageFiles":
        return self._like(self.names[rows.numpy()], labels)

    def part(self, start: int, end: int) -> "ImageFiles":
        return self._like(self.names[start:end], self.labels[start:end])

    def resized(self, size: int, *, bicubic: bool, whole: bool) -> "ImageFiles":
        """The same files, decoded to another size."""
        return ImageFiles(self.dataset, self.folder, self.names, self.labels, size, bicubic=bicubic, whole=whole)

    def _like(self, names: npt.NDArray[np.bytes_], labels: Tensor) -> "ImageFiles":
        return ImageFiles(self.dataset, self.folder, names, labels, self.size, bicubic=self.bicubic, whole=self.whole)

    def _pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """The pixels (h, w, 3) of a file.

        A large JPEG is decoded to 1/2, 1/4 or 1/8 of its size, with DRAFT times what is wanted left for the resize: the
        image differs by half a grey level on average, and a file of 3000x2200 pixels takes less than half the time.
        """
        with opened(self.dataset, path) as image:
            image.draft(None, (DRAFT * self.size, DRAFT * self.size))
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))

    def _fitted(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Pixels (h, w, 3) as (3, size, size), uint8.

        By torch, whose filter in fixed point is that of PIL to a rounding and takes a quarter of its time.
        """
        image, size = torch.from_numpy(pixels).permute(2, 0, 1), self.size
        height, width = image.shape[1:]
        if (height, width) == (size, size):
            return image
        # torchvision's roundings, so that the image is the one it makes.
        shorter = min(height, width)
        high, wide = (size, size) if self.whole else (int(size * height / shorter), int(size * width / shorter))
        top, left = round((high - size) / 2), round((wide - size) / 2)
        mode = "bicubic" if self.bicubic else "bilinear"
        resized = torch.nn.functional.interpolate(image[None], (high, wide), mode=mode, antialias=True)[0]
        return resized[:, top : top + size, left : left + size]


@contextmanager
def opened(dataset: str, path: Path) -> Iterator[Image.Image]:
    """An image to decode in the body; what goes wrong with it there is a UserError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except Image.UnidentifiedImageError as error:
        raise damaged(dataset, path, "it is not an image", AGAIN) from error
    except OSError as error:
        if error.errno is None:  # of the decoder, not of the system
            raise damaged(dataset, path, str(error), AGAIN) from error
        raise unreadable(dataset, path, error) from error
    except (SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise damaged(dataset, path, " ".join(str(error).split()), AGAIN) from error


def image_names(dataset: str, root: Path, folder: Path) -> list[str]:
    """The images of `folder`, sorted, as names inside `root`; UserError when there is none."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
    if not names:
        raise UserError(f"data set '{dataset}': folder '{folder}' holds no images; unpack the archive again")
    inside = folder.relative_to(root)
    return [str(inside / name) for name in names]


def labels_of(counts: Sequence[int]) -> Tensor:
    """Label k counts[k] times, for every k in order."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))


def in_class_folders(
    dataset: str, root: Path, parts: tuple[str, str], size: int, remedy: str
) -> tuple[ImageFiles, ImageFiles, int]:
    """Training and test images of <part>/<class>/, and the number of classes; label k is the k-th training folder."""
    train, test = (root / part for part in parts)
    require_files(dataset, root, [train, test], remedy)
    classes = class_folders(dataset, train, remedy)
    # By name and not by position: a class without test images must not shift the labels of those after it.
    unknown = sorted({path.name for path in test.iterdir() if path.is_dir()} - set(classes))
    if unknown:
        raise damaged(dataset, test / unknown[0], f"there is no such class in {parts[0]}/", remedy)

    def images(part: Path) -> ImageFiles:
        names = [image_names(dataset, root, part / name) if (part / name).is_dir() else [] for name in classes]
        return ImageFiles(dataset, root, list(chain.from_iterable(names)), labels_of([len(n) for n in names]), size)

    return images(train), images(test), len(classes)


def class_folders(dataset: str, folder: Path, remedy: str) -> list[str]:
    """The names of the folders inside `folder`, sorted; UserError when there is none."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise UserError(f"data set '{dataset}': '{folder}' has no class folders; {remedy}")
    return classes


def require_listed(dataset: str, root: Path, names: Sequence[str], source: Path) -> None:
    """Raise UserError, naming the list `source`, for the first of `names` that is no file inside `root`.

    Folders are looked through once: asking for every file by itself takes minutes on a shared disk.
    """
    if not names:
        raise damaged(dataset, source, "it names no images", AGAIN)
    present: dict[str, set[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in present:
            try:
                present[folder] = set(os.listdir(root / folder))
            except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name with a zero byte
                present[folder] = set()
            except OSError as error:
                raise unreadable(dataset, root / folder, error) from error
        if file not in present[folder]:
            raise damaged(dataset, source, f"it names '{name}', which is not in '{root}'", "unpack the images again")
