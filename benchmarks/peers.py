"""Buffers of other projects, as contestants. Only what is installed takes part; each does what it can do fastest.

torchrl: round-robin writer and draws with replacement, so less than asked; the fastest of several layouts counts.
Avalanche: its samples refer to the batch they came in, so nothing is copied when they are stored.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.utils.data import TensorDataset

from reprise.benchmarks.contestants import Contestant
from reprise.benchmarks.workloads import Batch, Trace, Workload, trace
from reprise.runtime.vision import ensure_torchvision

PEERS = {"torchrl": "torchrl", "avalanche": "avalanche-lib"}
"""Importable name -> what to install."""

_TRIAL_STEPS = 40


def installed(peer: str) -> bool:
    return importlib.util.find_spec(peer) is not None


def contestants_of(peer: str, workload: Workload) -> list[Contestant]:
    """The contestants of an installed peer for a workload."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, not ours: deprecations at import
        if peer == "torchrl":
            return [fastest_torchrl(workload)]
        ensure_torchvision()
        return [Avalanche("ClassBalancedBuffer", workload), Avalanche("ReservoirSamplingBuffer", workload)]


class TorchRL(Contestant):
    """ReplayBuffer over LazyTensorStorage, in one of the layouts that a batch can be handed over in.

    Without prefetch: on these workloads its threads made a step slower, and it was seen to crash.
    """

    refills = False
    LAYOUTS = ("tensor", "tuple", "tensordict")
    """tensor: the first field alone, without labels, so only where there is one field."""

    def __init__(self, workload: Workload, layout: str) -> None:
        super().__init__("torchrl", workload)
        self.layout = layout
        self._replay: Any = None

    @property
    def runs(self) -> str:
        return f"LazyTensorStorage, {self.layout}"

    def fill(self, trace: Trace) -> None:
        data = importlib.import_module("torchrl.data")
        self._replay = data.ReplayBuffer(
            storage=data.LazyTensorStorage(self.workload.capacity),
            batch_size=self.workload.draws[0],
            collate_fn=lambda rows: rows,
        )
        for index in range(trace.fill_steps):
            self.submit(trace.batch(index))

    def submit(self, batch: Batch) -> None:
        self._replay.extend(self._packed(batch))

    def wait(self) -> None:
        for _ in self.workload.draws:
            self._replay.sample()

    def close(self) -> None:
        self._replay = None

    def _packed(self, batch: Batch) -> Any:
        rows = self.workload.candidates
        columns = {name: value[:rows] for name, value in batch.fields.items()}
        if self.layout == "tensor":
            return next(iter(columns.values()))
        columns["y"] = batch.y[:rows]
        if self.layout == "tuple":
            return tuple(columns.values())
        return importlib.import_module("tensordict").TensorDict(columns, batch_size=[rows])


def fastest_torchrl(workload: Workload) -> TorchRL:
    """The layout with the smallest median over a few steps."""
    stream = trace(workload, seed=0, steps=_TRIAL_STEPS)
    medians: dict[str, float] = {}
    for layout in TorchRL.LAYOUTS:
        if layout == "tensor" and len(workload.fields) > 1:
            continue
        candidate = TorchRL(workload, layout)
        candidate.fill(stream)
        indices = range(stream.fill_steps, stream.fill_steps + _TRIAL_STEPS)
        medians[layout] = median(sum(candidate.step(stream.batch(index))) for index in indices)
        candidate.close()
    return TorchRL(workload, min(medians, key=lambda layout: medians[layout]))


class Avalanche(Contestant):
    """A storage policy of Avalanche, updated with every batch; draws are uniform over its buffer."""

    refills = False

    def __init__(self, policy: str, workload: Workload) -> None:
        super().__init__("avalanche " + ("class-balanced" if policy.startswith("Class") else "reservoir"), workload)
        self.policy = policy
        self._storage: Any = None
        self._as_dataset: Callable[..., Any]

    @property
    def runs(self) -> str:
        return self.policy

    def fill(self, trace: Trace) -> None:
        storage_policy = importlib.import_module("avalanche.training.storage_policy")
        utils = importlib.import_module("avalanche.benchmarks.utils")

        def as_dataset(batch: Batch) -> Any:
            rows = self.workload.candidates
            data = TensorDataset(*(value[:rows] for value in batch.fields.values()), batch.y[:rows])
            data.targets = batch.y[:rows].tolist()  # type: ignore[attr-defined]
            return utils.as_classification_dataset(data)

        self._as_dataset = as_dataset
        self._storage = getattr(storage_policy, self.policy)(self.workload.capacity)
        for index in range(trace.fill_steps):
            self.submit(trace.batch(index))

    def submit(self, batch: Batch) -> None:
        self._storage.update_from_dataset(self._as_dataset(batch))

    def wait(self) -> None:
        stored = self._storage.buffer
        for size in self.workload.draws:
            samples = [stored[int(index)] for index in torch.randperm(len(stored))[:size]]
            for name in range(len(self.workload.fields)):
                torch.stack([sample[name] for sample in samples])

    def close(self) -> None:
        self._storage = None
