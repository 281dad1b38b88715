"""Arrays and annotations in MATLAB's files (.mat), which older data sets come with: svhn.py, cars.py, dogs.py."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reprise.scenarios.raw import damaged, unreadable


def read_mat(dataset: str, file: Path, names: tuple[str, ...], remedy: str) -> list[npt.NDArray[Any]]:
    """The variables `names` of a file, each at least one-dimensional and without axes of length 1.

    UserError when the file cannot be read, is no such file, or lacks one of them.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(file, variable_names=names, squeeze_me=True)
    except Exception as error:  # what a damaged file raises is anybody's guess
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the reader
            raise unreadable(dataset, file, error) from error
        raise damaged(dataset, file, f"{type(error).__name__}: {' '.join(str(error).split())}", remedy) from error
    for name in names:
        if name not in content:
            raise damaged(dataset, file, f"it has no variable '{name}'", remedy)
    return [np.atleast_1d(content[name]) for name in names]


def from_zero(dataset: str, file: Path, labels: npt.NDArray[Any], num_classes: int, remedy: str) -> Tensor:
    """Labels (n,) that count from 1 to num_classes, as MATLAB counts, to int64 from 0; UserError for any other."""
    try:
        numbers = labels.astype(np.int64)
    except (TypeError, ValueError) as error:
        raise damaged(dataset, file, "its labels are not numbers", remedy) from error
    wrong = numbers[(numbers < 1) | (numbers > num_classes)]
    if len(wrong):
        raise damaged(dataset, file, f"label {wrong[0]} is not in 1 to {num_classes}", remedy)
    return torch.from_numpy(numbers - 1)
