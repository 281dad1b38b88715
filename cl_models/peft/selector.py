"""Selector: one module that learns slowly over all tasks, whose classifier tells which task a sample belongs to.

The first stage of HiDe-PET (arXiv 2407.05229), there called task-identity inference, and of L2C. A run of it is read by
the second stage (hide.py, l2c.py), which needs it as it was after each task.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from reprise.cl_models.base import STRATEGIES, Parts, TaskLike
from reprise.cl_models.peft.bank import attach
from reprise.cl_models.peft.heads import TaskHeads
from reprise.cl_models.peft.tuned import Group, Tuned, num_features, technique
from reprise.runtime.errors import SharedUserError


@STRATEGIES.register("Selector")
class Selector(Tuned):
    """One shared module, slow by `continual_type`; statistics and head alignment after each task."""

    keeps_statistics = True

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._epoch = 0
        self._snapshots: list[dict[str, Any]] = []  # after each task

    def modules_of(self, task: int) -> int | None:
        return 0

    def groups(self, task: int) -> list[Group]:
        head, module = super().groups(task)
        kind = self.options["continual_type"]
        if kind == "slow_learner" or (kind == "first_sl" and task):
            module["lr_scale"] = self.options["slow_lr"]
        fixed = (kind == "first_adapt" and task) or (
            kind == "fix_and_tuning" and self._epoch < self.options["fix_epochs"]
        )
        return [head] if fixed else [head, module]

    def begin_epoch(self, epoch: int) -> None:
        before, self._epoch = self._epoch, epoch
        threshold = self.options["fix_epochs"]
        if self.options["continual_type"] == "fix_and_tuning" and (before < threshold) != (epoch < threshold):
            self.train(len(self.classes) - 1)

    def consolidate(self, task: TaskLike, samples: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        super().consolidate(task, samples)
        now = {"module": self.bank.state_of(0), "heads": self.heads.state_dict()}
        self._snapshots.append({part: {n: v.to("cpu", copy=True) for n, v in of.items()} for part, of in now.items()})

    def state_dict(self) -> dict[str, Any]:
        made = {"blocks": list(self.bank.blocks), "options": dict(self.options)}
        return {**super().state_dict(), "epoch": self._epoch, "snapshots": self._snapshots, "bank": made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch = state["epoch"]
        super().load_state_dict(state)
        self._snapshots = list(state["snapshots"])


class TrainedSelector:
    """A run of Selector on the network of another strategy, as it was after any of its tasks.

    digest: of its weights.
    """

    def __init__(self, parts: Parts) -> None:
        tuning = parts.tuning
        assert tuning is not None, "the strategy tunes modules"
        assert tuning.selector is not None, "the strategy needs a trained selector"
        state = tuning.selector
        if state["backbone"] != tuning.backbone:
            raise SharedUserError(
                "peft_config selector: its frozen backbone has other weights than this run's; use the same --backbone "
                "and pretrained file for both stages"
            )
        self._network: Any = parts.network
        self._snapshots = state["snapshots"]
        self._classes = state["classes"]
        self.digest = _digest(state["snapshots"])
        self._device = parts.device
        self._bank = attach(self._network, technique(state["bank"]["options"]), state["bank"]["blocks"])
        self._bank.requires_grad_(False)
        self._heads = TaskHeads(num_features(parts.network), tuning.num_classes, tuning.seed)
        self._task = -1

    def as_after(self, task: int, classes: tuple[int, ...]) -> None:
        """Be what the run was after a task, whose classes must have been these."""
        if task == self._task:
            return
        if task >= len(self._snapshots) or tuple(self._classes[task]) != classes:
            known = f"{len(self._snapshots)} task(s) trained" if task >= len(self._snapshots) else "other classes in it"
            raise SharedUserError(
                f"peft_config selector: the run does not go with task {task} of this one ({known}); finish it, with "
                "the same --dataset and --tasksets-config"
            )
        for earlier in range(max(self._task + 1, 0), task + 1):
            self._heads.add(earlier, self._classes[earlier], self._device)
        self._heads.load_state_dict(self._snapshots[task]["heads"])
        self._heads.requires_grad_(False)
        self._bank.load_state_of(0, self._snapshots[task]["module"])
        self._bank.requires_grad_(False)
        self._task = task

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """(n, C) for network inputs; the other banks of the network must be inactive."""
        self._bank.activate(0)
        features = self._network.forward_head(self._network.forward_features(x), pre_logits=True)
        self._bank.activate(None)
        logits: Tensor = self._heads(features)
        return logits


def _digest(snapshots: list[dict[str, Any]]) -> str:
    """A hash of all weights, whatever their order."""
    whole = hashlib.sha256()
    for snapshot in snapshots:
        for part in ("heads", "module"):
            for name, value in sorted(snapshot[part].items()):
                whole.update(f"{part}.{name}".encode())
                whole.update(value.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()
