"""What a checkpoint is: everything the next step depends on, of every rank, valid all at once or not at all.

A folder with model.pt (strategy, rank 0), rank_<k>.pt (generators and running statistics of that rank), buffer/ (see
buffer/snapshot.py) and, written last, checkpoint.json with the SHA-256 of each file and of itself. It is written under
another name and renamed when it is whole, so a folder that is called as one of `NAMES` and has no checkpoint.json has
been damaged. When and by whom checkpoints are written is in checkpointer.py.
"""

import copy
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from reprise.buffer import check_saved
from reprise.cl_models.base import ContinualModel
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import SharedUserError, UserError
from reprise.runtime.files import atomic_write, disk_errors, sha256
from reprise.runtime.seeds import rng_state, set_rng_state

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
MODEL = "model.pt"
BUFFER = "buffer"
FORMAT = 2
NAMES = ("task_*", "step_*")


@dataclass(frozen=True)
class Progress:
    """How far a run is. Counts are over all ranks; tasks, epochs and steps are those that are done.

    epoch, samples: of the task under way; samples: of the epoch under way. trained: its training is over, and it has
    not been evaluated. rows: lines in metrics.csv. class_il, task_il: rows of the matrices; untrained: of the untrained
    model. Reconstruction: class_il holds rows of mean absolute errors, task_il stays empty.
    """

    fingerprint: dict[str, Any]
    tasks_done: int = 0
    epoch: int = 0
    samples: int = 0
    trained: bool = False
    steps: int = 0
    images: int = 0
    rows: int = 0
    train_seconds: float = 0.0
    class_il: tuple[tuple[float, ...], ...] = ()
    task_il: tuple[tuple[float, ...], ...] = ()
    untrained: tuple[float, ...] = ()

    @property
    def between_tasks(self) -> bool:
        return not (self.epoch or self.samples or self.trained)

    @property
    def name(self) -> str:
        """Of its checkpoint's folder."""
        if self.between_tasks and self.tasks_done:
            return f"task_{self.tasks_done - 1:02d}"
        return f"step_{self.steps:08d}" + ("_trained" if self.trained else "")

    @property
    def age(self) -> tuple[int, bool, int, int, int]:
        """Orders the checkpoints of a run."""
        return self.tasks_done, self.trained, self.epoch, self.samples, self.steps


@dataclass(frozen=True)
class Checkpoint:
    """One that can be gone on from."""

    folder: Path
    progress: Progress
    world_size: int


_PROGRESS = TypeAdapter(Progress)
_FILES = TypeAdapter(dict[str, str])


class DamagedError(UserError):
    """A checkpoint that cannot be used, whatever the run: a file is missing, cut off or changed."""


# ---- writing


def write_manifest(folder: Path, progress: Progress, world_size: int, files: dict[str, str]) -> None:
    """Make the files in `folder` a checkpoint. files: name -> SHA-256. Raises UserError on disk errors."""
    body = {"format": FORMAT, "progress": asdict(progress), "world_size": world_size, "files": files}
    with atomic_write(folder / MANIFEST) as stream:
        json.dump({**body, "sha256": _digest(body)}, stream, indent=1)


def rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.pt"


def state_of_rank(strategy: ContinualModel) -> dict[str, Any]:
    """What differs between ranks: generators, and the running statistics of batches that only this rank has seen."""
    return {
        "rng": rng_state(),
        "augment_rng": strategy.parts.augment_rng.get_state(),
        "statistics": on_host(_statistics(strategy)),
    }


def on_host(state: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples, with copies of their tensors in host memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_host(value) for value in state)
    return copy.copy(state)


# ---- reading


def find(path: str | Path) -> list[Path]:
    """The checkpoints that `path` means, newest first: it is one itself, or a run's folder, or its checkpoints/.

    Those whose manifest cannot be read come first.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return [path]
    found = [folder for pattern in NAMES for at in (path / "checkpoints", path) for folder in at.glob(pattern)]

    def newest_last(folder: Path) -> tuple[bool, tuple[int, ...]]:
        return (False, read_manifest(folder).progress.age) if is_readable(folder) else (True, ())

    return sorted((folder for folder in found if folder.is_dir()), key=newest_last, reverse=True)


def is_readable(folder: Path) -> bool:
    """Whether it says how far it is; its files may be damaged all the same."""
    try:
        read_manifest(folder)
    except DamagedError:
        return False
    return True


def read_manifest(folder: Path) -> Checkpoint:
    """Raises DamagedError."""
    _, checkpoint = _read_manifest(folder)
    return checkpoint


def choose(path: str | Path, fingerprint: dict[str, Any], comm: Communicator, *, falls_back: bool) -> Checkpoint | None:
    """The newest checkpoint that `path` means; None where there is none. Collective.

    falls_back: a damaged one is named and the one before it taken; otherwise it is refused. Raises SharedUserError for
    that, when none is left, and for a checkpoint of another configuration, naming what differs.
    """
    candidates = comm.broadcast_object(comm.agree(lambda: find(path)), name="checkpoints")
    for folder in candidates:
        problem = _check(folder, comm)
        if not problem:
            checkpoint = comm.agree(lambda folder=folder: read_manifest(folder))  # type: ignore[misc]
            _compare(checkpoint, fingerprint)
            return checkpoint
        if not falls_back:
            raise SharedUserError(f"{problem}; load an earlier one")
        if comm.rank == 0:
            logger.warning("%s; going back to the one before", problem)
    if candidates:
        raise SharedUserError(f"no checkpoint in '{path}' is whole; restore one of them, or begin anew without it")
    return None


def load(checkpoint: Checkpoint, strategy: ContinualModel, comm: Communicator) -> dict[str, Any]:
    """Put a checkpoint's strategy and this rank's generators back. The buffer is restored by whoever builds it.

    Returns this rank's means of the epoch under way; {} on another number of ranks.
    """
    strategy.load_state_dict(torch.load(checkpoint.folder / MODEL, weights_only=True, map_location="cpu"))
    if checkpoint.world_size == comm.size:
        state = torch.load(checkpoint.folder / rank_file(comm.rank), weights_only=True)
        set_rng_state(state["rng"])
        strategy.parts.augment_rng.set_state(state["augment_rng"])
        for name, own in _statistics(strategy).items():
            own.copy_(state["statistics"][name])
        return dict(state["means"])
    if comm.rank == 0:
        saved_by, now = checkpoint.world_size, comm.size
        logger.warning("checkpoint of %d ranks on %d: generators start anew from the seed", saved_by, now)
    return {}


def _statistics(strategy: ContinualModel) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in strategy.network.named_buffers() if buffer.is_floating_point()}


def _read_manifest(folder: Path) -> tuple[dict[str, str], Checkpoint]:
    path = folder / MANIFEST
    try:
        with disk_errors("read", path):
            text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        if manifest.pop("sha256") != _digest(manifest):
            raise ValueError("its own SHA-256 differs")
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
        files = _FILES.validate_python(manifest["files"])
        progress = _PROGRESS.validate_python(manifest["progress"])
        return files, Checkpoint(folder, progress, int(manifest["world_size"]))
    except UserError as error:
        raise DamagedError(f"checkpoint '{folder}' is not whole: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"checkpoint '{path}' is damaged ({' '.join(str(error).split())})") from error


def _check(folder: Path, comm: Communicator) -> str:
    """What is wrong with a checkpoint; empty if nothing is. Every rank checks its share of the files. Collective."""
    problem = ""
    try:
        files, _ = _read_manifest(folder)
        for name, digest in list(files.items())[comm.rank :: comm.size]:
            if not (folder / name).is_file():
                raise DamagedError(f"checkpoint '{folder}': {name} is missing")
            with disk_errors("read", folder / name):
                found = sha256(folder / name)
            if found != digest:
                raise DamagedError(f"checkpoint '{folder}': {name} is damaged (SHA-256 differs)")
        if (folder / BUFFER).exists():
            check_saved(folder / BUFFER, comm.rank, comm.size)
    except UserError as error:
        problem = str(error)
    return next(filter(None, comm.allgather_object(problem, name="checkpoint")), "")


def _compare(checkpoint: Checkpoint, fingerprint: dict[str, Any]) -> None:
    saved = checkpoint.progress.fingerprint
    for key, value in fingerprint.items():
        if saved.get(key) != value:
            raise SharedUserError(
                f"checkpoint '{checkpoint.folder}' was made with {key} {saved.get(key)!r}, this run has {value!r}; "
                f"use the same {key} or start a new run"
            )


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
