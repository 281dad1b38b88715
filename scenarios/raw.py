"""What a data set is before it becomes tasks, and the registry of data sets. One file per family fills the registry.

scenarios/scenario.py calls an entry with the folder of --dataset-dir and the wish to download; entries read files and
know nothing of tasks, ranks or samplers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.runtime.registry import Registry
from reprise.scenarios.transforms import Transform


@dataclass(frozen=True)
class RawData:
    """All samples of a data set, un-augmented: x (n, C, H, W) uint8, y (n,) int64 in 0 .. num_classes - 1."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    transform: Transform

    def __post_init__(self) -> None:
        for x, y in ((self.x_train, self.y_train), (self.x_test, self.y_test)):
            assert x.ndim == 4
            assert len(x) == len(y)
            assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)


# Entry: (folder, download) -> RawData. Network access happens only with download=True and only for absent files.
DATASETS: Registry[Callable[[Path, bool], RawData]] = Registry("data set")


def require_files(dataset: str, folder: Path, files: Sequence[Path], remedy: str) -> None:
    """Raise UserError naming the folder and what it lacks, unless every one of `files` (inside `folder`) is there."""
    if not folder.is_dir():
        raise UserError(f"data set '{dataset}': folder '{folder}' does not exist; set --dataset-dir, or {remedy}")
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        raise UserError(f"data set '{dataset}': '{folder}' lacks {', '.join(missing)}; set --dataset-dir, or {remedy}")


def damaged(dataset: str, file: Path, reason: str) -> UserError:
    """The error for a file that is there but cannot be right; `reason` says what is wrong with it."""
    return UserError(
        f"data set '{dataset}': file '{file}' is damaged ({reason}); delete it and fetch it again, e.g. with --download"
    )


def download_failed(dataset: str, folder: Path, error: Exception) -> UserError:
    """The error for a download that did not work."""
    reason = " ".join(str(error).split())
    return UserError(
        f"data set '{dataset}': download to '{folder}' failed ({reason}); check the network, or put the files there"
    )
