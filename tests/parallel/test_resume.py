"""A run that was killed or stopped, and resumed, is the same run: every weight, sample and number of it."""

import csv
import json
import random
import shutil
from pathlib import Path

import launch
import pytest
import torch

from reprise.buffer import snapshot
from reprise.runtime.stop import REQUEUE

WORKER = str(Path(__file__).with_name("train_worker.py"))
MEMORY = "{'capacity': 300, 'num_representatives': 8, 'deterministic': True}"
RUN = ["--dataset", "digits", "--backbone", "mlp", "--model", "Derpp", "--batch-size", "4", "--epochs", "2"]
RUN += ["--warmup-epochs", "0", "--tasksets-config", "{'increment': 2}", "--buffer-config", MEMORY]
RUN += ["--momentum", "0.9", "--lr", "0.01", "--checkpoint-every", "7"]
LAST = "task_04"

ALONE, TWO = ("python", 1), ("horovodrun", 2)


def train_seconds(folder):
    return json.loads((folder / "summary.json").read_text())["train_seconds"]


def start(launcher, folder, *arguments, fault="plain", timeout=300):
    name, ranks = launcher
    return launch.run(
        name,
        ranks,
        [WORKER, fault, *RUN, "--results-dir", folder.parent, "--save-dir", folder.name, *arguments],
        env={"OMP_NUM_THREADS": "1", "REPRISE_TIMEOUT": "60"},
        timeout=timeout,
    )


def skip_without(launcher):
    if launcher[0] not in launch.available():
        pytest.skip(f"{launcher[0]} is not installed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nobody interrupts, by launcher."""
    made = {}

    def make(launcher):
        if launcher not in made:
            skip_without(launcher)
            made[launcher] = tmp_path_factory.mktemp("whole") / "run"
            finished = start(launcher, made[launcher])
            assert finished.returncode == 0, finished.output
        return made[launcher]

    return make


def numbers(folder):
    """The rows of metrics.csv but for times."""
    with open(folder / "metrics.csv", newline="") as stream:
        return [row for row in csv.reader(stream) if "second" not in row[4]]


def contents(folder, ranks):
    """The samples of each rank at the end, with the policy's counters and the draws under way."""
    saved = folder / "checkpoints" / LAST / "buffer"
    manifest = snapshot.read_manifest(saved)
    return [snapshot.read_shard(saved, manifest, rank)["engine"] for rank in range(ranks)]


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def assert_same(folder, expected, ranks):
    for name in ("accuracy_matrix.csv", "accuracy_matrix_task_il.csv"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()
    models = [torch.load(at / "checkpoints" / LAST / "model.pt", weights_only=True) for at in (folder, expected)]
    assert equal(*models)
    assert equal(contents(folder, ranks), contents(expected, ranks))
    assert numbers(folder) == numbers(expected)
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("launcher", [ALONE, TWO], ids=["alone", "two"])
def test_killed_at_any_moment_and_resumed_it_is_the_same_run(tmp_path, whole, launcher, request):
    """25 kills with --whole, of every rank or of one; up to five of them hit the same run."""
    if launcher == ALONE and not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    expected = whole(launcher)
    seconds = train_seconds(expected)
    kills = 25 if request.config.getoption("--whole") else 1
    chance, number, of_this_run = random.Random(launcher[1]), 0, 0
    while kills:
        folder = tmp_path / f"{number}"
        victim = chance.choice([-1, chance.randrange(launcher[1])])
        fault = f"die:{victim}:{chance.uniform(0, 1.3 * seconds):.3f}" if of_this_run < 5 else "plain"
        finished = start(launcher, folder, "--resume", fault=fault)
        if finished.returncode:
            kills, of_this_run = kills - 1, of_this_run + 1
        if finished.returncode and kills:
            continue
        finished = start(launcher, folder, "--resume")
        assert finished.returncode == 0, finished.output
        assert_same(folder, expected, launcher[1])
        # On a machine that has become less busy most kills would come after the end.
        seconds = min(seconds, train_seconds(folder))
        number, of_this_run = number + 1, 0


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_every_process_of_the_job_leaves_the_loaders_to_their_work(tmp_path, whole, signal, request):
    """As a scheduler does it: workers and the server that forks them get it too."""
    if signal == "SIGTERM" and not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    folder, quiet = tmp_path / "run", ("--checkpoint-every", "0", "--dataloader-workers", "2")
    finished = start(ALONE, folder, *quiet, fault=f"all-{signal}:0:100")
    assert finished.returncode == REQUEUE, finished.output
    assert "Traceback" not in finished.output
    finished = start(ALONE, folder, "--checkpoint-every", "0", "--resume")
    assert finished.returncode == 0, finished.output
    assert_same(folder, whole(ALONE), 1)


@pytest.mark.parametrize(
    ("launcher", "signal", "rank"),
    [(ALONE, "SIGUSR1", -1), (TWO, "SIGTERM", -1), (TWO, "SIGUSR1", 1)],
    ids=["alone", "every rank", "one rank"],
)
def test_told_to_stop_it_saves_and_goes_on_as_the_same_run(tmp_path, whole, launcher, signal, rank, request):
    """SLURM signals every process, or one. Without periodic checkpoints: what is resumed was saved at the signal."""
    if rank == -1 and not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    expected, folder = whole(launcher), tmp_path / "run"
    finished = start(launcher, folder, "--checkpoint-every", "0", fault=f"{signal}:{rank}:100")
    assert finished.returncode == REQUEUE if launcher == ALONE else finished.returncode != 0, finished.output
    assert f"stopped by {signal} after step" in finished.output
    (newest,) = (folder / "checkpoints").glob("step_*")
    step = json.loads((newest / "checkpoint.json").read_text())["progress"]["steps"]
    assert 100 < step < 700
    assert not (folder / "summary.json").exists()
    finished = start(launcher, folder, "--checkpoint-every", "0", "--resume")
    assert finished.returncode == 0, finished.output
    assert_same(folder, expected, launcher[1])


def test_what_one_rank_cannot_write_is_no_checkpoint_for_anybody_and_the_next_one_is(tmp_path, whole):
    folder = tmp_path / "run"
    every = ("--checkpoint-every", "100", "--keep-checkpoints", "0")
    finished = start(TWO, folder, *every, fault="refuse:1:1")
    assert finished.returncode == 0, finished.output
    said = (folder / "log.txt").read_text()
    assert said.count("no checkpoint") == 1
    assert "no checkpoint task_00: rank 1: cannot write" in said
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {"task_01", "task_02", "task_03", "task_04"} < kept
    assert "task_00" not in kept
    assert_same(folder, whole(TWO), 2)
    (folder / "summary.json").unlink()
    for later in ("task_02", "task_03", "task_04"):
        shutil.rmtree(folder / "checkpoints" / later)
    for later in kept:
        if later.startswith("step_") and later > "step_00000144":
            shutil.rmtree(folder / "checkpoints" / later)
    finished = start(TWO, folder, *every, "--resume")
    assert finished.returncode == 0, finished.output
    assert f"resumed from {folder / 'checkpoints' / 'task_01'}" in (folder / "log.txt").read_text()
    assert_same(folder, whole(TWO), 2)


@pytest.mark.parametrize(("before", "after"), [(TWO, ALONE), (ALONE, TWO)], ids=["2 to 1", "1 to 2"])
def test_it_goes_on_in_mid_epoch_on_another_number_of_ranks(tmp_path, before, after, request):
    """Which samples of the epoch are left for whom is in test_sampler.py, where stored ones go in test_reshard.py."""
    skip_without(TWO)
    if before == ALONE and not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    folder = tmp_path / "run"
    assert start(before, folder, "--checkpoint-every", "0", fault="SIGTERM:-1:50").returncode != 0
    (newest,) = (folder / "checkpoints").glob("step_*")
    rows = numbers(folder)
    finished = start(after, folder, "--checkpoint-every", "0", "--resume")
    assert finished.returncode == 0, finished.output
    assert "generators start anew" in finished.output
    assert f"resumed from {newest}" in (folder / "log.txt").read_text()
    assert numbers(folder)[: len(rows)] == rows
    trained = [row for row in numbers(folder) if row[3:5] == ["train", "loss"]]
    assert [row[:2] for row in trained] == [[str(task), str(epoch)] for task in range(5) for epoch in range(2)]
    assert json.loads((folder / "summary.json").read_text())["average_accuracy"] > 0.5
