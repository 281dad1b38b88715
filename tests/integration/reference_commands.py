"""The example commands of the reference's README (rehearsal.md 9), and small data sets in the real format for them."""

from functools import partial
from pathlib import Path

from dataset_files import write_cifar, write_imagenet, write_imagenet100small, write_mnist, write_tinyimagenet

_COMMANDS = {
    "mnist": ["--backbone", "mnistnet", "--dataset", "mnist"],
    "cifar100": ["--backbone", "resnet18", "--dataset", "cifar100"],
    "mnist-class": [
        *("--backbone", "mnistnet", "--dataset", "mnist"),
        *("--tasksets-config", "{'scenario': 'class', 'initial_increment': 5, 'increment': 5}"),
    ],
    "cifar10-class": [
        *("--backbone", "resnet18", "--dataset", "cifar10"),
        *("--tasksets-config", "{'scenario': 'class', 'initial_increment': 4, 'increment': 3}"),
    ],
    "er-cifar100-instance": [
        *("--backbone", "resnet18", "--model", "Er", "--dataset", "cifar100"),
        *("--tasksets-config", "{'scenario': 'instance', 'num_tasks': 5}"),
    ],
    "tinyimagenet": ["--backbone", "resnet50", "--dataset", "tinyimagenet"],
    "imagenet-blurred": ["--backbone", "efficientnetv2", "--dataset", "imagenet_blurred"],
    "der-cifar10-class": [
        *("--backbone", "resnet18", "--model", "Der", "--buffer-config", "{'rehearsal_ratio': 20}"),
        *("--dataset", "cifar10"),
        *("--tasksets-config", "{'scenario': 'class', 'initial_increment': 4, 'increment': 3}"),
    ],
    "derpp-imagenet100small-class": [
        *("--backbone", "resnet18", "--model", "Derpp", "--buffer-config", "{'rehearsal_ratio': 20}"),
        *("--dataset", "imagenet100small"),
        *("--tasksets-config", "{'scenario': 'class', 'initial_increment': 40, 'increment': 30}"),
    ],
    "agem-tinyimagenet-instance": [
        *("--backbone", "resnet50", "--model", "Agem", "--dataset", "tinyimagenet"),
        *("--tasksets-config", "{'scenario': 'instance', 'num_tasks': 5}"),
    ],
}
NAMES = list(_COMMANDS)
LARGE = [name for name, command in _COMMANDS.items() if {"resnet50", "efficientnetv2"} & set(command)]
_FILES = {
    "tinyimagenet": partial(write_tinyimagenet, classes=4, num=(15, 15)),
    "imagenet_blurred": write_imagenet,
    "imagenet100small": partial(write_imagenet100small, num=(1, 1)),
}


def num_tasks(name: str) -> int:
    return 5 if "instance" in name else 2 if name == "mnist-class" else 3 if "class" in name else 1


def prepare(name: str, folder: Path, ranks: int = 1) -> list[str]:
    """Write the data set into the folder and return the command's arguments, for a short run over so many ranks."""
    command = _COMMANDS[name]
    dataset = command[command.index("--dataset") + 1]
    batch, more = 10, []
    if dataset == "mnist":
        write_mnist(folder, num=(40, 20))
    elif dataset in _FILES:
        _FILES[dataset](folder)
        batch, more = 12 if "instance" in name else 30, ["--training-only"]
    elif "instance" in name:
        # Five tasks of new samples need more than five samples of each class that occurs.
        write_cifar(folder, dataset, num=60, present=10)
    else:
        write_cifar(folder, dataset, num=100 if dataset == "cifar100" else 10)
    small = ["--epochs", "1", "--batch-size", str(batch // ranks), "--eval-batch-size", "100"]
    return [*command, "--dataset-dir", str(folder), *small, *more]
