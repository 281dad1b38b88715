"""What a data set is before it becomes tasks, and the registry of data sets. One file per family fills the registry.

scenarios/scenario.py calls an entry with the folder of --dataset-dir and the wish to download; entries read files and
know nothing of tasks, ranks or samplers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.runtime.registry import Registry
from reprise.scenarios.task import Divisible
from reprise.scenarios.transforms import Transform


@dataclass(frozen=True)
class RawData:
    """All samples of a data set, un-augmented. labels: in 0 .. num_classes - 1; one class where there are targets.

    scans: where there are targets, the scan of every training and of every test sample (n,), int64, ascending.
    """

    train: Divisible
    test: Divisible
    num_classes: int
    transform: Transform
    scans: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        for name in ("sample_shape", "sample_dtype", "target_shape"):
            assert getattr(self.train, name) == getattr(self.test, name), name
        assert (self.scans is None) == (self.train.target_shape is None)


# Entry: (folder, download) -> RawData. Network access happens only with download=True and only for absent files.
DATASETS: Registry[Callable[[Path, bool], RawData]] = Registry("data set")

FETCH_AGAIN = "delete it and fetch it again, e.g. with --download"


def home(folder: Path, own: str) -> Path:
    """Where a data set's files lie: in `own`, the subfolder that the reference gives it, or else in `folder` itself."""
    return folder / own if (folder / own).is_dir() else folder


def require_files(dataset: str, folder: Path, files: Sequence[Path], remedy: str) -> None:
    """Raise UserError naming the folder and what it lacks, unless all `files`, or folders, inside it are there."""
    if not folder.is_dir():
        raise UserError(f"data set '{dataset}': folder '{folder}' does not exist; set --dataset-dir, or {remedy}")
    missing = [str(file.relative_to(folder)) for file in files if not file.exists()]
    if missing:
        raise UserError(f"data set '{dataset}': '{folder}' lacks {', '.join(missing)}; set --dataset-dir, or {remedy}")


def damaged(dataset: str, file: Path, reason: str, remedy: str = FETCH_AGAIN) -> UserError:
    """The error for a file that is there but cannot be right; `reason` says what is wrong with it."""
    return UserError(f"data set '{dataset}': file '{file}' is damaged ({reason}); {remedy}")


def text_lines(dataset: str, file: Path, remedy: str = FETCH_AGAIN) -> list[str]:
    """The lines of a text file; UserError when it cannot be read, is not text or is empty."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        raise unreadable(dataset, file, error) from error
    except UnicodeDecodeError as error:
        raise damaged(dataset, file, "it is not text", remedy) from error
    if not lines:
        raise damaged(dataset, file, "it is empty", remedy)
    return lines


def unreadable(dataset: str, file: Path, error: OSError) -> UserError:
    """The error for a file that the system will not read."""
    return UserError(f"data set '{dataset}': cannot read '{file}': {error.strerror or error}")


def download_failed(dataset: str, folder: Path, error: Exception) -> UserError:
    """The error for a download that did not work."""
    reason = " ".join(str(error).split())
    return UserError(
        f"data set '{dataset}': download to '{folder}' failed ({reason}); check the network, or put the files there"
    )
