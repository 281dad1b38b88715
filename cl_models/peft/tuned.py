"""Tuned: what strategies on a frozen pre-trained vision transformer share.

The backbone stays as it is; modules of a bank (bank.py) and a head per task (heads.py) are trained, one task after
another. What is trained at a time is all that the optimiser has and all that travels between ranks. After each task its
classes' statistics are taken from its samples once more (statistics.py), and the heads may be aligned (alignment.py).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reprise.cl_models.base import REPLAY, ContinualModel, Metrics, Parts, TaskLike, mask_logits
from reprise.cl_models.peft.adapter import Adapter
from reprise.cl_models.peft.alignment import Alignment, align
from reprise.cl_models.peft.bank import Bank, Technique, attach
from reprise.cl_models.peft.heads import TaskHeads
from reprise.cl_models.peft.lora import LoRA
from reprise.cl_models.peft.prefix import Prefix
from reprise.cl_models.peft.prompt import Prompt
from reprise.cl_models.peft.statistics import ClassStatistics
from reprise.runtime.errors import SharedUserError
from reprise.runtime.seeds import derive, torch_generator

logger = logging.getLogger(__name__)

Group = dict[str, Any]
"""Parameters that are stepped alike: "params" and "lr_scale", a factor of the learning rate."""

_FIRST_BLOCKS = 5
_ROWS = 128  # replayed at a time


class Tuned(ContinualModel):
    """A frozen backbone with modules and heads per task. Subclasses say which module a task trains and answers with."""

    tunes = True
    keeps_statistics: ClassVar[bool] = False
    """Class statistics are taken after each task, and the heads aligned where the options ask for it."""
    rehearses: ClassVar[bool] = True
    """Samples drawn from a buffer, where there is one, are trained on."""
    choices: ClassVar[Mapping[str, Any]] = {
        "rank": 5,
        "alpha": 1.0,
        "targets": ["k", "v"],
        "init": "kaiming",
        "statistics": "multi-centroid",
        "ca_lr": 0.005,
        "ca_epochs": 30,
        "ca_batch": 120,
        "inference": "hard",
        "topk_by": "class",
        "combine": "logit",
        "renormalise": False,
    }
    """What options are that the user leaves open; those of HiDe-PET."""
    draws = (REPLAY,)
    hyperparameters = ()

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        assert parts.tuning is not None, f"{type(self).__name__} tunes modules"
        self.tuning = parts.tuning
        asked = parts.tuning.options
        self.options = {**asked, **{key: value for key, value in self.choices.items() if asked[key] is None}}
        self.buffer = parts.buffer
        self.replays = parts.buffer is not None and any(parts.buffer.spec.draws)
        self.network.requires_grad_(False)
        self.heads = TaskHeads(num_features(self.network), self.tuning.num_classes, self.tuning.seed)
        self.network.head = self.heads
        self.bank = self.attach(technique(self.options))
        self.classes: list[tuple[int, ...]] = []  # of each task begun
        self._others = torch.empty(0, dtype=torch.bool)  # (C,): those that are not of the present task
        self.statistics = ClassStatistics(
            self.options["statistics"],
            comm=self.tuning.comm,
            seed=self.tuning.seed,
            centroids=self.options["centroids"],
        )

    # ---- what subclasses say

    def modules_of(self, task: int) -> int | None:
        """The bank's module that a task trains; None where it trains no module."""
        raise NotImplementedError

    def groups(self, task: int) -> list[Group]:
        """What a task trains: its head first, then its module."""
        head = 0.1 if self.options["larger_prompt_lr"] else 1.0
        groups = [{"params": self.heads.of(self.classes[task]), "lr_scale": head}]
        module = self.modules_of(task)
        if module is not None:
            groups.append({"params": self.bank.parameters_of(module), "lr_scale": 1.0})
        return groups

    def prepare(self, task: int) -> None:
        """Make the module that a task trains."""
        module = self.modules_of(task)
        if module is not None and module not in self.bank.tasks:
            like = self.bank.tasks[-1] if self.bank.tasks and self.options["warm_start"] else None
            generator = torch_generator(self.tuning.seed, "module", module)
            self.bank.add(module, like=like, generator=generator)

    # ---- called by the loop

    def begin_task(self, task: TaskLike | None) -> None:
        assert task is not None, "a task-free stream has no tasks to tune modules for"
        self.classes.append(task.classes)
        self.heads.add(task.index, task.classes, self.parts.device)
        self.prepare(task.index)
        # Seeds make them alike, and singular vectors of other processors need not be.
        trained = [parameter.detach() for group in self.groups(task.index) for parameter in group["params"]]
        self.tuning.comm.broadcast_tensors(trained, name="what a task trains")
        self.train(task.index)

    def train(self, task: int) -> None:
        """Train what this task trains, and nothing else."""
        others = torch.ones(self.tuning.num_classes, dtype=torch.bool)
        others[list(self.classes[task])] = False
        self._others = others.to(self.parts.device)
        self.bank.activate(self.modules_of(task))
        self.step_only(self.groups(task))

    def step_only(self, groups: list[Group]) -> None:
        self.network.requires_grad_(False)
        self.bank.requires_grad_(False)
        for group in groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        self.parts.stepper.train_only([group for group in groups if group["params"]])

    def observe(self, x: Any, y: Tensor, task: int | None) -> Metrics:
        old: list[Tensor] = []
        if self.buffer is not None:
            with self.parts.span("rehearsal"):
                (draw,) = self.buffer.wait()
                assert task is not None
                if self.rehearses and len(draw) and task >= self.parts.first_task.get(REPLAY, 0):
                    old = [draw["x"], draw["y"], draw["task"]]
                self.buffer.submit(x=x, y=y, task=task, copy=False)
        with self.parts.span("transform"):
            x, *old_x = (self.training_inputs(rows.to(self.parts.device, non_blocking=True)) for rows in (x, *old[:1]))
            y = y.to(self.parts.device, non_blocking=True)
        if not old:
            return self.parts.stepper.minimise(partial(self.task_loss, rows=len(y)), x, y)
        loss = partial(self.joint_loss, rows=(len(y), len(old[1])))
        return self.parts.stepper.minimise(loss, x, y, *old_x, *old[1:])

    def task_loss(self, x: Tensor, y: Tensor, rows: float) -> tuple[Tensor, Metrics]:
        """What new samples contribute to the mean loss over `rows` rows."""
        return self.loss_of(self.parts.stepper.forward(x), y, rows)

    def loss_of(self, outputs: Tensor, y: Tensor, rows: float) -> tuple[Tensor, Metrics]:
        """Cross-entropy among the classes of the present task, or of all seen without train_mask."""
        if self.options["train_mask"]:
            outputs = outputs.masked_fill(self._others, -torch.inf)
        return self.share_of_mean(outputs, y, rows)

    def joint_loss(
        self, x: Tensor, y: Tensor, old_x: Tensor, old_y: Tensor, old_task: Tensor, rows: tuple[int, int]
    ) -> tuple[Tensor, Metrics]:
        """With replayed samples: one mean over new and old, the old among all classes seen and the new as without.

        The asymmetry is ER-ACE's (Caccia et al. 2022, arXiv 2104.05025): new samples among all classes would push down
        the heads of earlier tasks, of which a few replayed samples know little.
        """
        outputs, replayed = self.parts.stepper.forward(torch.cat([x, old_x])).split([len(x), len(old_x)])
        value, metrics = self.loss_of(outputs, y, sum(rows))
        of_replayed, of_old = self.share_of_mean(replayed, old_y, sum(rows))
        return value + of_replayed, {name: metrics[name] + of_old[name] for name in metrics}

    def consolidate(self, task: TaskLike, samples: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        if self.keeps_statistics:
            self.take_statistics(task.index, samples)
            if task.index and self.options["alignment"]:
                self.align()

    def take_statistics(self, task: int, samples: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        """Of the features of the task's classes, under each of the modules that say so."""
        modules = self.modules_seen(task)
        features, labels = self.features_of(samples(), modules)
        for module, rows in zip(modules, features, strict=True):
            self.statistics.fit(rows, labels, self.classes[task], expert=module or 0)

    def modules_seen(self, task: int) -> Sequence[int | None]:
        """Those under which a task's classes have statistics: the one that it has trained."""
        return [self.modules_of(task)]

    def scales(self) -> dict[str, Any]:
        """logit_norm, and arguments of alignment.align(), for what a strategy does to features."""
        return {}

    def align(self) -> None:
        """Train all heads on pseudo-features of all classes seen."""
        options, comm, scales = self.options, self.tuning.comm, self.scales()
        settings = Alignment(
            epochs=options["ca_epochs"],
            optimizer=options["ca_optimizer"],
            lr=options["ca_lr"],
            batch=options["ca_batch"],
            logit_norm=scales.pop("logit_norm", None),
        )
        # This rank's own: ranks that drew the same pseudo-features would gain nothing from each other.
        generator = torch.Generator(self.parts.device)
        generator.manual_seed(derive(self.tuning.seed, "alignment", len(self.classes), comm.rank))
        self.heads.requires_grad_(True)
        loss = align(
            self.heads,
            self.statistics,
            self.statistics.classes,
            settings,
            comm=comm,
            generator=generator,
            task_of={label: task for task, classes in enumerate(self.classes) for label in classes},
            extra=self.replayed_features(),
            **scales,
        )
        if comm.rank == 0:
            logger.info("heads of %d classes aligned: mean loss %.3f", len(self.statistics.classes), loss)

    def replayed_features(self) -> tuple[Tensor, Tensor] | None:
        """Of all samples in this rank's part of the buffer, each under the module of its task; labels. On the CPU.

        None where none are drawn for training either.
        """
        if self.buffer is None or not self.replays:
            return None
        module_of = {task: self.modules_of(task) for task in range(len(self.classes))}
        found = []
        for rows in self.buffer.stored(_ROWS):
            modules = [module_of[task] for task in rows["task"].tolist()]
            for module in dict.fromkeys(modules):
                own = torch.tensor([one == module for one in modules])
                (features,), labels = self.features_of([(rows["x"][own], rows["y"][own])], [module])
                found.append((features, labels))
        if not found:
            return None
        return torch.cat([features for features, _ in found]), torch.cat([labels for _, labels in found])

    def memory(self) -> dict[str, int]:
        """images: in the rehearsal buffer. modules: of the bank. The other kinds are the same on every rank, and count
        once.
        """
        buffer, kept = self.buffer, "features" if self.statistics.method == "features" else "statistics"
        return {
            "images": 0 if buffer is None else buffer.global_size * buffer.spec.bytes_per_sample,
            "features": 0,
            "statistics": 0,
            kept: self.statistics.bytes,
            "modules": sum(self.bank.bytes(module) for module in self.bank.tasks),
        }

    # ---- features and answers

    def features(self, x: Tensor) -> Tensor:
        """Network inputs to features (n, d), with whatever modules are active."""
        network: Any = self.network
        features: Tensor = network.forward_head(network.forward_features(x), pre_logits=True)
        return features

    @torch.no_grad()
    def features_of(
        self, samples: Iterable[tuple[Tensor, Tensor]], modules: Sequence[int | None]
    ) -> tuple[list[Tensor], Tensor]:
        """Of raw samples as evaluation sees them, on the CPU, of this rank: features (n, d) float32 under each of the
        modules, and labels (n,).
        """
        rows = [[torch.empty(0, self.heads.num_features)] for _ in modules]
        labels = [torch.empty(0, dtype=torch.int64)]
        with self.answering():
            for x, y in samples:
                inputs = self.parts.normalise(self.parts.view(x.to(self.parts.device, non_blocking=True)))
                for module, of_module in zip(modules, rows, strict=True):
                    self.bank.activate(module)
                    of_module.append(self.features(inputs).float().cpu())
                labels.append(y)
        return [torch.cat(of_module) for of_module in rows], torch.cat(labels)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """The network in evaluation mode; afterwards in the mode, and with the module, that it trains with."""
        training = self.network.training
        self.network.eval()
        yield
        self.network.train(training)
        self.bank.activate(self.modules_of(len(self.classes) - 1) if self.classes else None)

    @torch.no_grad()
    def predict(self, x: Any, task: TaskLike | None = None) -> Tensor:
        with self.answering():
            outputs = self.answers(self.parts.normalise(self.parts.view(x)))
        return outputs if task is None else mask_logits(outputs, task.classes)

    def answers(self, x: Tensor) -> Tensor:
        """Logits (n, C) for network inputs, in evaluation mode."""
        self.bank.activate(self.modules_of(len(self.classes) - 1) if self.classes else None)
        return self.heads(self.features(x))

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        return {
            "classes": [list(classes) for classes in self.classes],
            "heads": self.heads.state_dict(),
            "modules": {module: self.bank.state_of(module) for module in self.bank.tasks},
            "statistics": self.statistics.state_dict(),
            "stepper": self.parts.stepper.state_dict(),
            "backbone": self.tuning.backbone,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["backbone"] != self.tuning.backbone:
            raise SharedUserError("the checkpoint's frozen backbone has other weights; use the file that it began with")
        self.classes = []
        for task, classes in enumerate(state["classes"]):
            self.classes.append(tuple(classes))
            self.heads.add(task, classes, self.parts.device)
        self.heads.load_state_dict(state["heads"])
        for module, weights in state["modules"].items():
            self.bank.load_state_of(module, weights)
        self.statistics.load_state_dict(state["statistics"])
        if self.classes:
            self.train(len(self.classes) - 1)
            self.parts.stepper.load_state_dict(state["stepper"])

    def attach(self, technique: Technique) -> Bank:
        """An empty bank in the blocks that the options name."""
        depth = len(getattr(self.network, "blocks", ()))
        blocks = self.options["blocks"]
        if blocks is None:
            blocks = range(min(depth, _FIRST_BLOCKS))
        return attach(self.network, technique, range(depth) if blocks == "all" else blocks)


def technique(options: Any) -> Technique:
    """The kind of module that --peft-config asks for."""
    made: dict[str, Callable[[], Technique]] = {
        "lora": lambda: LoRA(options["rank"], options["alpha"], tuple(options["targets"]), options["init"]),
        "prefix": lambda: Prefix(options["length"]),
        "prompt": lambda: Prompt(options["length"]),
        "adapter": lambda: Adapter(options["bottleneck"], options["scale"], options["layer_norm"]),
    }
    return made[options["technique"]]()


def num_features(network: nn.Module) -> int:
    """Of what a vision transformer gives its head; SharedUserError for another network."""
    if hasattr(network, "head_dist"):
        raise SharedUserError(
            f"{type(network).__name__} has two heads, the one of its distillation too; use one without, like "
            "deit_base_patch16_224"
        )
    width = getattr(network, "num_features", None)
    if not isinstance(width, int) or not hasattr(network, "forward_head") or not hasattr(network, "blocks"):
        raise SharedUserError(
            f"{type(network).__name__} is no vision transformer; use --backbone vit, or one of timm's like "
            "vit_small_patch16_224"
        )
    return width
