"""Workers come and go while a run goes on: horovodrun --min-np, and torchrun, which starts all anew."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import launch
import pytest

WORKER = Path(__file__).with_name("elastic_worker.py")
TRAIN_WORKER = str(Path(__file__).with_name("train_worker.py"))
CAPACITY = 300
RUN = ["--dataset", "digits", "--backbone", "mlp", "--model", "Er", "--batch-size", "8", "--warmup-epochs", "0"]
# Gentle steps, many representatives: the accuracy after a task's 88 steps is else a matter of chance.
RUN += ["--tasksets-config", "{'increment': 2}", "--lr", "0.02"]
RUN += ["--buffer-config", f"{{'capacity': {CAPACITY}, 'num_representatives': 16}}"]
# What Horovod takes for two hosts: a dead worker's host is shunned, and all its workers with it.
STAYS, GOES = "localhost", "127.0.0.1"


def elastic(tmp_path, hosts, arguments, *options, timeout=240.0):
    """A job on `hosts` (name -> slots); the worker on GOES dies in its 30th step."""
    found = tmp_path / "discover.sh"
    found.write_text("#!/bin/sh\n" + "".join(f"echo {host}:{slots}\n" for host, slots in hosts.items()))
    found.chmod(0o755)
    command = ["horovodrun", "--gloo", "-np", str(sum(hosts.values())), "--host-discovery-script", str(found)]
    command += ["--elastic-timeout", "60", *options, sys.executable, str(WORKER), str(tmp_path), GOES, "30"]
    command += [*arguments, "--results-dir", str(tmp_path), "--save-dir", "run"]
    return launch.run_command(command, {"OMP_NUM_THREADS": "1", "REPRISE_TIMEOUT": "60"}, timeout)


def written(tmp_path, pattern):
    texts = [text for path in tmp_path.glob(pattern) for text in json.loads(path.read_text())]
    return Counter(texts)


def said(tmp_path):
    return [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if " WARNING " in line]


def accuracy(tmp_path):
    return json.loads((tmp_path / "run" / "summary.json").read_text())["average_accuracy"]


@pytest.fixture(autouse=True)
def _with_horovod(request):
    if "elastic" in request.node.name and "horovodrun" not in launch.available():
        pytest.skip("horovodrun is not installed")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("hosts", [{STAYS: 2, GOES: 1}, {GOES: 1, STAYS: 2}], ids=["the last rank", "rank 0"])
def test_an_elastic_run_goes_on_without_a_killed_worker_and_keeps_its_samples(tmp_path, hosts, request):
    if not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    finished = elastic(tmp_path, hosts, [*RUN, "--epochs", "3"], "--min-np", "2", "--max-np", "3")
    assert finished.returncode == 0, finished.output
    left, kept, dealt = (written(tmp_path, pattern) for pattern in ("left.json", "kept-1-*.json", "dealt-1-*.json"))
    assert left.total() > 50
    assert dealt == left + kept
    (line,) = said(tmp_path)
    assert re.search(r"rank \d \(\S+:\d+\) was lost: going on at step \d+ with 2 rank\(s\); its (\d+) stored", line)
    assert f"its {left.total()} stored samples were adopted" in line
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["world_size"], summary["samples_stored"], summary["tasks"]) == (2, CAPACITY, 5)
    assert accuracy(tmp_path) > 0.8


@pytest.mark.timeout(1500)
def test_an_elastic_run_loses_a_worker_and_gets_another_one(tmp_path, repeats):
    """With --whole 5 seeds, and their mean beside that of undisturbed runs."""
    seeds, disturbed, undisturbed = range(repeats(5)), [], []
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        arguments = [*RUN, "--epochs", "8", "--seed", str(seed)]
        options = ("--min-np", "2", "--max-np", "3", "--blacklist-cooldown-range", "2", "3")
        finished = elastic(folder, {STAYS: 2, GOES: 1}, arguments, *options)
        assert finished.returncode == 0, finished.output
        assert written(folder, "dealt-1-*.json") == written(folder, "left.json") + written(folder, "kept-1-*.json")
        assert written(folder, "dealt-2-*.json") == written(folder, "kept-2-*.json")
        assert len(list(folder.glob("dealt-2-*.json"))) == 3
        lost, joined = said(folder)
        assert "was lost: going on" in lost
        assert "1 rank(s) have joined: going on" in joined
        summary = json.loads((folder / "run" / "summary.json").read_text())
        assert (summary["world_size"], summary["samples_stored"]) == (3, CAPACITY)
        trained = [line.split(",")[:2] for line in (folder / "run" / "metrics.csv").read_text().splitlines()]
        epochs = [(task, epoch) for task, epoch, *rest in map(tuple, trained)]
        assert set(epochs[1:]) == {(str(task), str(epoch)) for task in range(5) for epoch in range(8)}
        disturbed.append(accuracy(folder))
        if len(seeds) > 1:
            calm = folder / "calm"
            calm.mkdir()
            job = [TRAIN_WORKER, "plain", *arguments, "--results-dir", calm, "--save-dir", "run"]
            assert launch.run("horovodrun", 3, job, timeout=240).returncode == 0
            undisturbed.append(accuracy(calm))
    print(f"average accuracy, disturbed {disturbed}, undisturbed {undisturbed}")
    if undisturbed:
        assert abs(sum(disturbed) - sum(undisturbed)) / len(seeds) <= 0.03
    else:
        assert disturbed[0] > 0.8


def test_torchrun_starts_all_anew_and_they_go_on_from_the_last_checkpoint(tmp_path):
    once = "--max-restarts=1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", once]
    command += [TRAIN_WORKER, "kill-once:1:60", *RUN, "--epochs", "2", "--checkpoint-every", "20", "--resume"]
    command += ["--results-dir", str(tmp_path), "--save-dir", "run"]
    finished = launch.run_command(command, {"OMP_NUM_THREADS": "1", "REPRISE_TIMEOUT": "60"}, 200.0)
    assert finished.returncode == 0, finished.output
    assert "resumed from" in (tmp_path / "run" / "log.txt").read_text()
    assert accuracy(tmp_path) > 0.8
