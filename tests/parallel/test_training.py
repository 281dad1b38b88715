"""The same job under every launcher that is installed, on 2 and 4 processes: it runs, repeats, and counts rightly."""

import csv
import json
import re
from pathlib import Path

import launch
import numpy as np
import pytest
import torch

from reprise.main import main

HERE = Path(__file__).parent
DIGITS = ["--dataset", "digits", "--backbone", "mlp", "--epochs", "2", "--warmup-epochs", "0"]
FIVE_TASKS = ["--tasksets-config", "{'increment': 2}"]
ER = ["--model", "Er", "--buffer-config", "{'rehearsal_ratio': 30, 'deterministic': True}"]
COLLECTIVES = ["--model", "Er", "--buffer-config", ER[-1].replace("}", ", 'transport': 'collectives'}")]


def train(
    launcher: str, np_: int, folder: Path, name: str, *arguments: str, fault: str = "plain", limit_s: float = 180
) -> Path:
    """Train under a launcher and return the run's folder."""
    command = [HERE / "train_worker.py", fault, *DIGITS, *arguments, "--results-dir", folder, "--save-dir", name]
    finished = launch.run(launcher, np_, [str(part) for part in command], timeout=limit_s)
    assert finished.returncode == 0, finished.output
    return folder / name


def matrix(folder: Path) -> np.ndarray:
    with open(folder / "accuracy_matrix.csv", newline="") as stream:
        return np.array([[float(value) for value in row[1:]] for row in list(csv.reader(stream))[1:]])


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


EVERY_LAUNCHER = [("horovodrun", 2), ("mpirun", 2), ("torchrun", 2)]


@pytest.mark.parametrize(("launcher", "np_"), [*EVERY_LAUNCHER, ("mpirun", 4), ("torchrun", 4)])
def test_the_same_job_runs_and_repeats_under_every_launcher(request, tmp_path, launcher, np_):
    """rehearsal.md 6.1-11 and 6.1-12: validation counts samples twice or not at all; runs do not repeat."""
    if launcher not in launch.available():
        pytest.skip(f"{launcher} (or Horovod) is not installed")
    if (launcher, np_) not in EVERY_LAUNCHER and not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    arguments = [*FIVE_TASKS, "--batch-size", str(32 // np_)]
    first = train(launcher, np_, tmp_path, "first", *arguments, *ER)
    # Where samples come from does not matter: what is drawn is decided before.
    other = COLLECTIVES if np_ == 2 else ER
    again = train(launcher, np_, tmp_path, "again", *arguments, *other)
    result = summary(first)
    assert (result["launcher"], result["world_size"]) == (launcher, np_)
    assert result["samples_stored"] == 404, "the capacity is summed over all ranks, whatever their number"
    assert result["buffer_transport"] == "shm"
    assert summary(again)["buffer_transport"].startswith("collectives" if np_ == 2 else "shm")
    assert np.array_equal(matrix(first), matrix(again))
    assert result["average_accuracy"] > 0.5
    with open(first / "metrics.csv", newline="") as stream:
        counted = [float(row["value"]) for row in csv.DictReader(stream) if row["metric"] == "samples"]
    assert sum(counted) == 5 * 450


@pytest.mark.timeout(500)
@pytest.mark.parametrize("np_", [8, 16, 32])
def test_many_ranks_on_one_machine_train_a_short_job(request, tmp_path, np_):
    if not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    short = [*FIVE_TASKS, "--batch-size", "2", "--epochs", "1"]
    done = train("torchrun", np_, tmp_path, "many", *short, *ER, limit_s=450)
    result = summary(done)
    assert (result["world_size"], result["buffer_transport"], result["samples_stored"]) == (np_, "shm", 404)


@pytest.mark.parametrize("launcher", ["horovodrun", "torchrun"])
def test_two_ranks_train_what_one_rank_trains_on_the_joined_batches(tmp_path, launcher):
    """Samplers, gradient averaging and the learning-rate rule together: the learning rate is scaled by 2 ranks."""
    if launcher not in launch.available():
        pytest.skip(f"{launcher} (or Horovod) is not installed")
    # 5000 samples: 50 divides them, so that no rank's last batch is cut. Not augmented: every rank draws its own.
    job = ["--dataset", "synthetic", "--epochs", "1", "--training-only", "--tasksets-config", "scenario=domain"]
    two = train(launcher, 2, tmp_path, "two", *job, "--batch-size", "25", "--lr", "0.005")
    alone = [*DIGITS, *job, "--batch-size", "50", "--lr", "0.01"]
    assert main([*alone, "--results-dir", str(tmp_path), "--save-dir", "one"]) == 0
    states = [
        torch.load(f / "checkpoints" / "task_00" / "model.pt", weights_only=True) for f in (two, tmp_path / "one")
    ]
    for name, value in states[0]["network"].items():
        torch.testing.assert_close(value, states[1]["network"][name], rtol=0, atol=1e-5)


def test_a_run_of_two_ranks_goes_on_alone(tmp_path):
    """anchors.md B.5: the number of ranks is no longer the same after a requeue."""
    launcher = launch.available()[0]
    two = train(launcher, 2, tmp_path, "two", *FIVE_TASKS, *ER, "--batch-size", "16")
    checkpoint = two / "checkpoints" / "task_02"
    alone = [*DIGITS, *FIVE_TASKS, *ER, "--batch-size", "32", "--results-dir", str(tmp_path), "--save-dir", "one"]
    assert main([*alone, "--load-checkpoint", str(checkpoint)]) == 0
    assert np.array_equal(matrix(two)[:3], matrix(tmp_path / "one")[:3])
    assert summary(tmp_path / "one")["samples_stored"] == 404
    assert summary(tmp_path / "one")["average_accuracy"] > 0.3, "five tasks of two epochs; without memory 0.2"


def test_replayed_samples_of_other_ranks_carry_their_labels(tmp_path):
    """rehearsal.md 6.1-3, 6.1-4: stale slots and random labels; encode the label in the pixels, train the real loop."""
    launcher = launch.available()[0]
    command = [HERE / "train_worker.py", "labels", *DIGITS, *FIVE_TASKS, *ER, "--batch-size", "16"]
    finished = launch.run(launcher, 2, [*map(str, command), "--results-dir", str(tmp_path)], timeout=180)
    assert finished.returncode == 0, finished.output
    remote = [int(number) for number in re.findall(r"rows, (\d+) from other ranks", finished.output)]
    assert len(remote) > 50
    assert sum(remote) > 100
