"""What a run had learnt after how much training time is read from its folder, drawn, and said to be missing."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from test_report_summary import SUMMARY

from reprise.benchmarks import baselines
from reprise.report import __main__ as command
from reprise.report.time_curve import read
from reprise.runtime.errors import UserError

ROWS = [["trained_task", "task_0", "task_1", "task_2"], [0, 0.9, 0.1, 0.0], [1, 0.5, 0.7, 0.2], [2, 0.3, 0.6, 0.9]]
SECONDS = (2.0, 3.5, 7.0)


def write(path, rows):
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def write_run(folder, matrix="accuracy_matrix.csv"):
    folder.mkdir()
    write(folder / matrix, ROWS)
    header = [["task", "epoch", "step", "split", "metric", "value"]]
    losses = [[task, 4, 10 * task, "train", "loss", 0.5] for task in range(3)]
    times = [[task, 4, 10 * task, "train", "train_seconds", SECONDS[task]] for task in range(3)]
    write(folder / "metrics.csv", header + losses + times)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


@pytest.mark.parametrize("errors", [False, True])
def test_a_point_is_the_mean_over_tasks_seen_and_the_seconds_until_then(tmp_path, errors):
    curve = read(write_run(tmp_path / "run", "error_matrix.csv" if errors else "accuracy_matrix.csv"))
    assert curve.errors == errors
    assert curve.seconds == SECONDS
    assert curve.averages == pytest.approx((0.9, 0.6, 0.6))


def test_the_comparison_draws_the_runs_it_lists(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name)) for name in ("Er", "scratch")]
    picture = tmp_path / "picture.png"
    assert command.main([*runs, "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "ACC" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["accuracy_matrix.csv", "metrics.csv"])
def test_a_missing_file_is_one_line_and_no_picture(tmp_path, capsys, missing):
    run = write_run(tmp_path / "run")
    (run / missing).unlink()
    assert command.main([str(run), "--picture", str(tmp_path / "picture.png")]) == 2
    said = capsys.readouterr().err
    assert missing in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "picture.png").exists()


def test_a_run_that_has_not_all_its_times_is_told_apart_from_a_damaged_one(tmp_path):
    run = write_run(tmp_path / "run")
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(line for line in lines if "train_seconds,2.0" not in line))
    with pytest.raises(UserError, match=r"how long task 0 took.*resumed from another folder"):
        read(run)


def test_a_damaged_folder_is_named(tmp_path):
    run = write_run(tmp_path / "run")
    shutil.copy(run / "accuracy_matrix.csv", run / "metrics.csv")
    with pytest.raises(UserError, match=r"run.*are damaged"):
        read(run)


def test_baselines_are_the_same_options_without_memory_and_with_their_own_tasks():
    words = ["--model", "Derpp", "--model-config", "alpha=0.5", "--buffer-config", "capacity=50", "--seed", "7"]
    made = baselines.configurations([*words, "--tasksets-config", "increment=2", "--dataset", "digits"], Path("here"))
    assert list(made) == ["Derpp", "incremental", "scratch"]
    assert all(section["seed"] == 7 and section["dataset"] == "digits" for section in made.values())
    assert made["Derpp"]["model_config"] == {"alpha": 0.5}
    assert made["Derpp"]["buffer_config"] == {"capacity": 50}
    for name, anew in (("incremental", False), ("scratch", True)):
        section = made[name]
        assert (section["model"], section["model_config"]) == ("Vanilla", {"reset_state_dict": anew})
        assert section["tasksets_config"] == {"increment": 2, "concatenate_tasksets": anew}
        assert not section["buffer_config"]
        assert (section["results_dir"], section["save_dir"]) == ("here", name)


@pytest.mark.parametrize("words", [["--tasksets-config", "task_free=true"], ["--load-checkpoint", "."]])
def test_what_a_baseline_cannot_do_is_refused_before_anything_trains(words):
    with pytest.raises(UserError, match="whole tasks from the first one on"):
        baselines.configurations(["--model", "Er", *words], Path("here"))


def test_a_results_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert baselines.main(["--results-dir", str(tmp_path / "file"), "--", "--model", "Er"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_runs_of_accuracies_and_of_errors_do_not_share_a_picture(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name)) for name in ("a",)]
    runs.append(str(write_run(tmp_path / "b", "error_matrix.csv")))
    assert command.main([*runs, "--picture", str(tmp_path / "picture.png")]) == 2
    assert "'b'" in capsys.readouterr().err


def test_vanilla_between_its_own_baselines_is_refused(capsys):
    assert baselines.main(["--", "--dataset", "digits"]) == 2
    assert "choose a strategy" in capsys.readouterr().err
