"""Task-free streams through the real loop: a strategy is told nothing, and one learning-rate schedule spans it all."""

import numpy as np
import pytest
from runs import matrix, run, summary

from reprise.cl_models import STRATEGIES, ContinualModel
from reprise.train.regime import Regime

STREAM = ["--tasksets-config", "{'scenario': 'class', 'increment': 2, 'task_free': True}"]
MEMORY = ["--buffer-config", "{'implementation': 'python', 'deterministic': True, 'num_representatives': 32}"]
FALLING = ["--optimizer-regime", "[{'optimizer': 'SGD', 'lr': 0.1, 'schedule': 'cosine'}]"]


@pytest.fixture
def told(monkeypatch):
    """What the loop tells a strategy, in order, and which tasks the memory then holds."""
    heard, stored = [], set()

    def listen(kind, event):
        original = getattr(kind, event)

        def listening(self, *arguments):
            heard.append((event, arguments[-1]))
            if event == "end_task":
                stored.update(self.buffer.state_dict()["engine"]["shard"]["columns"]["task"].tolist())
            return original(self, *arguments)

        monkeypatch.setattr(kind, event, listening)

    listen(ContinualModel, "begin_task")
    listen(ContinualModel, "end_task")
    for name in ("Er", "Derpp"):
        listen(STRATEGIES.get(name), "observe")
    return heard, stored


@pytest.mark.parametrize("model", ["Er", "Derpp"])
def test_a_strategy_hears_of_one_beginning_and_one_end_and_of_no_task(tmp_path, told, model):
    heard, stored = told
    folder = run(tmp_path, "run", *STREAM, *MEMORY, "--model", model, "--epochs", "5")
    assert heard[0] == ("begin_task", None)
    assert heard[-1] == ("end_task", None)
    assert set(heard[1:-1]) == {("observe", None)}
    assert len(heard) > 200
    assert stored == {-1}, "what was not told cannot be stored"
    assert matrix(folder).shape == (5, 5), "it is evaluated after each part of the stream all the same"
    assert summary(folder)["average_accuracy"] > 0.5, "without a memory it is 0.2"


def test_one_schedule_is_stretched_over_the_whole_stream(tmp_path, monkeypatch):
    """As long as one task's in epochs; the tasks' schedules would each fall from the top."""
    applied, apply = [], Regime.apply

    def watched(self, optimizer, epoch, step):
        rate = apply(self, optimizer, epoch, step)
        assert {group["lr"] for group in optimizer.param_groups} == {rate}
        applied.append((step, rate))
        return rate

    monkeypatch.setattr(Regime, "apply", watched)
    run(tmp_path, "run", *STREAM, *MEMORY, *FALLING, "--model", "Er", "--training-only")
    steps, rates = zip(*applied, strict=True)
    assert steps == tuple(range(len(steps)))
    assert rates == pytest.approx([0.05 * (1 + np.cos(np.pi * step / len(steps))) for step in steps])


def test_a_stream_goes_on_after_a_checkpoint_as_if_it_had_not_stopped(tmp_path, told):
    """Momentum, too: it is forgotten where a task begins, and no task begins here."""
    with_momentum = [*STREAM, *MEMORY, *FALLING, "--momentum", "0.5", "--model", "Er"]
    straight = run(tmp_path, "straight", *with_momentum)
    told[0].clear()
    resumed = run(tmp_path, "resumed", *with_momentum, "--load-checkpoint", str(straight / "checkpoints" / "task_01"))
    assert np.array_equal(matrix(straight), matrix(resumed))
    assert {event for event, _ in told[0]} == {"observe", "end_task"}
