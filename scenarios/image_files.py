"""Images that stay in their files: names and labels are in memory, a batch is decoded when it is asked for.

The data sets of imagenet.py, tiny_imagenet.py and core50.py are made of these. Decoding is per file, so it is work for
loader processes (--dataloader-workers); everything after it is batched (transforms.py, resized_crop.py).
"""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.scenarios.raw import damaged, unreadable
from reprise.scenarios.task import Batch, Divisible, Indices, Rows

SUFFIXES = (".jpeg", ".jpg", ".png")
DRAFT = 2  # times the size that is wanted: what a JPEG is decoded to at least, see ImageFiles._pixels


class ImageFiles(Divisible):
    """RGB images (3, size, size), uint8: the shorter side resized to `size`, the longer one cut to it in the middle.

    names: of the files, inside `folder`. Bilinear with antialias, as Resize and CenterCrop of torchvision do it.
    """

    target_shape = None
    sample_dtype = torch.uint8

    def __init__(
        self, dataset: str, folder: Path, names: Sequence[str] | npt.NDArray[np.bytes_], labels: Tensor, size: int
    ) -> None:
        assert len(names) == len(labels)
        self.dataset = dataset
        self.folder = folder
        # One block of bytes: a list of a million names would be copied page by page in every loader process.
        self.names = names if isinstance(names, np.ndarray) else np.array([os.fsencode(name) for name in names])
        self.labels = labels
        self.size = size
        self.sample_shape = (3, size, size)

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(bytes(self.names[index]))

    def gather(self, indices: Indices, out: Rows = (None, None)) -> Batch:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        x, y = self.room(len(rows), out)
        for place, row in zip(x, rows.tolist(), strict=True):
            place.copy_(_fitted(self._pixels(self.path(row)), self.size))
        torch.index_select(self.labels, 0, rows, out=y)
        return x, y

    def take(self, rows: Tensor, labels: Tensor) -> "ImageFiles":
        return ImageFiles(self.dataset, self.folder, self.names[rows.numpy()], labels, self.size)

    def part(self, start: int, end: int) -> "ImageFiles":
        return ImageFiles(self.dataset, self.folder, self.names[start:end], self.labels[start:end], self.size)

    def _pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """The pixels (h, w, 3) of a file.

        A large JPEG is decoded to 1/2, 1/4 or 1/8 of its size, with DRAFT times what is wanted left for the resize: the
        image differs by half a grey level on average, and a file of 3000x2200 pixels takes less than half the time.
        """
        try:
            with Image.open(path) as image:
                image.draft(None, (DRAFT * self.size, DRAFT * self.size))
                return np.array(image if image.mode == "RGB" else image.convert("RGB"))
        except Image.UnidentifiedImageError as error:
            raise self._damaged(path, "it is not an image") from error
        except OSError as error:
            if error.errno is None:  # of the decoder, not of the system
                raise self._damaged(path, str(error)) from error
            raise unreadable(self.dataset, path, error) from error
        except (SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
            raise self._damaged(path, " ".join(str(error).split())) from error

    def _damaged(self, path: Path, reason: str) -> UserError:
        return damaged(self.dataset, path, reason, "unpack it from the archive again")


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


def _fitted(pixels: npt.NDArray[np.uint8], size: int) -> Tensor:
    """Pixels (h, w, 3) as (3, size, size), uint8: the shorter side resized, the longer one cut.

    By torch, whose bilinear filter in fixed point is that of PIL to a rounding and takes a quarter of its time.
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    height, width = image.shape[1:]
    if (height, width) == (size, size):
        return image
    shorter = min(height, width)
    # torchvision's roundings, so that the image is the one it makes.
    high, wide = int(size * height / shorter), int(size * width / shorter)
    top, left = round((high - size) / 2), round((wide - size) / 2)
    resized = torch.nn.functional.interpolate(image[None], (high, wide), mode="bilinear", antialias=True)[0]
    return resized[:, top : top + size, left : left + size]
