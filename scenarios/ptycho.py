"""X-ray ptychography: reconstruct the amplitude and phase of a patch of the object from its diffraction pattern.

Expected inside --dataset-dir, or inside its Ptycho/: train/<scan number>/ with cropped_exp_diffr_data.npy, patterns
(n, H, W) of real numbers, and patched_psi.npy, the complex object patches (n, H, W) of a conventional reconstruction.
Patterns are read when a batch is gathered, never as a whole. ptycho_synthetic.py needs no files.

The archive has no test scans (the reference splits patterns at random, too): a seeded share of each scan is held out.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.runtime.seeds import torch_generator
from reprise.scenarios.raw import DATASETS, RawData, damaged, home, require_files, unreadable
from reprise.scenarios.task import Batch, Divisible, Indices, Rows
from reprise.scenarios.transforms import Unchanged

logger = logging.getLogger(__name__)

NAME = "ptycho"
PATTERNS, PATCHES = "cropped_exp_diffr_data.npy", "patched_psi.npy"
VOID = 0.02  # rad^2: a patch whose mean squared phase is below shows no object
TEST_SHARE = 0.1  # of each scan's patterns; at least one
REMEDY = "put the scans there as train/<scan number>/ (--download cannot fetch them)"
AGAIN = "copy the scan again"
_CHUNK = 64  # patches looked at together; of 256x256 they take 32 MiB


@DATASETS.register(NAME)
def ptycho(folder: Path, download: bool) -> RawData:
    """Patterns (1, H, W) and targets (2, H, W), amplitude and phase, float32, of every scan there is; 256x256 pixels.

    Scans are in the order of their numbers. To find the void patterns every patch is read once.
    """
    root = home(folder, "Ptycho") / "train"
    require_files(NAME, root.parent, [root], REMEDY)
    numbers = sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal())
    kept = {number: _kept_patterns(root / str(number)) for number in numbers}
    for number in [number for number in numbers if not len(kept[number])]:
        logger.warning("data set '%s': scan %d is left out, all its patterns are void", NAME, number)
        del kept[number]
    if not kept:
        raise UserError(f"data set '{NAME}': '{root}' holds no scan with an object in it; {REMEDY}")
    shapes = {number: _opened(root / str(number) / PATTERNS).shape[1:] for number in kept}
    first = next(iter(kept))
    for number, shape in shapes.items():
        if shape != shapes[first]:
            reason = f"patterns of {shape} pixels, those of scan {first} have {shapes[first]}"
            raise damaged(NAME, root / str(number) / PATTERNS, reason, AGAIN)
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number, patterns in kept.items():
        held_out = held_out_of(len(patterns), number)
        for part, chosen in zip(parts, (~held_out, held_out), strict=True):
            part.append(torch.stack([torch.full((int(chosen.sum()),), number), patterns[chosen]], dim=1))
    train, test = (DiffractionFiles(root, torch.cat(part), shapes[first]) for part in parts)
    return RawData(train, test, 1, Unchanged(), scans=(train.scans(), test.scans()))


def held_out_of(num: int, scan: int) -> Tensor:
    """Which of a scan's patterns are for testing, bool (num,). The same for every --seed."""
    order = torch.randperm(num, generator=torch_generator(0, "held-out patterns", scan))
    chosen = torch.zeros(num, dtype=torch.bool)
    chosen[order[: max(1, round(TEST_SHARE * num))]] = True
    return chosen


class DiffractionFiles(Divisible):
    """Patterns in the files of scans. places: (n, 2), int64, scan number and position in its file."""

    sample_dtype = torch.float32

    def __init__(self, root: Path, places: Tensor, shape: tuple[int, ...]) -> None:
        self.root = root
        self.places = places
        self.sample_shape = (1, *shape)
        self.target_shape = (2, *shape)
        self.labels = torch.zeros(len(places), dtype=torch.int64)

    def scans(self) -> Tensor:
        """The scan of every pattern, (n,)."""
        return self.places[:, 0].contiguous()

    def gather(self, indices: Indices, out: Rows = (None, None)) -> Batch:
        places = self.places[torch.as_tensor(indices, dtype=torch.int64)]
        x, y = self.room(len(places), out)
        for scan in torch.unique(places[:, 0]).tolist():
            rows = (places[:, 0] == scan).nonzero().squeeze(1).numpy()
            positions = places[rows, 1].numpy()
            x.numpy()[rows, 0] = _opened(self.root / str(scan) / PATTERNS)[positions]
            patches = _opened(self.root / str(scan) / PATCHES)[positions]
            y.numpy()[rows, 0], y.numpy()[rows, 1] = np.abs(patches), np.angle(patches)
        return x, y

    def take(self, rows: Tensor, labels: Tensor) -> "DiffractionFiles":
        return DiffractionFiles(self.root, self.places[rows], self.sample_shape[1:])

    def part(self, start: int, end: int) -> "DiffractionFiles":
        return DiffractionFiles(self.root, self.places[start:end], self.sample_shape[1:])


@cache
def _opened(file: Path) -> npt.NDArray[Any]:
    """The array of a file, mapped into memory: pages are read when they are used, and are shared by all processes."""
    try:
        array: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(NAME, file, error) from error
    except (ValueError, EOFError) as error:  # no array, of objects, or cut short
        raise damaged(NAME, file, " ".join(str(error).split()), AGAIN) from error
    wanted = "complex" if file.name == PATCHES else "real"
    if array.ndim != 3 or array.dtype.kind not in ("c" if wanted == "complex" else "fiu"):
        raise damaged(NAME, file, f"an array {array.shape} of {array.dtype}, not (n, H, W) of {wanted} numbers", AGAIN)
    return array


def _kept_patterns(scan: Path) -> Tensor:
    """Positions of the patterns that show an object, int64; checks the scan's two files against each other."""
    require_files(NAME, scan, [scan / PATTERNS, scan / PATCHES], AGAIN)
    patches, patterns = _opened(scan / PATCHES), _opened(scan / PATTERNS)
    if patches.shape != patterns.shape:
        raise damaged(NAME, scan / PATCHES, f"shape {patches.shape}, its patterns have {patterns.shape}", AGAIN)
    energy = np.concatenate(
        [np.zeros(0)]
        + [
            np.square(np.angle(patches[start : start + _CHUNK])).mean(axis=(1, 2))
            for start in range(0, len(patches), _CHUNK)
        ]
    )
    wrong = np.flatnonzero(~np.isfinite(energy))
    if len(wrong):
        raise damaged(NAME, scan / PATCHES, f"patch {wrong[0]} has a value that is no number", AGAIN)
    return torch.from_numpy(np.flatnonzero(energy >= VOID))
