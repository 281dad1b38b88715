"""Checkpoints at task ends: everything the next task depends on, of every rank, valid all at once or not at all.

checkpoints/task_<i>/ holds model.pt (strategy, rank 0), rank_<k>.pt (this rank's generators), buffer/ (see
buffer/snapshot.py) and, written last, checkpoint.json with the checksums. A folder without it is not a checkpoint.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reprise.buffer import RehearsalBuffer
from reprise.cl_models.base import ContinualModel
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write, sha256
from reprise.runtime.seeds import rng_state, set_rng_state

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is: tasks finished, steps, images, seconds, rows of the matrices, the untrained model's row.

    Reconstruction: class_il holds rows of mean absolute errors, task_il stays empty.
    """

    tasks_done: int
    steps: int
    images: int
    train_seconds: float
    class_il: list[list[float]]
    task_il: list[list[float]]
    untrained: list[float]
    fingerprint: dict[str, Any]


def save(
    folder: Path, progress: Progress, strategy: ContinualModel, buffer: RehearsalBuffer | None, comm: Communicator
) -> None:
    """Write a checkpoint to `folder`. Collective. A disk error is logged on rank 0 and training goes on without it."""
    problem = ""
    digests: dict[str, str] = {}
    try:
        if comm.rank == 0:
            (folder / MANIFEST).unlink(missing_ok=True)
            digests["model.pt"] = _write(folder / "model.pt", strategy.state_dict())
        own = {"rng": rng_state(), "augment_rng": strategy.parts.augment_rng.get_state()}
        digests[f"rank_{comm.rank:05d}.pt"] = _write(folder / f"rank_{comm.rank:05d}.pt", own)
    except (OSError, UserError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        problem = f"rank {comm.rank}: {str(error).splitlines()[0]}"
    reports = comm.allgather_object((problem, digests), name="checkpoint")
    problems = [text for text, _ in reports if text]
    if not problems and buffer is not None:
        try:
            buffer.save(folder / "buffer")
        except UserError as error:  # raised on every rank alike
            problems = [str(error)]
    if comm.rank:
        return
    if not problems:
        files = {name: digest for _, part in reports for name, digest in part.items()}
        manifest = {"progress": vars(progress), "world_size": comm.size, "files": files}
        try:
            with atomic_write(folder / MANIFEST) as stream:
                json.dump(manifest, stream, indent=1)
        except UserError as error:
            problems = [str(error)]
    if problems:
        logger.error("no checkpoint after task %d: %s", progress.tasks_done - 1, problems[0])


def find(path: str | Path) -> Path:
    """The checkpoint that `path` means: a checkpoint folder, or a run folder's newest one. Raises UserError."""
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    found = [m.parent for pattern in ("checkpoints/task_*", "task_*") for m in path.glob(f"{pattern}/{MANIFEST}")]
    if not found:
        raise UserError(f"no checkpoint in '{path}': expected {MANIFEST} there or in its checkpoints/; check the path")
    return max(found, key=lambda folder: int(folder.name.removeprefix("task_")))


def read(folder: Path, fingerprint: dict[str, Any]) -> Progress:
    """Check a checkpoint's files and configuration and return how far it got. Raises UserError naming what is wrong."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        progress = Progress(**manifest["progress"])
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint '{folder / MANIFEST}' is damaged ({error}); load an earlier one") from error
    for key, value in fingerprint.items():
        if progress.fingerprint.get(key) != value:
            raise UserError(
                f"checkpoint '{folder}' was made with {key} {progress.fingerprint.get(key)!r}, this run has {value!r}; "
                f"use the same {key} or start a new run"
            )
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise UserError(f"checkpoint '{folder}': {name} is missing; load an earlier one")
        if sha256(folder / name) != digest:
            raise UserError(f"checkpoint '{folder}': {name} is damaged (SHA-256 differs); load an earlier one")
    return progress


def load(folder: Path, strategy: ContinualModel, comm: Communicator) -> None:
    """Put a checkpoint's strategy and this rank's generators back. The buffer is restored by whoever builds it."""
    strategy.load_state_dict(torch.load(folder / "model.pt", weights_only=True, map_location="cpu"))
    own = folder / f"rank_{comm.rank:05d}.pt"
    saved_by = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["world_size"]
    if saved_by == comm.size:
        state = torch.load(own, weights_only=True)
        set_rng_state(state["rng"])
        strategy.parts.augment_rng.set_state(state["augment_rng"])
    elif comm.rank == 0:
        logger.warning("checkpoint of %d ranks on %d: generators start anew from the seed", saved_by, comm.size)


def _write(path: Path, state: dict[str, Any]) -> str:
    with atomic_write(path, "wb") as stream:
        torch.save(state, stream)
    return sha256(path)
