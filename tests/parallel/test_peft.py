"""Strategies that tune modules, on several ranks: nothing of an earlier task moves, and ranks agree on everything."""

import functools
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import launch
import pytest
import torch

WORKER = Path(__file__).with_name("peft_worker.py")
TINY = "patch_size=4 depth=2 embed_dim=16 num_heads=2"
GLOBAL_BATCH, TASKS = 32, 3
COMMON = [
    "--warmup-epochs",
    "0",
    "--epochs",
    "1",
    "--keep-checkpoints",
    "0",
    "--no-cuda",
    "--log-level",
    "warning",
    "--save-dir",
    "run",
]
COMMON += ["--backbone", "vit", "--backbone-config", TINY, "--log-interval", "1"]
DIGITS = ["--dataset", "digits", "--tasksets-config", "increment=4 last_smaller=true"]
DIGITS += ["--optimizer-regime", "[{'optimizer': 'Adam', 'lr': 0.01}]"]
SGD = ["--optimizer-regime", "[{'optimizer': 'SGD', 'lr': 0.1}]"]
# What is drawn differs between ranks, and the contrast is between the samples of a rank.
ALIKE = "alignment=false reg=0"


@functools.cache
def place() -> Path:
    folder = tempfile.TemporaryDirectory()
    place.keep = folder
    return Path(folder.name)


@functools.cache
def job(launcher: str, ranks: int, model: str, peft: str, *options: str, batch: int = GLOBAL_BATCH) -> Path:
    folder = Path(tempfile.mkdtemp(dir=place()))
    words = [*COMMON, *(options or DIGITS), "--batch-size", str(batch // ranks), "--results-dir", str(folder)]
    words += ["--model", model, "--peft-config", f"ca_epochs=2 rank=2 length=3 bottleneck=2 {peft}"]
    env = {"REPRISE_TIMEOUT": "60", "OMP_NUM_THREADS": "1"}
    done = launch.run(launcher, ranks, [WORKER, folder, *words], env=env, timeout=150)
    assert done.returncode == 0, done.output[-4000:]
    return folder


def of_ranks(folder: Path, ranks: int) -> list[dict]:
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(ranks)]


def state(folder: Path, task: int = TASKS - 1) -> dict:
    return torch.load(folder / "run" / "checkpoints" / f"task_{task:02d}" / "model.pt", weights_only=True)


def second_stage(launcher: str, ranks: int) -> Path:
    return job(launcher, ranks, "Hide", f"selector={job('python', 1, 'Selector', '') / 'run'}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("launcher", "ranks"), [("horovodrun", 2), ("torchrun", 2), ("horovodrun", 4)])
def test_modules_of_earlier_tasks_are_the_same_bits_on_every_rank_after_every_task(launcher, ranks):
    first, *others = of_ranks(second_stage(launcher, ranks), ranks)
    assert all(other["tasks"] == first["tasks"] for other in others)
    assert len(first["tasks"]) == TASKS
    for before, after in pairwise(first["tasks"]):
        assert before["modules"].items() < after["modules"].items()
        assert before["heads"] != after["heads"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("launcher", "ranks"), [("horovodrun", 2), ("torchrun", 2)])
def test_a_step_sends_what_it_trains_and_no_byte_more(launcher, ranks):
    for rank in of_ranks(second_stage(launcher, ranks), ranks):
        sent = [step["sent"] for step in rank["steps"]]
        assert [now - before for before, now in pairwise([0, *sent])] == [step["trained"] for step in rank["steps"]]
        # Task 0: rank 2, k and v, 2 blocks of width 16, both ways; a head of 4 classes.
        assert rank["steps"][0]["trained"] == 4 * (2 * 2 * 2 * 2 * 16 + 4 * (16 + 1))


# 5,000 images as they are, none of which a rank leaves out: 25 steps.
JOINED = ("--dataset", "synthetic", "--tasksets-config", "scenario=domain", *SGD)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("model", "ranks"), [("Selector", 2), ("Selector", 4), ("Hide", 2)])
def test_several_ranks_learn_what_one_learns_at_equal_global_batch(model, ranks):
    peft = ALIKE
    if model == "Hide":
        peft += f" selector={job('python', 1, 'Selector', ALIKE, *JOINED, batch=200) / 'run'}"
    one = state(job("python", 1, model, peft, *JOINED, batch=200), task=0)
    several = state(job("horovodrun", ranks, model, peft, *JOINED, batch=200), task=0)
    compared = 0
    for part in ("heads", "modules"):
        for name, value in _flat(one[part]).items():
            torch.testing.assert_close(_flat(several[part])[name], value, rtol=0, atol=1e-5)
            compared += value.numel()
    assert compared == 2 * 2 * 2 * 2 * 16 + 10 * (16 + 1)


@pytest.mark.timeout(300)
def test_statistics_do_not_depend_on_the_number_of_ranks():
    """Of a module that never moves, so that all see the same features. On 4 ranks: test_peft_statistics.py."""
    peft = f"{ALIKE} continual_type=slow_learner slow_lr=0 statistics=covariance"
    one, several = (
        state(job(launcher, n, "Selector", peft))["statistics"] for launcher, n in (("python", 1), ("horovodrun", 2))
    )
    flat, other = _flat(one), _flat(several)
    assert flat.keys() == other.keys()
    tensors = {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == 2 * 10
    for name, value in tensors.items():
        torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.timeout(300)
def test_a_run_with_a_memory_goes_on_with_another_number_of_ranks():
    """L2c stopped on 2 ranks after its first task, finished on one: that task is as it was, and the memory is full."""
    selector = job("python", 1, "Selector", "") / "run"
    memory = (*DIGITS, "--buffer-config", "capacity=60 num_representatives=8 deterministic=true")
    two = job("horovodrun", 2, "L2c", f"selector={selector}", *memory)
    stopped = two / "run" / "checkpoints" / "task_00"
    one = job("python", 1, "L2c", f"selector={selector}", *memory, "--load-checkpoint", str(stopped))
    assert _flat(state(one)["modules"][0]).keys() == _flat(state(two)["modules"][0]).keys()
    for name, value in state(two)["modules"][0].items():
        assert torch.equal(state(one)["modules"][0][name], value)
    (rank,) = of_ranks(one, 1)
    assert len(rank["tasks"]) == TASKS - 1
    assert json.loads((one / "run" / "summary.json").read_text())["samples_stored"] == 60


def _flat(nested: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
