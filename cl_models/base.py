"""The interface of every continual-learning strategy, and what a strategy is given to work with.

A strategy says what is trained on and with which loss. How a step is taken (mixed precision, gradient averaging over
ranks, accumulation) is the Stepper's business; where samples come from is the loop's.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reprise.buffer import RehearsalBuffer
from reprise.runtime.registry import Registry

Metrics = dict[str, Tensor]


class TaskLike(Protocol):
    """What a strategy may know of a task."""

    @property
    def index(self) -> int: ...
    @property
    def classes(self) -> tuple[int, ...]: ...


class Stepper(Protocol):
    """Takes optimisation steps on `network`; see train/stepper.py."""

    def minimise(self, loss: Callable[..., tuple[Tensor, Metrics]], *columns: Tensor) -> Metrics: ...
    def forward(self, x: Any) -> Any: ...
    def reset(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What a strategy is built from.

    device: where the network is. network: the bare module. stepper: steps it. loss: (outputs, y) -> per-sample losses
    (n,). augment: batched, raw samples to random views of the same dtype; view: the views that evaluation uses;
    normalise: views to network inputs. augment_rng: this rank's generator for augmentation. buffer: the rehearsal memory, None for strategies
    without one. options: the keys of --model-config. stored_augmented: samples are kept as the network saw them instead
    of raw. replay_from_task: first task that trains on representatives. span: times a part of the step by name.
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
    stored_augmented: bool = False
    replay_from_task: int = 0


class ContinualModel:
    """A strategy. Called by the loop on every rank alike; all sizes are per rank."""

    uses_buffer = False

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.network = parts.network

    def begin_task(self, task: TaskLike) -> None:
        """Called before the first step of a task. The optimiser's momentum starts anew with every task."""
        self.parts.stepper.reset()

    def observe(self, x: Tensor, y: Tensor, task: int) -> Metrics:
        """One optimisation step on a batch of new, raw samples x (b, ...) of task number `task`, still on the CPU.

        A strategy moves to the device what it trains on, so that what only goes into the memory never makes the trip.
        Returns scalars that stay on the device ("loss", "accuracy"), so that the step never waits for them.
        """
        raise NotImplementedError

    def rows(self, b: int) -> dict[str, Tensor] | None:
        """Where the loader may put "x" and "y" of the next batch of b samples, to spare a copy; None: anywhere.

        A batch that lies there must be the next one that is observed.
        """
        return None

    def end_task(self, task: TaskLike) -> None:
        """Called after the last step of a task, before evaluation."""

    @torch.no_grad()
    def predict(self, x: Tensor, task: TaskLike | None = None) -> Tensor:
        """Logits (n, classes) of raw samples x. With `task` given, classes of other tasks are ruled out (-inf)."""
        training = self.network.training
        self.network.eval()
        logits: Tensor = self.network(self.parts.normalise(self.parts.view(x)))
        self.network.train(training)
        return logits if task is None else mask_logits(logits, task.classes)

    def state_dict(self) -> dict[str, Any]:
        """What all ranks share and the next step depends on, as tensors, numbers and strings.

        The buffer and this rank's generators are saved apart (train/checkpoint.py).
        """
        return {"network": self.network.state_dict(), "stepper": self.parts.stepper.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.parts.stepper.load_state_dict(state["stepper"])

    def training_inputs(self, x: Tensor) -> Tensor:
        """Network inputs (n, ...) from raw samples, every one augmented by a draw of its own."""
        return self.parts.normalise(self.parts.augment(x, self.parts.augment_rng))

    def mean_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        """Mean loss over the rows, and what the progress display shows of it."""
        outputs = self.parts.stepper.forward(x)
        loss = self.parts.loss(outputs, y).mean()
        accuracy = (outputs.detach().argmax(dim=1) == y).float().mean()
        return loss, {"loss": loss.detach(), "accuracy": accuracy}


def mask_logits(logits: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Logits with every class not in `classes` at -inf: the task is known (task-incremental evaluation)."""
    masked = torch.full_like(logits, float("-inf"))
    columns = torch.tensor(classes, device=logits.device)
    masked[:, columns] = logits[:, columns]
    return masked


STRATEGIES: Registry[type[ContinualModel]] = Registry("model")
