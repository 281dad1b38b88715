"""The interface of every continual-learning strategy, and what a strategy is given to work with.

A strategy says what is trained on and with which loss. How a step is taken (mixed precision, gradient averaging over
ranks, accumulation) is the Stepper's business; where samples come from is the loop's. Strategies with a memory start
from cl_models/rehearsal.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from reprise.buffer import RehearsalBuffer
from reprise.runtime.dist import Communicator
from reprise.runtime.registry import Registry

Metrics = dict[str, Tensor]
Loss = Callable[..., tuple[Tensor, Metrics]]
Stored = Literal["raw", "views", "inputs"]
Insertion = Literal["step", "task"]

# The kinds of draws: samples trained on with their labels, and with what the network answered when they were stored.
REPLAY, DISTILLATION = "replay", "distillation"


class TaskLike(Protocol):
    """What a strategy may know of a task."""

    @property
    def index(self) -> int: ...
    @property
    def classes(self) -> tuple[int, ...]: ...


class Stepper(Protocol):
    """Takes optimisation steps on `network`; see train/stepper.py."""

    def minimise(self, loss: Loss, *columns: Tensor) -> Metrics: ...
    def averaged(self, loss: Loss, *columns: Tensor) -> AbstractContextManager[Metrics]: ...
    def update(self) -> None: ...
    def forward(self, x: Any) -> Any: ...
    def reset(self) -> None: ...
    def train_only(self, groups: Sequence[dict[str, Any]]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Tuning:
    """What strategies that tune modules on a frozen network need besides (cl_models/peft/tuned.py).

    options: the keys of --peft-config. comm: for statistics over all ranks. num_classes: of the whole data set.
    backbone: a hash of the frozen weights, the same on all ranks. selector: the state of a finished run of Selector.
    """

    options: Mapping[str, Any]
    comm: Communicator
    num_classes: int
    seed: int
    backbone: str
    selector: Mapping[str, Any] | None


@dataclass(frozen=True)
class Parts:
    """What a strategy is built from.

    device: where the network is. network: the bare module. stepper: steps it. loss: (outputs, y) -> per-sample losses
    (n,). augment: batched, raw samples to random views of the same dtype; view: the views that evaluation uses;
    normalise: views to network inputs. augment_rng: this rank's generator for augmentation. buffer: the rehearsal
    memory, None for strategies without one. options: the keys of --model-config. span: times a part of the step by
    name. stored: the form of a sample in the buffer, "raw" to be augmented anew at every replay, "views" as trained on
    but in the raw dtype, "inputs" as the network got them. first_task: kind of draw -> first task that trains on it.
    insertion: when samples are offered to the buffer, in the step that trains on them or when their task has ended.
    tuning: for strategies that tune modules.
    """

    device: torch.device
    network: nn.Module
    stepper: Stepper
    loss: Callable[[Any, Tensor], Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor]
    view: Callable[[Tensor], Tensor]
    normalise: Callable[[Tensor], Tensor]
    augment_rng: torch.Generator
    buffer: RehearsalBuffer | None
    options: Mapping[str, Any]
    span: Callable[[str], AbstractContextManager[Any]]
    stored: Stored = "raw"
    first_task: Mapping[str, int] = field(default_factory=dict)
    insertion: Insertion = "step"
    tuning: Tuning | None = None


class ContinualModel:
    """A strategy. Called by the loop on every rank alike; all sizes are per rank.

    y is int64 labels (b,), or for reconstruction a float tensor (b, *target_shape).
    """

    draws: ClassVar[tuple[str, ...]] = ()
    """The kind of each independent draw of a step from the rehearsal buffer; none: the strategy has no memory."""
    stores_outputs: ClassVar[bool] = False
    """Samples are stored with the network's outputs, hence as the very views that these belong to."""
    changes_gradients: ClassVar[bool] = False
    """The step works on gradients averaged over ranks. Adasum has none: it combines updates."""
    tunes: ClassVar[bool] = False
    """The network is a frozen transformer, and what is trained changes from task to task (cl_models/peft/tuned.py)."""
    needs_selector: ClassVar[bool] = False
    """A run of Selector comes first, and its folder is given."""
    own_classes: ClassVar[bool] = False
    """Every task brings classes of its own, that no other has."""
    told_task: ClassVar[bool] = False
    """In evaluation `predict` is told every sample's task, whatever the scenario."""
    hyperparameters: ClassVar[tuple[str, ...]] = ("reset_state_dict",)
    """The keys of --model-config that have a meaning here."""

    routed: Tensor | None = None
    """(n,) int64: the tasks that the last `predict` took its samples to be of; None where it infers none."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.network = parts.network

    def begin_task(self, task: TaskLike | None) -> None:
        """Called before the first step of a task; in a task-free stream once, with None, before the first step of all.

        The optimiser's momentum starts anew.
        """
        self.parts.stepper.reset()

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch of the task, counted from 0, and when a run goes on within one."""

    def observe(self, x: Any, y: Tensor, task: int | None) -> Metrics:
        """One optimisation step on a batch of new, raw samples x (b, ...), still on the CPU.

        task: their task's number, None in a task-free stream. A strategy moves to the device what it trains on, so
        that what only goes into the memory never makes the trip. Returns scalars that stay on the device ("loss", and
        "accuracy" where there are labels), so that the step never waits for them.
        """
        raise NotImplementedError

    def rows(self, b: int) -> dict[str, Tensor] | None:
        """Where the loader may put "x" and "y" (or "target") of the next b samples, to spare a copy; None: anywhere.

        A batch that lies there must be the next one that is observed.
        """
        return None

    def end_task(self, task: TaskLike | None) -> None:
        """Called after the last step of a task (or of a task-free stream), before evaluation."""

    def consolidate(self, task: TaskLike, samples: Callable[[], Iterable[tuple[Any, Tensor]]]) -> None:
        """Called after end_task, on all ranks, where tasks are told.

        samples: this rank's share of the task's raw training samples in batches, each sample once on one rank.
        """

    def memory(self) -> dict[str, int]:
        """Bytes that are kept of the past beside the network, by kind, over all ranks. Collective."""
        return {}

    @property
    def memorises(self) -> bool:
        """Whether `memorise` wants to see a task's samples once more when the task has ended."""
        return False

    def memorise(self, x: Any, y: Tensor, task: int) -> None:
        """Take what is to be remembered of raw samples x (b, ...), still on the CPU, of the task that has ended.

        The network is in evaluation mode. Called equally often on every rank.
        """
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, x: Any, task: TaskLike | None = None) -> Tensor:
        """Outputs of the network for raw samples x. With `task` given, classes of other tasks are ruled out (-inf)."""
        training = self.network.training
        self.network.eval()
        outputs: Tensor = self.network(self.parts.normalise(self.parts.view(x)))
        self.network.train(training)
        return outputs if task is None else mask_logits(outputs, task.classes)

    def state_dict(self) -> dict[str, Any]:
        """What all ranks share and the next step depends on, as tensors, numbers and strings.

        The buffer and this rank's generators are saved apart (train/checkpoint.py).
        """
        return {"network": self.network.state_dict(), "stepper": self.parts.stepper.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.parts.stepper.load_state_dict(state["stepper"])

    def training_inputs(self, x: Any) -> Any:
        """Network inputs (n, ...) from raw samples, every one augmented by a draw of its own."""
        return self.parts.normalise(self.parts.augment(x, self.parts.augment_rng))

    def mean_loss(self, x: Any, y: Tensor, rows: float) -> tuple[Tensor, Metrics]:
        """What network inputs x and their y contribute to the mean loss over `rows` rows."""
        return self.share_of_mean(self.parts.stepper.forward(x), y, rows)

    def share_of_mean(self, outputs: Tensor, y: Tensor, rows: float) -> tuple[Tensor, Metrics]:
        """The same from outputs, and what the progress display shows of it. 0, and never NaN, where there are none."""
        loss = self.per_sample(outputs, y).sum() / rows
        metrics = {"loss": loss.detach()}
        if not y.is_floating_point():
            metrics["accuracy"] = (outputs.detach().argmax(dim=1) == y).sum() / rows
        return loss, metrics

    def per_sample(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Losses (n,) of outputs."""
        return self.parts.loss(outputs, y)


def mask_logits(logits: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Logits with every class not in `classes` at -inf: the task is known (task-incremental evaluation)."""
    masked = torch.full_like(logits, float("-inf"))
    columns = torch.tensor(classes, device=logits.device)
    masked[:, columns] = logits[:, columns]
    return masked


STRATEGIES: Registry[type[ContinualModel]] = Registry("model")
