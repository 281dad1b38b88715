"""A run that reconstructs: everything it shows is an absolute error, less is better, and nothing speaks of accuracy."""

import csv
import json

import pytest
from runs import matrix

from reprise.main import main
from reprise.report import __main__ as report
from reprise.report import plots
from reprise.report.summary import print_summary

PTYCHO = [
    *("--dataset", "ptycho_synthetic", "--backbone", "ptychonn", "--backbone-config", "{'width': 2}"),
    *("--tasksets-config", "{'scenario': 'reconstruction', 'num_tasks': 3}", "--epochs", "1", "--batch-size", "32"),
    *("--model", "Derpp", "--buffer-config", "{'rehearsal_ratio': 20}", "--log-interval", "1"),
]
TRANSFER = ("backward_transfer", "forward_transfer")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder, and the words in its pictures by their files."""
    folder, words = tmp_path_factory.mktemp("results"), {}
    with pytest.MonkeyPatch.context() as patch:
        save = plots._save

        def watched(figure, path):
            texts = figure.findobj(lambda artist: hasattr(artist, "get_text"))
            words[path.name] = [text.get_text() for text in texts if text.get_text()]
            save(figure, path)

        patch.setattr(plots, "_save", watched)
        assert main([*PTYCHO, "--results-dir", str(folder), "--save-dir", "run"]) == 0
    return folder / "run", words


def test_the_matrix_is_one_of_errors_in_files_of_that_name(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert {"error_matrix.csv", "error_matrix.png", "curves.png", "timeline.png"} <= names
    assert not [name for name in names if "accuracy" in name]
    errors = matrix(folder, "error_matrix.csv")
    assert errors.shape == (3, 3)
    assert (errors > 0).all()
    with open(folder / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    measured = {"train_seconds", "images_per_second", "step_loss", "learning_rate", "loss", "absolute_error", "samples"}
    measured |= {"average_error", "error_increase", "samples_stored", "stored/class_0"}
    assert {row["metric"] for row in rows} == measured
    logged = [float(row["value"]) for row in rows if row["metric"] == "absolute_error"]
    assert logged == errors.flatten().tolist()


def test_forgetting_is_an_increase_of_the_error(finished):
    folder, _ = finished
    result, errors = json.loads((folder / "summary.json").read_text()), matrix(folder, "error_matrix.csv")
    increase = sum(errors[2, j] - errors[j:2, j].min() for j in (0, 1)) / 2
    assert result["error_increase"] == pytest.approx(increase)
    assert result["average_error"] == pytest.approx(errors[2].mean())
    assert {value for key, value in result.items() if "accuracy" in key or key in ("forgetting", *TRANSFER)} == {None}


def test_pictures_and_log_speak_of_errors(finished):
    folder, words = finished
    assert {"mean absolute error on task", "reconstruction, less is better"} <= set(words["error_matrix.png"])
    assert "mean absolute error, less is better" in words["curves.png"]
    errors = matrix(folder, "error_matrix.csv")
    assert [f"{value:.2g}" for value in errors.flatten()] == words["error_matrix.png"][: errors.size]
    said = [text for texts in words.values() for text in texts] + (folder / "log.txt").read_text().splitlines()
    assert not [text for text in said if "accuracy" in text.lower()]
    assert [text for text in said if "after task 2: mean absolute error" in text]


def test_the_tables_of_runs_that_reconstruct_have_no_row_of_accuracies(finished, capsys):
    folder, _ = finished
    assert report.main([str(folder)]) == 0
    titles = [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert {"Error", "Error increase"} <= set(titles)
    assert not {"ACC", "AIA", "Forgetting", "BWT", "FWT", "ACC, task-IL"} & set(titles)


def test_the_summary_on_the_terminal_says_that_less_is_better(finished, capsys):
    folder, _ = finished
    result, errors = json.loads((folder / "summary.json").read_text()), matrix(folder, "error_matrix.csv")
    # What a busy machine takes may need so many digits that the remarks beside it are broken.
    result |= {"step_ms": {"p50": 1.0, "p95": 2.0}, "wait_ms": {"p50": 1.0, "p95": 2.0}, "images_per_second": 100.0}
    print_summary(result, errors, None, folder, errors=True)
    printed = capsys.readouterr().out
    assert "Mean absolute error on each task, less is better" in printed
    assert "Accuracy" not in printed
    assert "ACC" not in printed
    for name in ("Error ", "Error increase "):
        (line,) = [line for line in printed.splitlines() if line.strip().startswith(name + " ")]
        assert "less is better" in line
