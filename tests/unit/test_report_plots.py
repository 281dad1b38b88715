"""Pictures: drawn at every size without a display, whole, and with no text cut off or lying on another."""

import itertools

import numpy as np
import pytest

from reprise.report import plots
from reprise.runtime.errors import UserError
from reprise.runtime.spans import Spans


def made_up(num_tasks):
    random = np.random.default_rng(num_tasks)
    return np.tril(random.random((num_tasks, num_tasks)))


def phases(names):
    spans = Spans()
    for k, name in enumerate(names):
        for step in range(20):
            spans.add(name, (k + 1) * 1_000_000 + step * 50_000)
    return spans.stats()


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, to look at their texts."""
    saved = []
    save = plots._save

    def keep(figure, path):
        save(figure, path)
        saved.append(figure)

    monkeypatch.setattr(plots, "_save", keep)
    return saved


def texts(figure):
    """Visible texts and their extents in pixels."""
    from matplotlib.text import Text

    figure.canvas.draw()  # saving was at another resolution
    renderer = figure.canvas.get_renderer()
    beyond = set()  # labels of ticks outside the axis exist but are not drawn
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                beyond |= {id(tick.label1), id(tick.label2)}
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in found if id(text) not in beyond]


def assert_readable(figure):
    shown = texts(figure)
    assert shown
    width, height = figure.canvas.get_width_height()
    for text, extent in shown:
        inside = extent.x0 >= -1 and extent.y0 >= -1 and extent.x1 <= width + 1 and extent.y1 <= height + 1
        assert inside, f"'{text}' is cut off: {extent}"
    for (text, extent), (other, other_extent) in itertools.combinations(shown, 2):
        assert not extent.padded(-1).overlaps(other_extent.padded(-1)), f"'{text}' lies on '{other}'"


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 20])
def test_matrix_and_curves_are_readable(tmp_path, figures, num_tasks):
    rows = made_up(num_tasks)
    plots.accuracy_matrix_png(rows, tmp_path / "matrix.png", "digits, Er, seed 42", np.ones_like(rows))
    plots.curves_png(rows, tmp_path / "curves.png", "digits, Er, seed 42", np.ones_like(rows))
    for name, figure in zip(("matrix.png", "curves.png"), figures, strict=True):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert_readable(figure)


def test_matrix_shows_percent_in_every_cell_up_to_20_tasks_and_none_above(tmp_path, figures):
    for num_tasks in (5, 20, 21):
        plots.accuracy_matrix_png(np.full((num_tasks, num_tasks), 0.777), tmp_path / "m.png", "x")
    shown = [[text for text, _ in texts(figure)] for figure in figures]
    assert shown[0].count("77.7") == 25
    assert shown[1].count("78") == 400
    assert not {"78", "77.7"} & set(shown[2])
    assert "100 %" in shown[2]


def test_many_tasks_are_named_by_a_few_only(tmp_path, figures):
    plots.curves_png(made_up(50), tmp_path / "c.png", "x")
    names = [text for text, _ in texts(figures[0]) if text.startswith("task ")]
    assert names == ["task 0", "task 25", "task 49"]
    assert_readable(figures[0])


def test_a_run_in_progress_is_drawn(tmp_path, figures):
    rows = made_up(5)[:2]
    plots.accuracy_matrix_png(rows, tmp_path / "m.png", "x")
    plots.curves_png(rows, tmp_path / "c.png", "x")
    for figure in figures:
        assert_readable(figure)
    assert {"task 0", "task 1"} == {text for text, _ in texts(figures[1]) if text.startswith("task ")}


def test_long_titles_are_wrapped_and_not_taken_for_formulas(tmp_path, figures):
    title = "a long run name with $odd_{characters$ in it " * 8
    plots.accuracy_matrix_png(made_up(3), tmp_path / "m.png", title)
    plots.curves_png(made_up(3), tmp_path / "c.png", title)
    for figure in figures:
        assert_readable(figure)
        assert "$odd_{characters$" in figure.get_suptitle()


def test_timeline_shows_each_phase_and_what_is_left_of_the_step(tmp_path, figures):
    stats = phases(["load", "wait", "forward"])
    stats["step"] = {"count": 20, "total_ms": 200.0, "mean_ms": 10.0, "p50_ms": 9.9, "p95_ms": 12.0}
    plots.timeline_png(stats, tmp_path / "t.png", "where a step's time went")
    shown = [text for text, _ in texts(figures[0])]
    assert {"load", "wait", "forward", "whole step", "9.9 / 12"} <= set(shown)
    assert any("sum 10 ms, 20 steps; grey" in text for text in shown)
    assert_readable(figures[0])


def test_timeline_of_many_phases_and_of_none(tmp_path, figures):
    plots.timeline_png(phases([f"phase {k}" for k in range(12)]), tmp_path / "t.png", "x")
    plots.timeline_png({}, tmp_path / "t0.png", "x")
    assert_readable(figures[0])
    assert (tmp_path / "t0.png").stat().st_size > 0


def test_scatter_has_a_readable_panel_for_each_parameter(tmp_path, figures):
    points = {"lr": [0.001, 0.1], "policy": ["class_balanced", "reservoir"], "n": [3, 9], "momentum": [None, 0.9]}
    plots.scatter_png(points, [0.5, 0.9], tmp_path / "s.png", "a search")
    axes = [axis for axis in figures[0].axes if axis.get_xlabel()]
    assert [axis.get_xlabel() for axis in axes] == list(points)
    assert [axis.get_xscale() for axis in axes] == ["log", "linear", "linear", "linear"]
    assert {"class_balanced", "None"} <= {text for text, _ in texts(figures[0])}
    for axis in axes:
        assert axis.collections[0].get_offsets()[:, 1].tolist() == [0.5, 0.9]
    assert_readable(figures[0])
    plots.scatter_png({}, [0.5], tmp_path / "s.png", "nothing varied")
    assert figures[1].axes[0].get_xlabel() == "trial"


def test_a_picture_that_cannot_be_saved_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "m.png"
    plots.accuracy_matrix_png(made_up(2), path, "x")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(UserError, match="Read-only file system"):
        plots.accuracy_matrix_png(made_up(3), path, "x")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_drawing_leaves_no_global_state(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.accuracy_matrix_png(made_up(2), tmp_path / "m.png", "x")
    assert dict(matplotlib.rcParams) == before
