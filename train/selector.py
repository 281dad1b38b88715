"""Reads a finished run of Selector, the first stage of the strategies that choose a module for every sample."""

from pathlib import Path
from typing import Any

import torch

from reprise.runtime.dist import Communicator
from reprise.runtime.errors import SharedUserError
from reprise.train import checkpoint


def load(
    folder: str | None, model: str, fingerprint: dict[str, Any], num_tasks: int, comm: Communicator
) -> dict[str, Any]:
    """The state of the run in `folder`, for the strategy `model`, on the CPU: what TrainedSelector reads of it.
    Collective.

    fingerprint: what it must have in common with this run. Raises SharedUserError where there is none, where it
    differs, and where it has not trained all tasks.
    """
    if folder is None:
        raise SharedUserError(
            f"{model} needs a trained selector: run --model Selector first, on the same data and backbone, and name "
            "its folder with --peft-config selector=results/NAME"
        )
    found = checkpoint.choose(Path(folder).expanduser(), {**fingerprint, "model": "Selector"}, comm, falls_back=True)
    if found is None:
        raise SharedUserError(f"peft_config selector: no checkpoint in '{folder}'; name the folder of a Selector's run")
    if found.progress.tasks_done < num_tasks:
        raise SharedUserError(
            f"peft_config selector: '{folder}' has trained {found.progress.tasks_done} of {num_tasks} tasks; let it "
            "finish first, e.g. with --resume"
        )
    state = torch.load(found.folder / checkpoint.MODEL, weights_only=True, map_location="cpu")
    # The statistics may be many times as large, and would stay for the whole run.
    return {part: state[part] for part in ("backbone", "classes", "snapshots", "bank")}
