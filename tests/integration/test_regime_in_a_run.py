"""What a run makes of its regime: which points of it the loop asks for, and what reaches the optimiser."""

from typing import Any

import pytest
import torch

from reprise.main import main
from reprise.train.regime import Regime

DIGITS = ["--dataset", "digits", "--backbone", "mlp", "--batch-size", "128", "--tasksets-config", "{'increment': 5}"]


def test_the_loop_counts_epochs_in_a_task_and_steps_over_all_tasks(tmp_path: Any, monkeypatch: Any) -> None:
    """A cyclical rate goes by steps and must not start anew with a task; milestones are those of a task."""
    asked: list[tuple[float, int, float]] = []
    original = Regime.apply

    def spy(self: Regime, optimizer: torch.optim.Optimizer, epoch: float, step: int) -> float:
        rate = original(self, optimizer, epoch, step)
        asked.append((epoch, step, rate))
        return rate

    monkeypatch.setattr(Regime, "apply", spy)
    phase = {"optimizer": "SGD", "lr": 0.1, "schedule": "triangular", "step_cycle_size": 1024}
    where = ["--results-dir", str(tmp_path), "--save-dir", "run", "--training-only", "--epochs", "2"]
    assert main([*DIGITS, *where, "--optimizer-regime", str([phase])]) == 0
    epochs, steps, rates = zip(*asked, strict=True)
    per_epoch = len(steps) // 4  # two tasks of two epochs
    assert steps == tuple(range(4 * per_epoch))
    assert epochs == pytest.approx([step % (2 * per_epoch) / per_epoch for step in steps])
    # 1024 samples, 128 in a step: it rises over 8 steps and falls over 8
    assert rates == pytest.approx([0.1 * min(step % 16, 16 - step % 16) / 8 for step in steps])
    assert max(steps) > 16
