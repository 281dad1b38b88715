"""The run folder: created early or refused in one line, nothing half old, nothing of the user's lost."""

import csv
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from reprise.report import environment, summary_schema
from reprise.report.run_folder import RunFolder
from reprise.report.sinks import CsvSink, JsonlSink, MetricRow
from reprise.runtime.errors import UserError

SUMMARY = {
    **dict.fromkeys(summary_schema.ACCURACIES, 0.5),
    **dict.fromkeys(summary_schema.ERRORS),
    **{"tasks": 5, "seed": 42, "world_size": 2, "buffer_bytes_per_rank": 0, "samples_stored": 0},
    **{"launcher": "horovodrun", "strategy": "Vanilla", "buffer_implementation": "none", "buffer_transport": "none"},
    **{"images_per_second": 1000.0, "train_seconds": 3.5, "wait_share": 0.0},
    "step_ms": {"p50": 1.0, "p95": 2.0},
    "wait_ms": {"p50": 0.0, "p95": 0.0},
}


def test_a_new_run_deletes_what_it_rewrites_and_nothing_else(tmp_path):
    stale = ["summary.json", "metrics.csv", "accuracy_matrix.png", "log.txt", "tensorboard/events.out.tfevents.1.host"]
    kept = ["notes.md", "tensorboard/notes.txt", "wandb/run/file"]
    for name in stale + kept:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("old")
    folder = RunFolder(tmp_path)
    assert [name for name in stale if not (tmp_path / name).exists()] == [], "nothing is lost before the run can start"
    folder.start_over()
    assert [name for name in stale if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []


def test_checkpoints_of_earlier_runs_are_kept_apart(tmp_path):
    for content in ("first", "second"):
        RunFolder(tmp_path).start_over()
        (tmp_path / "checkpoints" / "task_00").mkdir(parents=True)
        (tmp_path / "checkpoints" / "task_00" / "model.pt").write_text(content)
    RunFolder(tmp_path).start_over()
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "checkpoints.old-1" / "task_00" / "model.pt").read_text() == "first"
    assert (tmp_path / "checkpoints.old-2" / "task_00" / "model.pt").read_text() == "second"


def test_a_resumed_run_forgets_what_was_written_after_its_checkpoint_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    for sink in (CsvSink(folder.metrics_csv), JsonlSink(folder.metrics_jsonl)):
        for step in (10, 20, 30):
            sink.log(MetricRow(step // 10 - 1, 0, step, "train", "loss", float(step)))
        sink.close()
    for name in ("task_00", "task_01", "task_02"):
        (folder.checkpoints / name).mkdir(parents=True)
    (tmp_path / "summary.json").write_text("old")
    (tmp_path / "log.txt").write_text("kept")
    (folder.checkpoints / ".step_00000025.partial").mkdir()
    assert folder.go_on_from(2, [folder.checkpoints / "task_02"]) == 2
    with open(folder.metrics_csv, newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["10", "20"]
    assert [json.loads(line)["step"] for line in folder.metrics_jsonl.read_text().splitlines()] == [10, 20]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["old-1", "task_00", "task_01"]
    assert (folder.checkpoints / "old-1" / "task_02").is_dir()
    assert not (tmp_path / "summary.json").exists()
    assert (tmp_path / "log.txt").read_text() == "kept"


def test_a_missing_folder_is_created_with_its_parents_and_left_empty(tmp_path):
    folder = RunFolder(tmp_path / "results" / "demo")
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_in_the_way_is_one_line_naming_it(tmp_path, where):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file") as caught:
        RunFolder(tmp_path / where)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    """A read-only or full disk, simulated where the bytes are written, since root may write everywhere."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        RunFolder(tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "run").iterdir()) == []


def test_start_files_hold_configuration_command_and_environment(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_start("lr: 0.1\n", ["main.py", "--buffer-config", "{'a': 1}"], {"launcher": "solo"})
    assert (tmp_path / "config.yaml").read_text() == "lr: 0.1\n"
    assert (tmp_path / "command.txt").read_text() == """main.py --buffer-config '{'"'"'a'"'"': 1}'\n"""
    assert json.loads((tmp_path / "environment.json").read_text()) == {"launcher": "solo"}


@pytest.mark.parametrize(("task_il", "name"), [(False, "accuracy_matrix.csv"), (True, "accuracy_matrix_task_il.csv")])
def test_matrices_grow_with_the_tasks_and_read_back_exactly(tmp_path, task_il, name):
    folder = RunFolder(tmp_path)
    rows = np.random.default_rng(0).random((3, 3))
    for known in (1, 2, 3):
        folder.write_accuracy_matrix(rows[:known], task_il)
        with open(tmp_path / name, newline="") as stream:
            header, *lines = list(csv.reader(stream))
        assert header == ["trained_task", "task_0", "task_1", "task_2"]
        assert [line[0] for line in lines] == [str(i) for i in range(known)]
        assert np.array_equal(np.array([line[1:] for line in lines], dtype=np.float64), rows[:known])


def test_summary_has_exactly_the_documented_keys(tmp_path):
    """The keys of the run folder's documentation; other programs read them."""
    RunFolder(tmp_path).write_summary(SUMMARY)
    assert json.loads((tmp_path / "summary.json").read_text()) == SUMMARY
    assert summary_schema.read(tmp_path) == SUMMARY
    assert set(SUMMARY) == {
        *("average_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer", "forward_transfer"),
        *("average_accuracy_task_il", "tasks", "seed", "world_size", "launcher", "strategy", "buffer_implementation"),
        *("buffer_transport", "images_per_second", "train_seconds", "step_ms", "wait_ms", "wait_share"),
        *("buffer_bytes_per_rank", "samples_stored", "average_error", "error_increase"),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forgetting": ...}, "missing forgetting"),
        ({"accuracy": 1.0}, "unknown accuracy"),
        ({"average_accuracy": float("nan")}, "average_accuracy is nan"),
        ({"images_per_second": float("inf")}, "images_per_second is inf"),
        ({"wait_share": None}, "wait_share is None"),
        ({"tasks": 5.0}, "tasks is 5.0, expected an integer"),
        ({"seed": True}, "seed is True, expected an integer"),
        ({"launcher": ""}, "launcher is '', expected a name"),
        ({"step_ms": {"p50": 1.0}}, "step_ms is .*expected p50 and p95"),
        ({"wait_ms": {"p50": 1.0, "p95": float("nan")}}, r"wait_ms\.p95 is nan"),
    ],
)
def test_an_incomplete_summary_is_not_written(tmp_path, change, message):
    broken = {key: value for key, value in {**SUMMARY, **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path).write_summary(broken)
    assert not (tmp_path / "summary.json").exists()


def test_a_run_without_evaluation_has_no_accuracies(tmp_path):
    RunFolder(tmp_path).write_summary({**SUMMARY, **dict.fromkeys(summary_schema.ACCURACIES)})
    assert summary_schema.read(tmp_path)["forgetting"] is None


def test_pictures_are_those_that_were_drawn(tmp_path):
    folder = RunFolder(tmp_path)
    folder.curves_png.write_bytes(b"png")
    assert folder.pictures() == [tmp_path / "curves.png"]


def test_environment_is_plain_json_and_says_what_is_absent():
    found = environment.describe(world_size=2, launcher="torchrun")
    assert json.loads(json.dumps(found)) == found
    assert (found["world_size"], found["launcher"]) == (2, "torchrun")
    assert found["cpu_count"] == os.cpu_count()
    assert None not in (found["torch"], found["numpy"], found["python"])
    assert {"horovod", "mpi", "git_commit", "reprise", "host", "platform"} <= found.keys()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_somebody_elses_repository_is_not_ours(tmp_path):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True, timeout=30)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True, timeout=30)
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert len(environment._git_commit(tmp_path.resolve()) or "") == 40
    assert environment._git_commit(inside.resolve()) is None
    (tmp_path / "tracked").write_text("1")
    subprocess.run([*git, "add", "tracked"], check=True, timeout=30)
    assert (environment._git_commit(tmp_path.resolve()) or "").endswith("+changes")
