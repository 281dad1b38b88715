"""Strategies that tune modules on a frozen transformer, from the command line: what they leave, keep and refuse."""

import csv
import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import matrix
from safetensors.torch import save_file

from reprise.cl_models.base import STRATEGIES
from reprise.main import main
from reprise.runtime.stop import REQUEUE
from reprise.train import checkpoint

TINY = "patch_size=4 depth=2 embed_dim=16 num_heads=2"
COMMON = ["--dataset", "digits", "--tasksets-config", "increment=4 last_smaller=true", "--warmup-epochs", "0"]
COMMON += ["--epochs", "1", "--batch-size", "32", "--keep-checkpoints", "0", "--no-cuda", "--log-level", "warning"]
COMMON += ["--optimizer-regime", "[{'optimizer': 'Adam', 'lr': 0.01}]", "--backbone", "vit", "--backbone-config", TINY]
QUICK = "ca_epochs=2 rank=2 length=3 bottleneck=2"
TASKS = 3
MEMORY = ("--buffer-config", "capacity=40 num_representatives=8 deterministic=true")


def code_of(folder: Path, name: str, model: str, peft: str = "", *options: str) -> int:
    words = [*COMMON, "--model", model, "--peft-config", f"{QUICK} {peft}", *options]
    return main([*words, "--results-dir", str(folder), "--save-dir", name])


def run(folder: Path, name: str, model: str, peft: str = "", *options: str) -> Path:
    assert code_of(folder, name, model, peft, *options) == 0
    return folder / name


def refused(capsys, folder: Path, model: str, peft: str = "", *options: str) -> str:
    assert code_of(folder, "refused", model, peft, *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return line


def state(folder: Path, checkpoint: str = f"task_{TASKS - 1:02d}") -> dict:
    return torch.load(folder / "checkpoints" / checkpoint / "model.pt", weights_only=True)


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))  # type: ignore[arg-type]
    return first == second


@pytest.fixture(scope="module")
def selector(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("stage_1"), "selector", "Selector")


@pytest.mark.parametrize("model", ["HeadOnly", "SeqPeft", "Lae", "OraclePeft", "Slca"])
def test_one_stage_strategies_run_to_the_end(tmp_path, model):
    folder = run(tmp_path, "run", model)
    assert matrix(folder).shape == (TASKS, TASKS)
    assert np.isfinite(matrix(folder)).all()


@pytest.mark.parametrize("technique", ["lora", "prefix", "prompt", "adapter"])
def test_modules_of_earlier_tasks_stay_as_they_are(tmp_path, selector, technique):
    folder = run(tmp_path, technique, "Hide", f"selector={selector} technique={technique}")
    saved = [state(folder, f"task_{task:02d}") for task in range(TASKS)]
    for task, (before, after) in enumerate(pairwise(saved)):
        assert list(before["modules"]) == list(range(task + 1))
        assert same(before["modules"], {module: after["modules"][module] for module in before["modules"]})
        assert not same(after["modules"][task], after["modules"][task + 1])


def test_the_frozen_backbone_is_no_part_of_a_checkpoint(tmp_path):
    saved = state(run(tmp_path, "run", "SeqPeft"))
    tensors = {name: value for part in ("heads", "modules") for name, value in _flat(saved[part]).items()}
    assert sum(value.numel() for value in tensors.values()) == 2 * 2 * 2 * 2 * 16 + 10 * (16 + 1)
    assert "network" not in saved


def _flat(nested: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    flat = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@pytest.mark.parametrize("kind", ["first_sl", "slow_learner", "first_adapt", "fix_and_tuning", "same"])
def test_the_module_of_a_selector_learns_when_its_kind_says(tmp_path, kind):
    folder = run(tmp_path, kind, "Selector", f"continual_type={kind} slow_lr=0 fix_epochs=1")
    modules = [state(folder, f"task_{task:02d}")["modules"][0] for task in range(TASKS)]
    learns_later = not same(modules[0], modules[1])
    began = any(name.endswith("_B") and value.any() for name, value in modules[0].items())  # B begins as 0
    assert (began, learns_later) == {
        "first_sl": (True, False),
        "slow_learner": (False, False),
        "first_adapt": (True, False),
        "fix_and_tuning": (False, False),
        "same": (True, True),
    }[kind]


@pytest.mark.parametrize(
    "peft",
    [
        "inference=hard",
        "inference=tii+tap",
        "inference=topk topk=3 topk_by=task",
        "inference=topp",
        "inference=rematch",
    ],
)
def test_every_way_to_choose_a_module(tmp_path, selector, peft):
    folder = run(tmp_path, "run", "Hide", f"selector={selector} {peft}")
    assert np.isfinite(matrix(folder)).all()
    with open(folder / "metrics.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "accuracy_of_task" and row["task"] == "0"]
    assert [float(row["value"]) for row in rows] == [1.0, 0.0, 0.0], "after the first task, everything is of it"


def test_a_buffer_from_which_nothing_is_drawn_changes_no_bit(tmp_path, selector):
    chosen = f"selector={selector}"
    for model, peft in (
        ("Selector", ""),
        ("Hide", chosen),
        ("L2c", chosen),
        ("Slcapp", "init=svd targets=['q','v']"),
    ):
        none = run(tmp_path, f"{model}-none", model, peft)
        empty = run(tmp_path, f"{model}-empty", model, peft, "--buffer-config", "capacity=40 num_representatives=0")
        assert same(state(none), state(empty)), model
        assert (matrix(none) == matrix(empty)).all()


@pytest.mark.parametrize("model", ["Selector", "Hide", "SeqPeft", "L2c"])
def test_replay_is_trained_on_where_there_is_a_buffer(tmp_path, selector, model):
    peft = f"selector={selector} shared_statistics=false"
    none = run(tmp_path, "none", model, peft)
    replay = run(tmp_path, "replay", model, peft, "--buffer-config", "capacity=100 num_representatives=8")
    assert not same(state(none)["heads"], state(replay)["heads"])
    assert json.loads((replay / "summary.json").read_text())["samples_stored"] == 100
    memory = logged(replay, "memory")
    assert memory["bytes_of_images"] == 100 * (64 + 8 + 8)  # uint8 pixels, label, task
    assert memory["bytes_of_modules"] == sum(
        value.nbytes for module in state(replay)["modules"].values() for value in module.values()
    )
    kept = state(replay)["statistics"]
    assert memory["bytes_of_statistics"] == sum(value.nbytes for name, value in kept.items() if name != "method")
    assert logged(none, "memory")["bytes_of_images"] == memory["bytes_of_features"] == 0


def test_without_replay_classes_have_statistics_under_their_own_expert_and_all_before_it(tmp_path, selector):
    folder = run(tmp_path, "run", "L2c", f"selector={selector} statistics=variance")
    kept = state(folder)["statistics"]
    for task, classes in enumerate(state(folder)["classes"]):
        for label in classes:
            experts = {int(name.split(".")[1]) for name in kept if name.startswith(f"{label}.")}
            assert experts == set(range(task + 1))
            means = [kept[f"{label}.{expert}.mean"] for expert in sorted(experts)]
            assert all(not torch.equal(one, other) for one, other in pairwise(means))


def test_kept_features_are_counted_as_such(tmp_path):
    folder = run(tmp_path, "run", "Selector", "statistics=features centroids=3")
    memory = logged(folder, "memory")
    assert memory["bytes_of_features"] == 10 * (3 * 16 * 2 + 16 * 8)  # float16 features, float64 mean
    assert memory["bytes_of_statistics"] == 0


def test_every_image_counts_alike_in_the_pooled_accuracy(tmp_path):
    folder = run(tmp_path, "run", "HeadOnly")
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    of_last = [row for row in rows if row["task"] == str(TASKS - 1) and row["split"].startswith("test_task")]
    right, images = 0.0, 0.0
    for task in range(TASKS):
        values = {row["metric"]: float(row["value"]) for row in of_last if row["split"] == f"test_task_{task}"}
        right, images = right + values["accuracy"] * values["samples"], images + values["samples"]
    assert logged(folder, "cl")["pooled_accuracy"] == pytest.approx(right / images)


def test_the_second_module_of_lae_follows_and_both_answer(tmp_path):
    """From the checkpoints alone: e <- 0.75 e + 0.25 online after every task but the first, where it is a copy."""
    folder = run(tmp_path, "run", "Lae", "ema=0.75")
    states = [state(folder, f"task_{task:02d}")["modules"] for task in range(TASKS)]
    follower = states[0][0]
    for one in states:
        follower = {name: 0.75 * value + 0.25 * one[0][name] for name, value in follower.items()}
        for name, value in follower.items():
            torch.testing.assert_close(one[1][name], value)
    online = matrix(run(tmp_path, "online", "SeqPeft"))
    assert same(state(folder)["modules"][0], state(tmp_path / "online")["modules"][0])
    assert (matrix(folder)[0] == online[0]).all()
    assert (matrix(folder)[1:] != online[1:]).any()


def logged(folder: Path, split: str) -> dict[str, float]:
    """The last value of each metric of a split."""
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return {row["metric"]: float(row["value"]) for row in rows if row["split"] == split}


@pytest.mark.parametrize(
    ("model", "peft", "options"),
    [
        ("Selector", "", ()),
        ("Selector", "continual_type=fix_and_tuning fix_epochs=1", ()),
        ("Hide", "", ()),
        ("L2c", "", ()),
        ("L2c", "", MEMORY),
        ("Slca", "", ()),
        ("Slcapp", "init=svd targets=['q','v']", ()),
        ("Lae", "", ()),
    ],
)
def test_a_run_that_goes_on_in_the_middle_of_a_task_is_the_same_run(tmp_path, selector, model, peft, options):
    peft, options = f"selector={selector} {peft}", (*options, "--epochs", "2")
    whole = run(tmp_path, "whole", model, peft, *options, "--checkpoint-every", "5")
    for epoch in range(2):
        middle = ("--load-checkpoint", str(within(whole, task=1, epoch=epoch)))
        resumed = run(tmp_path, f"resumed-in-{epoch}", model, peft, *options, *middle)
        assert same(state(whole), state(resumed))
        assert (matrix(whole) == matrix(resumed)).all()


def within(folder: Path, task: int, epoch: int) -> Path:
    """A checkpoint of a run, made between two steps of that epoch."""
    for found in map(checkpoint.read_manifest, sorted((folder / "checkpoints").glob("step_*"))):
        progress = found.progress
        if (progress.tasks_done, progress.epoch) == (task, epoch) and progress.samples:
            return found.folder
    raise AssertionError(f"{folder} has no checkpoint in epoch {epoch} of task {task}")


@pytest.mark.parametrize(
    ("model", "options"), [("Selector", ()), ("L2c", ()), ("L2c", MEMORY), ("Slca", ()), ("Lae", ())]
)
def test_a_run_that_is_stopped_in_an_evaluation_consolidates_no_task_twice(
    tmp_path, selector, monkeypatch, model, options
):
    """The signal comes when task 1 has been consolidated, and the checkpoint after the first test set."""
    peft = f"selector={selector}"
    whole = run(tmp_path, "whole", model, peft, *options)
    consolidate = STRATEGIES.get(model).consolidate

    def stopping(self, task, samples):
        consolidate(self, task, samples)
        if task.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(STRATEGIES.get(model), "consolidate", stopping)
        assert code_of(tmp_path, "stopped", model, peft, *options) == REQUEUE
    (middle,) = (tmp_path / "stopped" / "checkpoints").glob("step_*_trained")
    resumed = run(tmp_path, "resumed", model, peft, *options, "--load-checkpoint", str(middle))
    assert same(state(whole), state(resumed))
    assert (matrix(whole) == matrix(resumed)).all()


def test_a_second_stage_on_a_first_one_that_was_interrupted_is_the_same_run(tmp_path):
    """Stage 1 goes on in the middle of a task; stage 2 begins with it, and goes on with the one that never stopped."""
    first = run(tmp_path, "first", "Selector", "", "--checkpoint-every", "9")
    steps = sorted(path.name for path in (first / "checkpoints").glob("step_*"))
    middle = ("--load-checkpoint", str(first / "checkpoints" / steps[len(steps) // 2]))
    resumed = run(tmp_path, "resumed", "Selector", "", *middle)
    whole = run(tmp_path, "whole", "Hide", f"selector={first}")
    second = run(tmp_path, "second", "Hide", f"selector={resumed}")
    between = ("--load-checkpoint", str(second / "checkpoints" / "task_00"))
    third = run(tmp_path, "third", "Hide", f"selector={first}", *between)
    for other in (second, third):
        assert same(state(whole), state(other))
        assert (matrix(whole) == matrix(other)).all()


def test_a_second_stage_needs_the_first_one_of_its_own_data_and_backbone(tmp_path, selector, capsys):
    assert "needs a trained selector: run --model Selector first" in refused(capsys, tmp_path, "Hide")
    assert "no checkpoint in" in refused(capsys, tmp_path, "L2c", f"selector={tmp_path}")
    other = run(tmp_path, "sequential", "SeqPeft")
    assert "made with model 'SeqPeft'" in refused(capsys, tmp_path, "Hide", f"selector={other}")
    wider = ("--backbone-config", TINY.replace("embed_dim=16", "embed_dim=32"))
    assert "made with backbone_config" in refused(capsys, tmp_path, "Hide", f"selector={selector}", *wider)
    tasks = ("--tasksets-config", "increment=5 last_smaller=false")
    assert "made with tasksets_config" in refused(capsys, tmp_path, "Hide", f"selector={selector}", *tasks)


def test_a_first_stage_on_other_frozen_weights_is_refused(tmp_path, selector, capsys):
    """The same options, but the random weights of another seed."""
    line = refused(capsys, tmp_path, "Hide", f"selector={selector}", "--seed", "7")
    assert "its frozen backbone has other weights than this run's" in line


def test_other_ways_to_choose_are_measured_on_the_run_that_there_is(tmp_path, selector, capsys):
    hard = run(tmp_path, "hard", "Hide", f"selector={selector}")
    for name, peft in (("again", ""), ("topk", "inference=topk topk=3")):
        options = ("--eval-only", "--load-checkpoint", str(hard))
        folder = run(tmp_path, name, "Hide", f"selector={selector} {peft}", *options)
        assert matrix(folder).shape == (TASKS, TASKS)
        assert (matrix(folder)[:-1] == matrix(hard)[:-1]).all()
        assert not (folder / "checkpoints").exists() or not list((folder / "checkpoints").iterdir())
        if name == "again":
            assert (matrix(folder) == matrix(hard)).all()
    early = ("--eval-only", "--load-checkpoint", str(hard / "checkpoints" / "task_01"))
    assert f"has finished 2 of {TASKS} tasks" in refused(capsys, tmp_path, "Hide", f"selector={selector}", *early)


def test_going_on_with_another_first_stage_is_refused_by_its_weights(tmp_path, selector, capsys):
    hide = run(tmp_path, "hide", "Hide", f"selector={selector}")
    other = run(tmp_path, "other", "Selector", "slow_lr=0.5")
    options = ("--load-checkpoint", str(hide / "checkpoints" / "task_00"))
    assert "made with another run of Selector" in refused(capsys, tmp_path, "Hide", f"selector={other}", *options)


def test_what_is_only_measured_must_be_there(tmp_path, capsys):
    assert "eval_only measures what load_checkpoint names" in refused(capsys, tmp_path, "SeqPeft", "", "--eval-only")


def test_a_first_stage_that_has_not_finished_is_refused(tmp_path, selector, capsys):
    part = tmp_path / "part" / "checkpoints"
    part.mkdir(parents=True)
    (part / "task_00").symlink_to(selector / "checkpoints" / "task_00")
    assert f"has trained 1 of {TASKS} tasks" in refused(capsys, tmp_path, "Hide", f"selector={tmp_path / 'part'}")


@pytest.mark.parametrize(
    ("model", "peft", "options", "said"),
    [
        ("SeqPeft", "blocks=[0,7]", (), "blocks [0, 7] of VisionTransformer, which has 2"),
        ("SeqPeft", "", ("--tasksets-config", "increment=2 task_free=true last_smaller=false"), "task_free"),
        ("SeqPeft", "", ("--use-adasum",), "use_adasum does not go with SeqPeft"),
        ("SeqPeft", "technique=lorra", (), "technique"),
        ("Selector", "", ("--buffer-config", "store=augmented"), "stores raw samples in every step"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path, capsys, model, peft, options, said):
    assert said in refused(capsys, tmp_path, model, peft, *options)


def test_a_network_without_blocks_is_refused(tmp_path, capsys):
    words = ["--dataset", "digits", "--backbone", "mlp", "--model", "SeqPeft", "--results-dir", str(tmp_path)]
    assert main(words) == 2
    assert "is no vision transformer; use --backbone vit" in capsys.readouterr().err


def test_pretrained_weights_are_read_and_told_from_others(tmp_path):
    run(tmp_path, "first", "HeadOnly", "", "--seed", "1")
    from reprise import backbone

    network = backbone.build("vit", num_classes=10, sample_shape=(1, 8, 8), config=_numbers(TINY))
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
    save_file(weights, tmp_path / "vit.safetensors")
    options = ("--backbone-config", f"{TINY} pretrained={tmp_path / 'vit.safetensors'}")
    hashes = {
        state(run(tmp_path, f"run-{seed}", "HeadOnly", "", *options, "--seed", seed))["backbone"] for seed in "12"
    }
    assert hashes == {backbone.fingerprint(network)}


def _numbers(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in (pair.split("=") for pair in text.split())}
