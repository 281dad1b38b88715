"""TaskHeads: one classifier over all classes, made of a linear layer per task so that a task trains its own alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from reprise.runtime.seeds import derive

# The logit of a class that no task has brought yet. Finite: the loss of a sample of such a class is still a number.
NEVER = -1e4


class TaskHeads(nn.Module):
    """Features (n, d) to logits (n, C); classes not seen so far have NEVER.

    The layer of a task holds its classes that are new with it, so that no class has two. Weights depend on the seed and
    the task alone: every rank makes the same ones.
    """

    def __init__(self, num_features: int, num_classes: int, seed: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self._seed = seed
        self.layers = nn.ModuleDict()
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
            self.layers[str(task)] = nn.Linear(self.num_features, len(new)).to(device)
        self._classes[str(task)] = new
        self._columns = torch.tensor(self.classes, device=device)

    def of(self, classes: Sequence[int]) -> list[nn.Parameter]:
        """The parameters of the layers that hold any of these classes."""
        return [
            parameter
            for task, layer in self.layers.items()
            if not set(self._classes[task]).isdisjoint(classes)
            for parameter in layer.parameters()
        ]

    def stretch(self, factors: Mapping[int, float]) -> None:
        """From now on the inputs of these tasks' layers are multiplied by a factor."""
        self._stretched = dict(factors)

    def forward(self, features: Tensor) -> Tensor:
        logits = features.new_full((len(features), self.num_classes), NEVER)
        if not self.layers:
            return logits
        layers = {int(task): layer for task, layer in self.layers.items() if isinstance(layer, nn.Linear)}
        weights = [
            layer.weight * self._stretched[task] if task in self._stretched else layer.weight
            for task, layer in layers.items()
        ]
        outputs = functional.linear(features, torch.cat(weights), torch.cat([layer.bias for layer in layers.values()]))
        return logits.to(outputs.dtype).index_copy(1, self._columns, outputs)
