"""Progress: a bar on a terminal, few lines elsewhere, nothing on other ranks, no tensor read."""

import io
import logging

import pytest
from rich.console import Console

from reprise.report import progress
from reprise.report.progress import EpochProgress


@pytest.fixture
def plain(monkeypatch, caplog):
    monkeypatch.setattr(progress, "console", lambda: Console(file=io.StringIO(), force_terminal=False))
    caplog.set_level(logging.INFO, "reprise")
    return caplog


class Clock:
    """Advances a second per step of the test, not of the wall."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_plain_lines_come_every_few_seconds_and_once_at_the_end(plain):
    clock = Clock()
    with EpochProgress(True, 100, "task 1/5, epoch 2/3", line_seconds=10, clock=clock) as bar:
        for step in range(1, 101):
            clock.now = step * 0.5
            if step % 10 == 0:
                bar.update(step, loss=1 / step, images_per_second=1234.5)
            else:
                bar.update(step)
    lines = [record.getMessage() for record in plain.records]
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["20", "40", "60", "80", "100"]
    assert lines[-1] == "task 1/5, epoch 2/3: step 100/100, loss 0.0100, 1,234 images/s, 50.0 s"


def test_an_epoch_cut_short_is_not_reported_as_finished(plain):
    def train():
        with EpochProgress(True, 10, "epoch") as bar:
            bar.update(3, loss=1.0)
            raise KeyError("training failed")

    with pytest.raises(KeyError):
        train()
    assert plain.records == []


def test_other_ranks_are_silent(plain):
    with EpochProgress(False, 10, "epoch", line_seconds=0) as bar:
        bar.update(10, loss=1.0)
    assert plain.records == []


def test_values_are_optional(plain):
    with EpochProgress(True, 2, "epoch", clock=Clock()) as bar:
        bar.update(2)
    assert [record.getMessage() for record in plain.records] == ["epoch: step 2/2, 0.0 s"]


def test_a_terminal_shows_a_bar_with_values_and_keeps_one_line_of_it(monkeypatch, caplog):
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(progress, "console", lambda: terminal)
    caplog.set_level(logging.INFO, "reprise")
    with EpochProgress(True, 10, "task 1/5 [x]", line_seconds=0) as bar:
        bar.update(4, loss=0.5, images_per_second=2000.0)
        bar.update(5)
        assert bar._bar is not None
        bar._bar[0].refresh()
    shown = stream.getvalue()
    assert "task 1/5 [x]" in shown
    assert "5/10" in shown.replace(" ", "")
    assert "loss 0.5000, 2,000 images/s" in shown
    assert len(caplog.records) == 1
