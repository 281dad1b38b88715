"""Sweeps of runs of two ranks each, killed in the middle, here and as an agent of Weights & Biases starts them."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import launch
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCHER = "horovodrun" if "horovodrun" in launch.available() else "torchrun"
RANKS = ["--launcher", LAUNCHER, "--np", "2"]
LIMIT_S = 240.0
COMPLETE = {
    "accuracy_matrix.csv",
    "accuracy_matrix.png",
    "command.txt",
    "config.yaml",
    "curves.png",
    "environment.json",
    "log.txt",
    "metrics.csv",
    "metrics.jsonl",
    "summary.json",
    "timeline.png",
}


@pytest.fixture
def whole(request) -> bool:
    return request.config.getoption("--whole")


@pytest.fixture
def file(tmp_path, whole) -> Path:
    """A sweep of six trials, or two."""
    path = tmp_path / "search.yaml"
    content = {
        "program": "sweep.py",
        "command": ["${env}", "${interpreter}", "${program}", *RANKS, "${args}"],
        "method": "grid",
        "metric": {"name": "cl/average_accuracy", "goal": "maximize"},
        "parameters": {
            "dataset": {"value": "digits"},
            "backbone": {"value": "mlp"},
            "model": {"value": "Er"},
            "tasksets_config.increment": {"value": 2},
            "epochs": {"value": 1},
            "momentum": {"value": None},
            "buffer_config.rehearsal_ratio": {"values": [5, 10, 30] if whole else [10]},
            "buffer_config.num_representatives": {"values": [4, 16]},
        },
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def trials(whole) -> range:
    return range(6 if whole else 2)


def start(arguments: list[str], folder: Path, **variables: str) -> subprocess.Popen:
    env = launch.worker_environment({"WANDB_MODE": "offline", "WANDB_SILENT": "true", **variables})
    with open(folder / "output.txt", "ab") as output:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "sweep.py"), *arguments],
            cwd=folder,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def finish(process: subprocess.Popen, folder: Path, code: int = 0) -> None:
    try:
        assert process.wait(LIMIT_S) == code, (folder / "output.txt").read_text()
    finally:
        kill_tree(process.pid)


def kill_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        kill([*process.children(recursive=True), process])


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {LIMIT_S} s"
        time.sleep(0.05)


def assert_complete(folder: Path, ranks: int = 2) -> None:
    assert {path.name for path in folder.iterdir()} >= COMPLETE
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["world_size"] == ranks
    assert summary["tasks"] == 5
    with open(folder / "metrics.csv", newline="") as stream:
        rows = [(row["step"], row["task"], row["split"], row["metric"]) for row in csv.DictReader(stream)]
    assert len(set(rows)) == len(rows)  # what was logged before the kill is not there twice
    assert sum(split.startswith("test") and metric == "accuracy" for *_, split, metric in rows) == 25
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(rows)


@pytest.mark.timeout(900)
def test_a_search_here_survives_kills(tmp_path, file, trials):
    sweep = tmp_path / "results" / "search"
    arguments = ["--local", str(file), *RANKS]

    first = start(arguments, tmp_path)
    # The first trial is done, another trains: sweep.py dies, then the ranks that it left.
    wait_for((sweep / "trial-0001" / "log.txt").exists, "training of trial 1")
    before = (sweep / "trial-0000" / "summary.json").stat().st_mtime_ns
    left = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    assert not (sweep / "trials.csv").exists()

    second = start(arguments, tmp_path)
    kill(left)
    # A rank dies in the middle of the last trial, which is tried again.
    log = sweep / f"trial-{trials[-1]:04d}" / "log.txt"
    wait_for(lambda: log.exists() and "task 1" in log.read_text(), "training of the last trial")
    ranks = [p for p in psutil.Process(second.pid).children(recursive=True) if "main.py" in " ".join(p.cmdline())]
    ranks[-1].kill()
    finish(second, tmp_path)

    for trial in trials:
        assert_complete(sweep / f"trial-{trial:04d}")
    assert (sweep / "trial-0000" / "summary.json").stat().st_mtime_ns == before  # not trained again
    with open(sweep / "trials.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["done"] for row in rows] == ["True"] * len(trials)
    varied = {(row["buffer_config.rehearsal_ratio"], row["buffer_config.num_representatives"]) for row in rows}
    assert len(varied) == len(trials)
    for row in rows:
        summary = json.loads((sweep / row["folder"] / "summary.json").read_text())
        assert float(row["average_accuracy"]) == summary["average_accuracy"]
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")

    written = (sweep / "trials.csv").read_text()
    third = start(arguments, tmp_path)
    finish(third, tmp_path)
    assert (sweep / "trials.csv").read_text() == written


@pytest.mark.timeout(600)
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, file):
    sweep = tmp_path / "results" / "search"
    arguments = ["--local", str(file), "--trial", "0"]
    process = start(arguments, tmp_path)
    log = sweep / "trial-0000" / "log.txt"
    wait_for(lambda: log.exists() and "task 0" in log.read_text(), "training")
    process.send_signal(signal.SIGTERM)
    finish(process, tmp_path, code=85)
    assert not (sweep / "trial-0000" / "summary.json").exists()
    assert "trials are not done" in (tmp_path / "output.txt").read_text()
    finish(start(arguments, tmp_path), tmp_path)
    assert_complete(sweep / "trial-0000", ranks=1)


@pytest.mark.timeout(600)
def test_two_sweeps_share_the_trials(tmp_path, file, trials):
    """As the tasks of a job array do: no trial is run by both, and each ends only when all are done."""
    both = [start(["--local", str(file)], tmp_path) for _ in range(2)]
    for process in both:
        finish(process, tmp_path)
    sweep = tmp_path / "results" / "search"
    for trial in trials:
        assert_complete(sweep / f"trial-{trial:04d}", ranks=1)
        assert (sweep / f"trial-{trial:04d}.log").read_text().count("1 rank(s), started by") == 1
    assert (sweep / "trials.csv").read_text().count(",True,") == len(trials)


class Agent:
    """Does what an agent of the service does: one command per run, values as arguments, names in the environment."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.content = yaml.safe_load(file.read_text())
        self.folder = folder

    def runs(self) -> list[dict]:
        parameters = self.content["parameters"]
        choices = [spec.get("values", [spec.get("value")]) for spec in parameters.values()]
        return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*choices)]

    def start(self, run: int) -> subprocess.Popen:
        words = []
        for word in self.content["command"]:
            if word == "${args}":
                words += [f"--{key}={value}" for key, value in self.runs()[run].items()]
            else:
                known = {"${env}": "/usr/bin/env", "${interpreter}": sys.executable, "${program}": ROOT / "sweep.py"}
                words.append(str(known.get(word, word)))
        names = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": f"run{run}", "WANDB_PROJECT": "tests"}
        env = launch.worker_environment({"WANDB_MODE": "offline", "WANDB_SILENT": "true", **names})
        with open(self.folder / "output.txt", "ab") as output:
            return subprocess.Popen(words, cwd=self.folder, env=env, stdout=output, stderr=subprocess.STDOUT)


@pytest.mark.timeout(900)
def test_an_agents_runs_survive_a_kill(tmp_path, file):
    pytest.importorskip("wandb")
    agent = Agent(file, tmp_path)
    folder = tmp_path / "results" / "sweep-s1"
    killed = agent.start(0)
    log = folder / "run0" / "log.txt"
    wait_for(lambda: log.exists() and "task 1" in log.read_text(), "training of the first run")
    kill_tree(killed.pid)
    killed.wait()
    for run in range(len(agent.runs())):
        finish(agent.start(run), tmp_path)
        assert_complete(folder / f"run{run}")
        stored = list((folder / f"run{run}").glob(f"wandb/offline-run-*-run{run}/run-run{run}.wandb"))
        assert len(stored) == (2 if run == 0 else 1)
        assert all(path.stat().st_size for path in stored)
    configured = yaml.safe_load((folder / "run1" / "config.yaml").read_text())["run"]["buffer_config"]
    assert configured["num_representatives"] == agent.runs()[1]["buffer_config.num_representatives"]


@pytest.mark.timeout(300)
def test_an_agents_mistake_is_one_line(tmp_path):
    process = start(["--lr=high", *RANKS], tmp_path)
    finish(process, tmp_path, code=2)
    lines = (tmp_path / "output.txt").read_text().splitlines()
    assert lines == ["reprise: error: --lr 'high': expected a number above 0"]


def test_the_launcher_script_searches_here_when_offline(tmp_path, file):
    script = ROOT / "sweep_launcher.sh"
    env = launch.worker_environment({"WANDB_MODE": "offline", "SWEEP_FILE": str(file), "PYTHON": "echo"})
    said = subprocess.run(["bash", script, "node-7.site:1"], env=env, capture_output=True, text=True, timeout=60)
    assert said.stdout == f"sweep.py --local {file} --wandb-project reprise\n"
    joined = subprocess.run(
        ["bash", script, "node-7.site:1", "abc"], env=env, capture_output=True, text=True, timeout=60
    )
    assert joined.returncode == 2
    assert "cannot join 'abc'" in joined.stderr


@pytest.mark.parametrize("existing", [[], ["me/mine/abc"]])
def test_the_launcher_script_begins_or_joins_a_sweep(tmp_path, existing):
    stub = tmp_path / "wandb"
    stub.write_text(
        '#!/bin/sh\necho "$REPRISE_HOSTS $*" >> "$CALLS"\n'
        '[ "$1" = sweep ] && echo "wandb: Run sweep agent with: wandb agent me/mine/new" >&2\nexit 0\n'
    )
    stub.chmod(0o755)
    env = launch.worker_environment(
        {"WANDB_API_KEY": "k", "CALLS": str(tmp_path / "calls"), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    )
    env.pop("WANDB_MODE", None)
    subprocess.run(["bash", ROOT / "sweep_launcher.sh", "node-7.site:1", *existing], env=env, check=True, timeout=60)
    calls = (tmp_path / "calls").read_text().splitlines()
    begun = ["node-7.site:1 sweep --project reprise sweep.yaml"]
    assert calls == [*([] if existing else begun), f"node-7.site:1 agent {existing[0] if existing else 'me/mine/new'}"]


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["--help"], ["node-7.site:1"]])
def test_the_launcher_script_says_what_it_needs(arguments):
    env = launch.worker_environment(None)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        env.pop(name, None)
    said = subprocess.run(
        ["bash", ROOT / "sweep_launcher.sh", *arguments], env=env, capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 2
    assert ("WANDB_API_KEY is not set" if arguments == ["node-7.site:1"] else "Usage: sweep_launcher.sh") in said.stderr
