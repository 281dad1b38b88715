"""Sinks: every row arrives once, whole lines only, and no service can stop a run."""

import csv
import json
import logging
import re
import resource
import sys
import types
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reprise.report.plots import accuracy_matrix_png
from reprise.report.sinks import CsvSink, JsonlSink, MetricRow, SinkList, TensorBoardSink, WandbSink, chart_of
from reprise.runtime.errors import UserError

ROW = MetricRow(task=1, epoch=0, step=30, split="test", metric="accuracy_task_0", value=0.1 + 0.2)
HEADER = "task,epoch,step,split,metric,value\n"


@contextmanager
def small_files():
    """Let files grow to 200 bytes: a write beyond fails like one on a full disk, after having written a part.

    Only around the write itself: pytest's own output may go to a file.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_csv_has_a_header_and_one_line_per_row_at_full_precision(tmp_path):
    sink = CsvSink(tmp_path / "metrics.csv")
    sink.log(ROW)
    with open(tmp_path / "metrics.csv", newline="") as stream:  # not closed yet: rows are on their way at once
        rows = list(csv.DictReader(stream))
    sink.close()
    assert rows == [
        {"task": "1", "epoch": "0", "step": "30", "split": "test", "metric": "accuracy_task_0", "value": str(0.1 + 0.2)}
    ]
    assert float(rows[0]["value"]) == ROW.value


def test_csv_of_a_resumed_run_is_continued_under_one_header(tmp_path):
    for _ in range(2):
        sink = CsvSink(tmp_path / "metrics.csv")
        sink.log(ROW)
        sink.close()
    text = (tmp_path / "metrics.csv").read_text()
    assert text.startswith(HEADER)
    assert text.count("task,epoch") == 1
    assert len(text.splitlines()) == 3


def test_rows_are_appended_and_earlier_ones_not_rewritten(tmp_path):
    """rehearsal.md 6.1-16: the reference rewrites its whole log at every epoch."""
    path = tmp_path / "metrics.csv"
    sink = CsvSink(path)
    inode, sizes = path.stat().st_ino, []
    for _ in range(3):
        sink.log(ROW)
        sizes.append(path.stat().st_size)
    sink.close()
    assert path.stat().st_ino == inode
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]


@pytest.mark.parametrize("sink_type", [CsvSink, JsonlSink])
def test_a_line_cut_off_by_a_crash_is_removed_on_resume(tmp_path, sink_type):
    path = tmp_path / "metrics"
    sink = sink_type(path)
    sink.log(ROW)
    sink.close()
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:9])
    sink = sink_type(path)
    sink.close()
    assert path.read_text() == whole


@pytest.mark.parametrize("sink_type", [CsvSink, JsonlSink])
def test_a_full_disk_is_one_line_and_leaves_whole_lines(tmp_path, sink_type, caplog):
    path = tmp_path / "metrics"
    sink = sink_type(path)
    sinks = SinkList([sink] * 20)
    with small_files():
        sinks.log(ROW)
        lines = path.read_text().splitlines(keepends=True)
        with pytest.raises(UserError, match=f"cannot write '{path}'") as caught:
            sink.close()
    assert "\n" not in str(caught.value)
    (said,) = [record.message for record in caplog.records if record.name == "reprise.report.sinks"]
    assert str(path) in said
    assert path.read_text().splitlines(keepends=True) == lines
    assert 1 <= len(lines) < 20
    assert all(line.endswith("\n") for line in lines)
    assert len(set(lines[1:])) <= 1


@pytest.mark.parametrize("sink_type", [CsvSink, JsonlSink])
def test_when_the_disk_has_room_again_no_row_is_missing(tmp_path, sink_type):
    sink = sink_type(tmp_path / "metrics")
    with small_files():
        for step in range(10):
            sink.log(replace(ROW, step=step))
    sink.log(replace(ROW, step=10))
    sink.close()
    text = (tmp_path / "metrics").read_text()
    steps = re.findall(r'^1,0,(\d+),|"step": (\d+)', text, re.MULTILINE)
    assert [int(csv_step or json_step) for csv_step, json_step in steps] == list(range(11))


def test_a_csv_with_other_columns_is_refused_and_kept(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(UserError, match=r"starts with 'epoch,loss', expected 'task,epoch"):
        CsvSink(path)
    assert path.read_text() == "epoch,loss\n1,2\n"


def test_jsonl_has_one_object_per_row_and_no_nan(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log(ROW)
    sink.log(MetricRow(0, 1, 2, "train", "loss", float("nan")))
    sink.close()
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == asdict(ROW)
    assert list(first) == ["task", "epoch", "step", "split", "metric", "value"]
    assert second["value"] is None


def test_the_list_gives_every_row_to_every_sink_and_closes_all_even_if_one_fails():
    class Recorder:
        def __init__(self, fails):
            self.rows, self.closed, self.fails = [], False, fails

        def log(self, row):
            self.rows.append(row)

        def close(self):
            self.closed = True
            if self.fails:
                raise UserError("disk full")

    sinks = [Recorder(fails=True), Recorder(fails=False)]
    both = SinkList(sinks)
    both.log(ROW)
    with pytest.raises(UserError, match="disk full"):
        both.close()
    assert [sink.rows for sink in sinks] == [[ROW], [ROW]]
    assert [sink.closed for sink in sinks] == [True, True]


def test_tensorboard_holds_the_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.log(ROW)
    sink.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("test/accuracy_task_0")
    assert [(event.step, event.value) for event in events] == [(30, pytest.approx(0.3))]


@pytest.mark.parametrize(
    ("split", "metric", "chart"),
    [
        ("train", "loss", "train/loss"),
        ("test_task_3", "accuracy", "eval/accuracy/task_3"),
        ("test_task_12", "absolute_error", "eval/absolute_error/task_12"),
        ("cl", "forgetting", "cl/forgetting"),
        ("buffer", "samples_stored", "buffer/samples_stored"),
        ("buffer", "stored/class_7", None),
    ],
)
def test_charts_have_stable_names(split, metric, chart):
    assert chart_of(replace(ROW, split=split, metric=metric)) == chart


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "accuracy_matrix.png"
    accuracy_matrix_png(np.eye(2), path, "x")
    return path


def test_tensorboard_holds_the_pictures(tmp_path, picture):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.picture(picture, 30)
    sink.close()
    (image,) = EventAccumulator(str(tmp_path)).Reload().Images("accuracy_matrix")
    with Image.open(picture) as drawn:
        assert (image.step, image.width, image.height) == (30, *drawn.size)


def test_tensorboard_forgets_what_a_resumed_run_logs_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for after, values in ((None, {10: 0.1, 20: 0.2, 30: 0.9}), (20, {30: 0.3})):
        sink = TensorBoardSink(tmp_path, after)
        for step, value in values.items():
            sink.log(replace(ROW, step=step, value=value))
        sink.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("test/accuracy_task_0")
    assert [(event.step, event.value) for event in events] == [(s, pytest.approx(s / 100)) for s in (10, 20, 30)]


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("torch.utils.tensorboard", lambda folder: TensorBoardSink(folder), "reprise[tensorboard]"),
        ("wandb", lambda folder: WandbSink("project", "run", {}, folder), "reprise[wandb]"),
    ],
)
def test_a_missing_package_is_one_line_with_the_extra_to_install(tmp_path, monkeypatch, module, make, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="is not installed") as caught:
        make(tmp_path)
    assert extra in str(caught.value)
    assert "\n" not in str(caught.value)


class FakeWandb(types.ModuleType):
    """A stand-in for the service that fails where it is told to."""

    def __init__(self, fails_at=None):
        super().__init__("wandb")
        self.fails_at, self.calls, self.rows, self.options = fails_at, [], [], {}
        self.step, self.numbers = 0, []  # step: where the service goes on
        self.Settings = dict

    def _call(self, name):
        self.calls.append(name)
        if name == self.fails_at:
            raise ConnectionError("503 from the service")

    def init(self, **options):
        self.options = options
        self._call("init")
        return self

    def Image(self, path):  # noqa: N802, the service's name
        self._call("picture")

    def define_metric(self, *_, **__):
        self._call("define_metric")

    def log(self, row, step):
        self._call("log")
        self.rows.append(row)
        self.numbers.append(step)

    def finish(self):
        self._call("finish")


def test_wandb_gets_the_metrics_of_a_run(tmp_path, monkeypatch):
    """rehearsal.md 6.1-8: in the reference a lost import inside try/except dropped every metric silently."""
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    sink = WandbSink("project", "run", {"lr": 0.1}, tmp_path)
    sink.log(ROW)
    sink.close()
    assert fake.rows == [{"test/accuracy_task_0": ROW.value, "task": 1, "epoch": 0, "step": 30}]
    assert fake.options["config"] == {"lr": 0.1}
    assert fake.calls == ["init", "define_metric", "log", "finish"]


def test_wandb_gets_the_pictures(tmp_path, monkeypatch, picture):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    monkeypatch.setattr(fake, "Image", Path)
    sink = WandbSink("project", "run", {}, tmp_path)
    sink.log(ROW)
    sink.picture(picture, 30)
    sink.close()
    assert fake.rows[1] == {"accuracy_matrix": picture, "step": 30}
    assert fake.numbers == [0, 1]


def test_wandb_itself_keeps_a_run_offline(tmp_path, monkeypatch, picture):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    sink = WandbSink("project", "run", {"lr": 0.125}, tmp_path)
    sink.log(replace(ROW, split="cl", metric="forgetting"))
    sink.log(replace(ROW, split="buffer", metric="stored/class_7"))
    sink.picture(picture, 30)
    sink.close()
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    for text in (b"cl/forgetting", b"0.125", b"accuracy_matrix"):
        assert text in content
    assert b"stored/class_7" not in content
    assert list(kept.parent.rglob("*.png"))


def test_wandb_gets_no_row_twice_when_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    WandbSink("project", "run", {}, tmp_path).close()
    first = fake.options["id"]
    fake.step = 5  # the service has rows 0 to 4, the checkpoint those before row 3
    sink = WandbSink("project", "run", {}, tmp_path, rows=3)
    for _ in range(4):
        sink.log(ROW)
    assert (fake.options["id"], fake.options["resume"]) == (first, "allow")
    assert fake.numbers == [5, 6]
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    WandbSink("project", "run", {}, tmp_path).close()
    assert fake.options["id"] == "of-the-agent"


@pytest.mark.parametrize(
    ("variables", "mode"), [({}, "offline"), ({"WANDB_API_KEY": "k"}, None), ({"WANDB_MODE": "online"}, None)]
)
def test_wandb_is_offline_unless_the_environment_says_otherwise(tmp_path, monkeypatch, variables, mode):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    WandbSink("project", "run", {}, tmp_path).close()
    assert fake.options["mode"] == mode


@pytest.mark.parametrize("fails_at", ["init", "define_metric", "log", "picture", "finish"])
def test_a_failing_wandb_is_named_once_and_stops_nothing(tmp_path, monkeypatch, caplog, picture, fails_at):
    """rehearsal.md 1.4 and anchors.md A.3-7: a failing W&B must neither be silent nor move the other results."""
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fails_at))
    with caplog.at_level(logging.WARNING, "reprise"):
        sinks = SinkList([WandbSink("project", "run", {}, tmp_path), CsvSink(tmp_path / "metrics.csv")])
        for _ in range(3):
            sinks.log(ROW)
            sinks.picture(picture, 30)
        sinks.close()
    assert [record.getMessage() for record in caplog.records].count(caplog.records[0].getMessage()) == 1
    assert len(caplog.records) == 1
    assert "503 from the service" in caplog.text
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4
