"""Avalanche's strategies on our data, network, initial weights and class order: the peer of benchmarks/accuracy.py.

Strategies are built as its documentation does, with every setting of theirs that we have no equal of left alone. Their
memories are filled when a task ends; ours at every step. Data is handed over normalised, as our network sees it.
"""

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from reprise import backbone, scenarios
from reprise.runtime import seeds
from reprise.runtime.vision import ensure_torchvision
from reprise.scenarios import Scenario, Task


def train(
    seed: int,
    *,
    strategy: str,
    dataset: str,
    increment: int,
    epochs: int,
    batch_size: int,
    lr: float,
    memory: int,
    alpha: float,
    beta: float,
) -> dict[str, Any]:
    """Train all tasks; "average_accuracy" over all tasks at the end."""
    warnings.simplefilter("ignore")  # theirs, not ours: deprecations at import
    ensure_torchvision()
    scenario = scenarios.build(dataset, ".", scenario="class", increment=increment, class_order_seed=None, given=True)
    torch.manual_seed(seeds.derive(seed, "initial weights"))  # ours of the same seed begin with the same weights
    network = backbone.build("mlp", num_classes=scenario.num_classes, sample_shape=scenario.sample_shape, config={})
    seeds.seed_everything(seed, 0)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    common = {
        "model": network,
        "optimizer": optimizer,
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": batch_size,
        "train_epochs": epochs,
        "evaluator": None,
        "device": "cpu",
    }
    trained = _strategy(strategy, common, memory, len(scenario.tasks), alpha, beta)
    for experience in _benchmark(scenario).train_stream:
        trained.train(experience, num_workers=0)
    accuracies = [_accuracy(network, scenario, task) for task in scenario.tasks]
    return {"average_accuracy": sum(accuracies) / len(accuracies)}


def _strategy(name: str, common: dict[str, Any], memory: int, tasks: int, alpha: float, beta: float) -> Any:
    supervised = importlib.import_module("avalanche.training.supervised")
    plugins = importlib.import_module("avalanche.training.plugins")
    replay = common["train_mb_size"]
    if name == "Vanilla":
        return supervised.Naive(**common)
    if name == "Er":
        plugin = plugins.ReplayPlugin(mem_size=memory, batch_size_mem=replay)
        return supervised.Naive(**common, plugins=[plugin])
    if name == "Agem":
        plugin = plugins.AGEMPlugin(patterns_per_experience=memory // tasks, sample_size=replay)
        return supervised.Naive(**common, plugins=[plugin])
    weights = {"alpha": alpha, "beta": beta if name == "Derpp" else 0.0}
    return importlib.import_module("avalanche.training.supervised.der").DER(
        **common, mem_size=memory, batch_size_mem=replay, **weights
    )


def _benchmark(scenario: Scenario) -> Any:
    """The same tasks, made its way: classes in natural order, so many in each."""

    def joined(part: str) -> TensorDataset:
        parts = [_data(scenario, getattr(task, part)) for task in scenario.tasks]
        x, y = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        data = TensorDataset(x, y)
        data.targets = y.tolist()  # type: ignore[attr-defined]
        return data

    return importlib.import_module("avalanche.benchmarks").nc_benchmark(
        joined("train"),
        joined("test"),
        n_experiences=len(scenario.tasks),
        task_labels=False,
        shuffle=False,
        fixed_class_order=list(range(scenario.num_classes)),
    )


def _data(scenario: Scenario, samples: Any) -> tuple[Tensor, Tensor]:
    x, y = samples.gather(range(len(samples)))
    return scenario.transform.normalise(scenario.transform.view(x)), y


def _accuracy(network: nn.Module, scenario: Scenario, task: Task) -> float:
    network.eval()
    x, y = _data(scenario, task.test)
    with torch.no_grad():
        return float((network(x).argmax(1) == y).double().mean())
