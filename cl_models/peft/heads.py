"""TaskHeads: one classifier over all classes, made of a layer per task so that a task trains its own alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from reprise.runtime.seeds import derive

# The logit of a class that no task has brought yet. Finite: the loss of a sample of such a class is still a number.
NEVER = -1e4


class TaskHeads(nn.Module):
    """Features (n, d) to logits (n, C); classes not seen so far have NEVER.

    The layer of a task holds its classes that are new with it, so that no class has two: (classes, d + 1), the weights
    and, last, the biases. They depend on the seed and the task alone: every rank makes the same ones.
    """

    def __init__(self, num_features: int, num_classes: int, seed: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self._seed = seed
        self.layers = nn.ParameterDict()
        self._classes: dict[str, list[int]] = {}
        # Where the columns of all layers go; buffers would be saved and averaged over ranks.
        self._columns = torch.empty(0, dtype=torch.int64)
        self._stretched: dict[int, float] = {}

    @property
    def classes(self) -> tuple[int, ...]:
        """Those seen, in the order of the layers' outputs."""
        return tuple(label for classes in self._classes.values() for label in classes)

    def add(self, task: int, classes: Sequence[int], device: torch.device) -> None:
        """Make the layer of a task; none where it brings no new class."""
        new = [label for label in classes if label not in self.classes]
        if not new:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self._seed, "head", task))
            linear = nn.Linear(self.num_features, len(new))
        weights = torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach()
        self.layers[str(task)] = nn.Parameter(weights.to(device))
        self._classes[str(task)] = new
        self._columns = torch.tensor(self.classes, device=device)

    def of(self, classes: Sequence[int]) -> list[nn.Parameter]:
        """The layers that hold any of these classes."""
        return [layer for task, layer in self.layers.items() if not set(self._classes[task]).isdisjoint(classes)]

    def stretch(self, factors: Mapping[int, float]) -> None:
        """From now on the inputs of these tasks' layers are multiplied by a factor."""
        self._stretched = dict(factors)

    def forward(self, features: Tensor) -> Tensor:
        logits = features.new_full((len(features), self.num_classes), NEVER)
        if not self.layers:
            return logits
        joined = torch.cat([self._of(int(task), layer) for task, layer in self.layers.items()])
        outputs = functional.linear(features, joined[:, :-1], joined[:, -1])
        return logits.to(outputs.dtype).index_copy(1, self._columns, outputs)

    def _of(self, task: int, layer: Tensor) -> Tensor:
        if task not in self._stretched:
            return layer
        return torch.cat([layer[:, :-1] * self._stretched[task], layer[:, -1:]], dim=1)
