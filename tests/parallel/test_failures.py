"""Jobs of several processes that go wrong: every rank ends, quickly, one line says why, and nothing is lost."""

import json
import re
import time
from pathlib import Path

import launch
import pytest

from reprise.main import main

HERE = Path(__file__).parent
DIGITS = ["--dataset", "digits", "--backbone", "mlp", "--batch-size", "16", "--warmup-epochs", "0"]
TASKS = ["--tasksets-config", "{'increment': 5}"]
ER = ["--model", "Er", "--buffer-config", "{'rehearsal_ratio': 30, 'implementation': 'python', 'deterministic': True}"]


def ours(output: str) -> list[str]:
    """Our own error lines, without what launchers put before them."""
    return re.findall(r"reprise: error: .*", output)


@pytest.mark.parametrize("launcher", launch.available())
def test_a_worker_killed_in_mid_epoch_ends_every_rank_and_loses_no_checkpoint(tmp_path, launcher):
    """ "python": processes with no launcher above them, so the survivor has to notice for itself."""
    arguments = [*DIGITS, *TASKS, *ER, "--epochs", "4", "--results-dir", str(tmp_path), "--save-dir", "run"]
    # 21 steps per epoch: the first task ends after 84, the kill comes in the second.
    started = time.monotonic()
    command = [str(HERE / "train_worker.py"), "kill:1:100", *arguments]
    finished = launch.run(launcher, 2, command, timeout=90)
    assert finished.returncode != 0, finished.output
    assert time.monotonic() - started < 90
    survivors = ours(finished.output)
    assert len(survivors) <= 1, "rank 0 at most once; a launcher may have ended it before it could speak"
    for line in survivors:
        assert "rank 0 of 2" in line
    if launcher == "python":
        assert survivors, finished.output
        assert "rank 1 (" in survivors[0], "the dead rank is named"
        assert "Traceback" not in finished.output
    assert not (tmp_path / "run" / "summary.json").exists()

    checkpoint = tmp_path / "run" / "checkpoints" / "task_00"
    progress = json.loads((checkpoint / "checkpoint.json").read_text())["progress"]
    assert progress["tasks_done"] == 1
    assert main([*arguments, "--save-dir", "resumed", "--load-checkpoint", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "resumed" / "summary.json").read_text())["tasks"] == 2


@pytest.mark.parametrize("launcher", [name for name in launch.available() if name in ("horovodrun", "torchrun")])
def test_a_rank_that_is_stuck_is_waited_for_no_longer_than_said_and_named(tmp_path, launcher, request):
    """Stopped, so that its process is there and joins nothing any more."""
    if launcher == "torchrun" and not request.config.getoption("--whole"):
        pytest.skip("only with --whole")  # its agent waits 30 s for the stopped process to end
    command = [str(HERE / "train_worker.py"), "SIGSTOP:1:40", *DIGITS, *TASKS, *ER, "--epochs", "4"]
    command += ["--timeout", "5", "--results-dir", str(tmp_path), "--save-dir", "run"]
    finished = launch.run(launcher, 2, command, timeout=120)
    assert finished.returncode != 0
    (line,) = re.findall(r"reprise: rank 0 of 2 .*", finished.output)
    assert re.search(
        r"in step 40 \(task 0, epoch 1\) has waited 5 s .* limit 5 s .*still running here: rank 1 \(", line
    )
    assert "ending with exit code 75" in line


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--backbone", "mpl"], ("mpl", "mlp")),
        (["--buffer-config", "capacity=3"], ("capacity", "3", "4")),
        (["--batch-size", "400"], ("400", "batch")),
        (["--results-dir", "/proc/reprise"], ("/proc/reprise",)),
        (["--dataset", "mnist", "--dataset-dir", "nowhere"], ("nowhere", "--download")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_said_once_and_by_rank_0_alone(tmp_path, arguments, fragments):
    command = [*DIGITS, *TASKS, "--model", "Er", "--epochs", "1", "--results-dir", str(tmp_path), *arguments]
    launcher = "torchrun" if arguments[0] == "--buffer-config" else launch.available()[0]
    finished = launch.run(launcher, 4, [str(HERE / "train_worker.py"), "plain", *command], timeout=120)
    assert finished.returncode != 0
    lines = ours(finished.output)
    assert len(lines) == 1, finished.output
    for fragment in fragments:
        assert fragment in lines[0]
