"""Runs of main.py on the handwritten digits, in this process, and what they leave in their folder."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reprise.main import main

DIGITS = ["--dataset", "digits", "--backbone", "mlp", "--epochs", "2", "--batch-size", "32", "--warmup-epochs", "0"]
DIGITS += ["--keep-checkpoints", "0"]
FIVE_TASKS = ["--tasksets-config", "{'scenario': 'class', 'increment': 2}"]
ER = ["--model", "Er", "--buffer-config", "{'rehearsal_ratio': 30, 'implementation': 'python', 'deterministic': True}"]


def run(folder: Path, name: str, *arguments: str) -> Path:
    """Train and return the run's folder."""
    code = main([*DIGITS, "--results-dir", str(folder), "--save-dir", name, *arguments])
    assert code == 0
    return folder / name


def matrix(folder: Path, name: str = "accuracy_matrix.csv") -> np.ndarray:
    with open(folder / name, newline="") as stream:
        rows = list(csv.reader(stream))
    return np.array([[float(value) for value in row[1:]] for row in rows[1:]])


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def weights(folder: Path, task: int = 0) -> dict[str, Tensor]:
    """Of the network after a task."""
    saved = torch.load(folder / "checkpoints" / f"task_{task:02d}" / "model.pt", weights_only=True)
    return saved["network"]
