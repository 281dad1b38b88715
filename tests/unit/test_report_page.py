"""The report page: complete, escaped, self-contained, and readable in a real browser, at a desk and on a phone.

Run folders are written by the writers that runs use. The browser's tests are skipped where there is no Chromium.
"""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report_run_folder import SUMMARY

from reprise.report import __main__ as command
from reprise.report import matrix, svg
from reprise.report.run_folder import RunFolder
from reprise.report.sinks import CsvSink, MetricRow
from reprise.runtime.spans import Spans
from reprise.train.options import parse

HOSTILE = "<script>alert(\"x\")</script> & '$1' </table>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHOICES = {"model": ["Er", "Vanilla"], "dataset": ["digits"], "backbone": ["mlp"]}
PHONE, DESK = 375, 1280


def made_up(num_tasks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((num_tasks, num_tasks))


def write_run(
    path: Path,
    num_tasks: int = 3,
    options: tuple[str, ...] = (),
    *,
    epochs: int = 4,
    seed: int = 0,
    done: int | None = None,
    errors: bool = False,
    stored: bool = True,
    **changes: Any,
) -> Path:
    """The folder of a run, as a run leaves it; done: killed after so many tasks. changes: of its summary."""
    folder, rows = RunFolder(path), made_up(num_tasks, seed)[:done]
    resolved = parse(["--dataset", "digits", "--backbone", "mlp", *options], CHOICES)
    environment = {"torch": "2.13.0", "mpi": None, "host": path.name, "world_size": 2, "launcher": "torchrun"}
    folder.write_start(resolved.to_yaml(), ["main.py", "--save-dir", path.name], environment)
    sink = CsvSink(folder.metrics_csv)
    for task in range(len(rows)):
        for epoch in range(epochs):
            step = task * epochs + epoch
            sink.log(MetricRow(task, epoch, step, "train", "loss", 2.0 / (1 + epoch)))
            sink.log(MetricRow(task, epoch, step, "train", "images_per_second", 1000.0 + 10 * step))
        for label in range(2 * (task + 1) if stored else 0):
            sink.log(MetricRow(task, epochs - 1, step, "buffer", f"stored/class_{label}", 420 // (2 * (task + 1))))
    sink.close()
    if errors:
        folder.write_error_matrix(rows)
    else:
        folder.write_accuracy_matrix(rows)
        folder.write_accuracy_matrix(np.sqrt(rows), task_il=True)
    if done is None:
        spans = Spans()
        for name, ms in {"load": 1, "rehearsal": 2, "backward": 5, "engine/plan": 3, "step": 10}.items():
            spans.add(name, ms * 1_000_000)
        folder.write_timeline(spans.stats())
        folder.write_summary({**SUMMARY, "tasks": num_tasks, "buffer_implementation": "standard", **changes})
    return path


class Page(HTMLParser):
    """Parses strictly: every element that has content is closed, in the order in which they were opened."""

    VOID = ("meta", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open) and "small" not in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def made(runs: list[Path]) -> tuple[str, Page]:
    """The page that the command makes of these runs."""
    html = runs[0].parent / "page.html"
    assert command.main([*map(str, runs), "--html", str(html)]) == 0
    text = html.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    text, page = made([write_run(tmp_path / "a"), write_run(tmp_path / "b", done=2), write_run(tmp_path / "c", 1)])
    assert not re.search(r"https?://|\bsrc=|@import|url\(|<script|<link|<base", text)
    targets = {attributes["href"] for _, attributes in page.tags if "href" in attributes}
    assert targets == {f"#{attributes['id']}" for tag, attributes in page.tags if tag == "section"}
    assert "default-src 'none'" in text
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and attributes["class"] == "chart"]
    assert len(charts) >= 9
    assert all(attributes["aria-label"] for attributes in charts)


def test_every_number_of_every_matrix_is_there(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", 4), write_run(tmp_path / "b", 3, seed=1, errors=True, **reconstruction())]
    _, page = made(runs)
    grids = [rows for rows in page.tables if rows[0][0] == "after task" and rows[0][1] == "0"]
    percent, known, errors = ([row[1:] for row in rows[1:]] for rows in grids)
    assert percent == [[f"{100 * value:.1f}" for value in row] for row in made_up(4).tolist()]
    assert known == [[f"{100 * value:.1f}" for value in row] for row in np.sqrt(made_up(4)).tolist()]
    assert errors == [[f"{value:.3g}" for value in row] for row in made_up(3, 1).tolist()]


def reconstruction() -> dict[str, Any]:
    accuracies = ("average_accuracy", "average_incremental_accuracy", "forgetting", "average_accuracy_task_il")
    return {
        **dict.fromkeys((*accuracies, "backward_transfer", "forward_transfer")),
        **{"average_error": 0.5, "error_increase": 0.1},
    }


def test_the_best_values_are_marked_where_runs_differ(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", average_accuracy=0.5, forgetting=0.2, forward_transfer=0.1),
        write_run(tmp_path / "b", average_accuracy=0.7, forgetting=0.1, forward_transfer=0.10004, wait_share=0.2),
        write_run(tmp_path / "c", average_accuracy=0.9, wait_share=0.0, buffer_implementation="none"),
        write_run(tmp_path / "d", done=1),
    ]
    head, *body = made(runs)[1].tables[0]
    assert head == ["", "a", "b", "c", "d"]
    rows = {name: [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in cells] for name, *cells in body}
    assert rows["Accuracy"] == ["50.0 %", "70.0 %", "★ 90.0 %", "-"]
    assert rows["Forgetting"] == ["20.0 %", "★ 10.0 %", "50.0 %", "-"]
    assert rows["Forward transfer"][:2] == ["10.0 %", "10.0 %"], "the same to the reader"
    assert rows["Buffer wait"] == ["★ 0.0 %", "20.0 %", "-", "-"], "without a buffer there is nothing to win"
    assert rows["Strategy"] == ["Vanilla"] * 4
    assert rows["Tasks"][3] == "not finished: 1 of 3 tasks evaluated"
    assert rows["Ranks"] == ["2"] * 4


def test_exactly_the_options_that_differ_are_shown(tmp_path: Path) -> None:
    config = ("--buffer-config", "capacity=100 policy=fifo")
    runs = [
        write_run(tmp_path / "a", options=("--model", "Er", *config)),
        write_run(tmp_path / "b", options=("--model", "Er", "--seed", "7", "--buffer-config", "capacity=100")),
        write_run(
            tmp_path / "c",
            options=(
                "--lr",
                "0.25",
            ),
        ),
    ]
    _, page = made(runs)
    by_name = [rows for rows in page.tables if rows[0] == ["", "a", "b", "c"]]
    _, _, options, environment = by_name  # after the summary's and the steps'
    assert options[1:] == [
        ["seed", "42", "7", "42"],
        ["model", "Er", "Er", "Vanilla"],
        ["lr", "null", "null", "0.25"],
        ["buffer_config.capacity", "100", "100", "not set"],
        ["buffer_config.policy", "fifo", "not set", "not set"],
    ]
    assert environment[1:] == [["host", "a", "b", "c"]]
    shared = {row[0]: row[1] for rows in page.tables if rows[0] == ["", "value"] for row in rows[1:]}
    assert (shared["dataset"], shared["backbone"], shared["torch"]) == ("digits", "mlp", "2.13.0")
    assert "main.py --save-dir b" in page.text


def test_forgetting_is_shown_task_by_task_as_the_summary_averages_it(tmp_path: Path) -> None:
    rows = made_up(5)
    lost = matrix.forgetting_of_each(rows)
    assert np.mean(lost) == pytest.approx(matrix.forgetting(rows))
    assert np.mean(matrix.forgetting_of_each(-rows)) == pytest.approx(matrix.error_increase(rows))
    _, page = made([write_run(tmp_path / "a", 5)])
    (table,) = [rows for rows in page.tables if rows[0] == ["task", "a"] and len(rows) == 5]
    assert [row[1] for row in table[1:]] == [f"{100 * value:.1f}" for value in lost]


def test_time_and_stored_samples_are_shown_or_said_to_be_missing(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "new"), write_run(tmp_path / "old", stored=False), write_run(tmp_path / "none")]
    (runs[1] / "timeline.json").unlink()
    summary = json.loads((runs[2] / "summary.json").read_text())
    (runs[2] / "summary.json").write_text(json.dumps({**summary, "buffer_implementation": "none"}))
    (runs[2] / "metrics.csv").unlink()
    _, page = made(runs)
    for part in ("load 1 ms (10 %)", "backward 5 ms (50 %)", "other 2 ms (20 %)", "plan 3 ms (100 %)"):
        assert part in page.text
    (parts,) = [rows for rows in page.tables if rows[0] == ["", "new", "none"] and "load" in rows[1][0]]
    assert [[row[0].split()[0], *row[1:]] for row in parts[1:]] == [
        ["load", "1", "1"],
        ["wait", "2", "2"],
        ["train", "5", "5"],
        ["populate", "0", "0"],
        ["augment", "3", "3"],
    ]
    (held,) = [rows for rows in page.tables if "fewest of a class" in rows[0]]
    assert held[1:] == [["0", "420", "2", "210", "210"], ["1", "420", "4", "105", "105"], ["2", "420", "6", "70", "70"]]
    assert "old: no timeline.json in its folder: made by an older version" in page.text
    assert "old: not in its metrics.csv: made by an older version" in page.text
    assert "none: no buffer" in page.text
    assert "none: no epochs in its metrics.csv" in page.text


def test_whatever_a_run_is_called_or_configured_with_is_text(tmp_path: Path) -> None:
    path = tmp_path / HOSTILE.replace("/", "|")
    RunFolder(path).write_start(
        f"run:\n  model: '{HOSTILE.replace(chr(39), '')}'\n", ["main.py", HOSTILE], {HOSTILE: HOSTILE}
    )
    RunFolder(path).write_summary({**SUMMARY, "strategy": HOSTILE})
    text, page = made([path, write_run(tmp_path / "b")])
    assert "<script" not in text
    assert page.text.count("<script>alert") >= 6
    assert "script" not in {tag for tag, _ in page.tags}


def test_four_runs_of_twenty_tasks_stay_small(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{k}", 20, epochs=100, seed=k) for k in range(4)]
    text, _ = made(runs)
    assert len(text) < 400_000


@pytest.mark.parametrize("file", ["config.yaml", "environment.json", "command.txt", "metrics.csv", "timeline.json"])
def test_a_run_without_one_of_its_files_is_compared_by_the_others(tmp_path: Path, file: str) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    (runs[1] / file).unlink()
    assert re.search(f"b: [^:]*{file}", made(runs)[1].text)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "run: [1\n"),
        ("config.yaml", "other: {}\n"),
        ("environment.json", "{"),
        ("environment.json", "[]"),
        ("metrics.csv", "task,epoch\n0,0\n"),
        ("metrics.csv", "task,epoch,step,split,metric,value\n0,0,0,train,loss,much\n"),
        ("metrics.csv", "task,epoch,step,split,metric,value\n0,0,0\n"),
        ("accuracy_matrix.csv", "trained_task,task_0,task_1\n0,1.0\n1,0.5,1.0\n"),
        ("accuracy_matrix.csv", "trained_task,task_0\n"),
        ("accuracy_matrix_task_il.csv", "trained_task,task_0\n0,nan\n"),
        ("timeline.json", '{"step": {"count": 3}}'),
        ("timeline.json", '{"step": 3}'),
        ("command.txt", "\xff"),
        ("summary.json", "{}"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, capsys: Any, file: str, content: str) -> None:
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    (bad / file).write_text(content, encoding="latin-1")
    assert command.main([str(good), str(bad)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert str(bad / file) in err
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_was_killed_is_shown_with_what_there_is(tmp_path: Path, capsys: Any) -> None:
    killed, begun = write_run(tmp_path / "killed", 4, done=2), tmp_path / "begun"
    with open(killed / "metrics.csv", "a") as stream:
        stream.write("2,0,9,train,lo")
    RunFolder(begun).write_start("run: {model: Er}\n", ["main.py"], {})
    _, page = made([killed, begun])
    assert "killed (not finished: 2 of 4 tasks evaluated)" in page.text
    assert "begun (not finished: no task evaluated)" in page.text
    assert "begun: no task evaluated yet" in page.text
    assert "killed, begun: no timeline.json in its folder yet" in page.text
    out = capsys.readouterr().out
    assert "killed has not finished" in out
    assert "ACC" not in out


def test_the_page_lies_beside_the_runs_and_is_no_run_itself(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("results/a"))
    assert command.main(["results/a"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" results/report.html")
    assert command.main(["results/a", "results/report.html", "results/a/"]) == 0, "what results/* names later"
    monkeypatch.chdir("results/a")
    Path("../report.html").unlink()
    assert command.main(["."]) == 0
    assert "<title>Reprise: a</title>" in Path("../report.html").read_text()


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    assert command.main([str(write_run(tmp_path / "a")), "--html", str(tmp_path / "file" / "page.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("values", [[0.0], [], [-3.0, -1.0], [0.037, -0.001], [12_345.6], [1e-7], [7e9], [1.0, 5.0]])
def test_an_axis_of_numbers_holds_its_values_and_zero_between_round_ends(values: list[float]) -> None:
    axis = svg.Axis.numbers("", values)
    ticks = list(axis.ticks)
    assert axis.low <= min([0.0, *values]) + 1e-15
    assert axis.high >= max([0.0, *values])
    assert axis.low < axis.high
    assert (ticks[0], ticks[-1]) == (axis.low, axis.high)
    assert 0.0 in ticks
    assert 2 <= len(ticks) <= 8
    assert len(set(axis.ticks.values())) == len(ticks)


def test_a_long_line_keeps_its_peaks_and_little_else() -> None:
    points = [(k / 1000, 50.0) for k in range(20_000)]
    points[7_000], points[13_000] = (7.0, 90.0), (13.0, 10.0)
    x, y = svg.Axis.tasks(20), svg.Axis.percent("")
    drawn = re.findall(r'class="line c0" d="([^"]*)"', svg.lines([svg.Line(points, "c0")], x, y, ""))[0]
    heights = {float(pair.split()[1]) for pair in re.split("[ML]", drawn)[1:]}
    few = re.findall(r'class="line c0" d="([^"]*)"', svg.lines([svg.Line([(0, 90), (1, 50), (2, 10)], "c0")], x, y, ""))
    assert heights == {float(pair.split()[1]) for pair in re.split("[ML]", few[0])[1:]}
    assert len(drawn) < 20_000


class Browser:
    """A headless Chromium, spoken to in its DevTools protocol: JSON, each message ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        self.said: list[dict[str, Any]] = []
        self.number = 0
        commands, self.to = os.pipe()
        self.answers, answers = os.pipe()
        apart = [os.dup(commands), os.dup(answers)]  # they may lie where the browser wants to find the other one

        def place() -> None:
            os.dup2(apart[0], 3)
            os.dup2(apart[1], 4)

        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        self.process = subprocess.Popen(
            [str(CHROMIUM), *arguments, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (commands, answers, *apart):
            os.close(descriptor)
        self.unread = b""
        self.session: dict[str, str] = {}
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)
        os.close(self.to)
        os.close(self.answers)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.hear()).get("id") != self.number:
            self.said.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def hear(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            read = os.read(self.answers, 1 << 16)
            assert read, "the browser has ended"
            self.unread += read
        message, _, self.unread = self.unread.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        return heard

    def show(self, page: Path, width: int, scheme: str) -> None:
        phone = width == PHONE
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=phone)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.said.clear()
        self.ask("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.said):
            self.said.append(self.hear())

    def value(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def screenshot(self, path: Path) -> Image.Image:
        width, height = self.value("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))
        return Image.open(path).convert("L")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: neither chromium, chromium-browser nor google-chrome is on the PATH")
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of everything that could take room: long names, many tasks, errors beside accuracies."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        write_run(folder / ("long-name-" * 12), 20, epochs=30, train_seconds=1e6, images_per_second=1e7),
        write_run(folder / ("x" * 90), 3, seed=1, done=2),
        write_run(folder / "reconstructs", 12, seed=2, errors=True, **reconstruction()),
        write_run(folder / HOSTILE.replace("/", "|"), 1, options=("--wandb-project", "y" * 80)),
    ]
    made(runs)
    return folder / "page.html"


# What of its texts a chart cuts off or draws over another one.
UNREADABLE = """[...document.querySelectorAll("svg.chart")].flatMap((chart) => {
  const around = chart.getBoundingClientRect();
  const texts = [...chart.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  return texts.flatMap(([a, box], k) => [
    ...(box.left < around.left - 1 || box.right > around.right + 1 ||
      box.top < around.top - 1 || box.bottom > around.bottom + 1 ? [[a]] : []),
    ...texts.slice(k + 1).filter(([b, other]) => box.left < other.right - 1 && other.left < box.right - 1 &&
      box.top < other.bottom - 4 && other.top < box.bottom - 4).map(([b, other]) => [a, b])]);
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_browser_shows_it_whole(browser: Browser, shown: Path, tmp_path: Path, width: int, scheme: str) -> None:
    browser.show(shown, width, scheme)
    assert browser.value("document.documentElement.scrollWidth") == width, "wide tables scroll in their own boxes"
    assert browser.value(UNREADABLE) == []
    picture = browser.screenshot(tmp_path / f"{width}-{scheme}.png")
    shades = np.asarray(picture)
    assert (np.median(shades) > 200) == (scheme == "light")
    bands = [shades[top : top + 600] for top in range(0, len(shades) - 600, 600)]
    assert all(len(np.unique(band)) > 10 for band in bands), "no screenful is blank"
    told = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    assert [event for event in browser.said if event["method"] in told] == []
