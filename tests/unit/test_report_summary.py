"""The final tables: complete, never wider than the terminal, and the comparison's command line."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from reprise.report import __main__ as command
from reprise.report import summary, summary_schema

SUMMARY = {
    "average_accuracy": 0.911,
    "average_incremental_accuracy": 0.922,
    "forgetting": 0.033,
    "backward_transfer": -0.044,
    "forward_transfer": 0.055,
    "average_accuracy_task_il": 0.966,
    **{"average_error": None, "error_increase": None},
    **{"tasks": 5, "seed": 42, "world_size": 2, "buffer_bytes_per_rank": 34_567, "samples_stored": 431},
    **{"launcher": "horovodrun", "strategy": "Er", "buffer_implementation": "python", "buffer_transport": "collective"},
    **{"images_per_second": 12_345.6, "train_seconds": 3_725.0, "wait_share": 0.077},
    "step_ms": {"p50": 3.21, "p95": 5.43},
    "wait_ms": {"p50": 0.12, "p95": 0.34},
}


def printed(width, num_tasks=3, **changes):
    stream = io.StringIO()
    rows = np.tril(np.full((num_tasks, num_tasks), 0.8125))
    pictures = [Path("results/demo/curves.png")]
    console = Console(file=stream, width=width)
    summary.print_summary({**SUMMARY, **changes}, rows, rows + 0.1, Path("results/demo"), pictures, console)
    return stream.getvalue()


def test_every_metric_is_printed_with_the_name_of_its_formula():
    """anchors.md A.3-12: a number without its formula is not comparable."""
    text = printed(100)
    for name, value, formula in [
        ("ACC", "91.1 %", "mean of the last row"),
        ("AIA", "92.2 %", "average so far"),
        ("Forgetting", "3.3 %", "Chaudhry 2018"),
        ("BWT", "-4.4 %", "Lopez-Paz 2017"),
        ("FWT", "5.5 %", "Lopez-Paz"),
        ("ACC, task-IL", "96.6 %", "task known"),
        ("Training time", "1 h 02 min", "evaluation not counted"),
        ("Speed", "12,346", "images/s"),
        ("Step", "3.21 ms", "5.43 ms"),
        ("Buffer wait", "7.7 %", "0.34 ms"),
        ("Stored", "431", "34.6 kB per rank"),
    ]:
        line = next(line for line in text.splitlines() if line.strip().startswith(name + " "))
        assert value in line
        assert formula in line


@pytest.mark.parametrize("width", [66, 200])
def test_the_parts_of_a_step_are_printed_and_those_of_the_buffer_said_to_be_its_own(width):
    stream = io.StringIO()
    parts = {"load": 0.25, "wait": 0.125, "train": 12.3456, "populate": 0.01, "augment": 123.456}
    for shown in (parts, {"load": 0.5, "wait": 0.0, "train": 1.0}):
        summary.print_summary(SUMMARY, None, None, Path("r"), (), Console(file=stream, width=width), parts=shown)
    text = [line.strip() for line in stream.getvalue().splitlines()]
    lines = [line.split() for line in text]
    at = lines.index(["load", "wait", "train", "populate", "augment"])
    assert text[at - 2] == "Mean step of rank 0 in ms; populate, augment: the buffer's"
    assert lines[at + 2] == ["0.25", "0.125", "12.3", "0.01", "123"]
    at = lines.index(["load", "wait", "train"])
    assert text[at - 2] == "Mean step of rank 0 in ms"
    assert lines[at + 2] == ["0.5", "0", "1"]


def test_both_matrices_and_the_places_of_the_results_are_printed():
    lines = printed(80).splitlines()
    assert "Accuracy on each task in %, class-incremental" in lines
    assert "Accuracy on each task in %, task-incremental" in lines
    assert [line.split() for line in lines if line.strip().startswith("1 ")] == [
        ["1", "81.2", "81.2", "0.0"],
        ["1", "91.2", "91.2", "10.0"],
    ]
    assert lines[-2:] == ["Results are in results/demo", "  results/demo/curves.png"]


@pytest.mark.parametrize("width", [40, 66, 80, 200])
@pytest.mark.parametrize("num_tasks", [1, 5, 8, 9, 20, 60])
def test_tables_are_never_wider_than_the_terminal_nor_cut(width, num_tasks):
    text = printed(width, num_tasks)
    assert max(len(line) for line in text.splitlines()) <= width
    last_row = next(line.split() for line in text.splitlines() if line.strip().startswith(f"{num_tasks - 1} "))
    value = "81.2" if num_tasks <= 8 else "81"
    assert set(last_row[1:]) <= {value, "…"}
    assert last_row[1] == last_row[-1] == value


def test_a_run_without_buffer_or_evaluation_leaves_those_lines_out():
    stream = io.StringIO()
    nothing = {**SUMMARY, "buffer_implementation": "none", **dict.fromkeys(summary_schema.ACCURACIES)}
    summary.print_summary(nothing, None, None, Path("r"), (), Console(file=stream, width=80))
    text = stream.getvalue()
    assert "Training time" in text
    for absent in ("Buffer wait", "Stored", "ACC", "Accuracy"):
        assert absent not in text


def test_output_that_is_no_terminal_is_plain_and_leaves_room_for_a_launchers_prefix(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    summary.print_summary(SUMMARY, np.eye(20), None, Path("r"))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines()) <= 66


def write_run(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **changes}))
    return str(folder)


def test_runs_are_compared_side_by_side(tmp_path, capsys):
    first = write_run(tmp_path / "a", average_accuracy=0.25)
    second = write_run(tmp_path / "b[x]", average_accuracy=None)
    assert command.main([first, second + "/"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["a", "b[x]"] for line in lines)
    assert any(line.split() == ["ACC", "25.0", "%", "-"] for line in lines)
    assert any(line.split() == ["Strategy", "Er", "Er"] for line in lines)


def test_runs_of_the_same_name_are_told_apart_by_their_path(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "x" / "er")
    write_run(tmp_path / "y" / "er")
    assert command.main(["x/er", "y/er"]) == 0
    assert any(line.split() == ["x/er", "y/er"] for line in capsys.readouterr().out.splitlines())


def test_many_runs_go_into_several_tables_within_the_width(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    runs = [write_run(tmp_path / f"quite_a_long_run_name_number_{k}") for k in range(7)]
    assert command.main(runs) == 0
    *lines, page = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 60
    assert sum(line.split().count("Er") for line in lines) == 7
    assert page.endswith(str(tmp_path / "report.html"))  # a path stays whole, to be clicked on


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; name the folder of a finished run"),
        ("{broken", "is no summary of a run (Expecting property name"),
        ("[1]", "expected a mapping"),
        ('{"tasks": 5}', "missing average_accuracy"),
        (json.dumps({**SUMMARY, "wait_share": "much"}), "wait_share is 'much'"),
        ("\xff", "is no summary of a run"),
    ],
)
def test_a_missing_or_damaged_summary_is_one_line_and_exit_code_2(tmp_path, capsys, content, message):
    good = write_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    if content is not None:
        (tmp_path / "bad" / "summary.json").write_text(content, encoding="latin-1")
    assert command.main([good, str(tmp_path / "bad")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err
    assert str(tmp_path / "bad" / "summary.json") in captured.err


def test_a_file_in_place_of_a_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert command.main([str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("cannot read")


def test_no_run_named_is_exit_code_2():
    with pytest.raises(SystemExit) as caught:
        command.main([])
    assert caught.value.code == 2
