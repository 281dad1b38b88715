"""Slca and Slcapp: all weights learn slowly, and the heads are aligned on pseudo-features after each task.

SLCA: Zhang et al. 2023, arXiv 2303.05118. SLCA++: Zhang et al. 2024, arXiv 2408.08295, where low-rank modules with
norms, biases and the class token stand for all weights.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reprise.cl_models.base import STRATEGIES, Parts, TaskLike
from reprise.cl_models.peft.alignment import sce, slca_feature_scale, slca_mean_scale
from reprise.cl_models.peft.tuned import Group, Tuned


@STRATEGIES.register("Slca")
class Slca(Tuned):
    """Full fine-tuning with a tiny learning rate for the backbone. The next task goes on from the heads as they were
    before their alignment.
    """

    keeps_statistics = True
    choices: ClassVar[Mapping[str, Any]] = {
        **Tuned.choices,
        "statistics": "covariance",
        "ca_lr": 0.01,
        "ca_epochs": 5,
        "ca_batch": 256,
        "logit_norm": 0.1,
        "backbone_lr": 0.01,
    }

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._before: dict[str, Tensor] = {}  # the heads, before their alignment
        self._before_of = -1  # the task after which that was

    def modules_of(self, task: int) -> int | None:
        return None

    def own_weights(self) -> dict[str, nn.Parameter]:
        """Those of the backbone that learn."""
        return {name: value for name, value in self.network.named_parameters() if not name.startswith("head.")}

    def groups(self, task: int) -> list[Group]:
        own = {"params": list(self.own_weights().values()), "lr_scale": self.options["backbone_lr"]}
        return [*super().groups(task), own]

    def begin_task(self, task: TaskLike | None) -> None:
        if self._before:
            self.heads.load_state_dict(self._before)
        super().begin_task(task)

    def consolidate(self, task: TaskLike, samples: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        if self._before_of < task.index:  # and not when a rank was lost during the alignment, and it is done again
            self._before = {name: value.clone() for name, value in self.heads.state_dict().items()}
            self._before_of = task.index
        self.heads.load_state_dict(self._before)
        super().consolidate(task, samples)

    def scales(self) -> dict[str, Any]:
        current = len(self.classes) - 1
        return {"logit_norm": self.options["logit_norm"], "mean_scale": slca_mean_scale(current)}

    def state_dict(self) -> dict[str, Any]:
        own = {name: value.detach() for name, value in self.own_weights().items()}
        return {**super().state_dict(), "before": self._before, "before_of": self._before_of, "own": own}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.own_weights().items():
            value.copy_(state["own"][name])
        super().load_state_dict(state)
        self._before = {name: value.to(self.parts.device) for name, value in state["before"].items()}
        self._before_of = state["before_of"]


@STRATEGIES.register("Slcapp")
class Slcapp(Slca):
    """SLCA++: one shared module (as published: LoRA of rank 4 everywhere), norms, biases and the class token learn;
    symmetric cross-entropy; features of older tasks are shrunk in the alignment and their heads' inputs stretched at
    evaluation.
    """

    choices: ClassVar[Mapping[str, Any]] = {
        **Slca.choices,
        "rank": 4,
        "alpha": 3.2,
        "targets": ["q", "k", "v", "fc1", "fc2"],
        "init": "svd",
        "blocks": "all",
        "backbone_lr": 0.1,
    }

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        weights = self.options["symmetric"] or (1.0, 0.1)
        self._loss = partial(sce, a=weights[0], b=weights[1])

    def modules_of(self, task: int) -> int | None:
        return 0

    def own_weights(self) -> dict[str, nn.Parameter]:
        return {
            name: value
            for name, value in super().own_weights().items()
            if "norm" in name or name.endswith(".bias") or name == "cls_token"
        }

    def groups(self, task: int) -> list[Group]:
        head, module, own = super().groups(task)
        module["lr_scale"] = 0.1 if task else 0.5
        return [head, module, own]

    def per_sample(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self._loss(outputs, y)

    def scales(self) -> dict[str, Any]:
        scale = slca_feature_scale(len(self.classes) - 1, self.options["feature_scale"])
        return {"logit_norm": self.options["logit_norm"], "feature_scale": scale}

    def answers(self, x: Tensor) -> Tensor:
        age = {task: len(self.classes) - 1 - task for task in range(len(self.classes))}
        self.heads.stretch({task: 1 + self.options["feature_scale"] * years for task, years in age.items()})
        logits = super().answers(x)
        self.heads.stretch({})
        return logits
