"""The loops of docs/own_loop.md, as they stand there: alone and on two processes, each beside itself without replay.

Each learns five tasks of two classes, one after the other, and prints its accuracy on each of them at the end. Who
replays nothing has forgotten task 0 (accuracy near 0 of 200 samples), who does has not.
"""

import importlib.util
import re
from pathlib import Path

import launch
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "own_loop.md"

# A CUDA build of torchvision does not load beside a CPU torch, see runtime/vision.py; both frameworks may import it.
STARTER = """
import runpy, sys
from reprise.runtime.vision import ensure_torchvision
ensure_torchvision()
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def block(title: str, language: str) -> str:
    """The first code block of a language in the section of that title."""
    (section,) = [part for part in PAGE.read_text("utf-8").split("\n## ") if part.startswith(f"{title}\n")]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)[0]


def patched(source: str, diff: str) -> str:
    """The source with a unified diff applied. Every line that the diff expects must be where it says."""
    old, new, at = source.splitlines(), [], 0
    _, *hunks = re.split(r"^@@ -(\d+),(\d+) \+(\d+),(\d+) @@.*\n", diff, flags=re.MULTILINE)
    for number in range(0, len(hunks), 5):
        *counts, body = hunks[number : number + 5]
        old_start, old_count, new_start, new_count = map(int, counts)
        new += old[at : old_start - 1]
        at = old_start - 1
        assert len(new) == new_start - 1
        for line in body.splitlines():
            if not line.startswith("+"):
                assert old[at] == line[1:], f"line {at + 1} is {old[at]!r}, the diff expects {line[1:]!r}"
                at += 1
            if not line.startswith("-"):
                new.append(line[1:])
        assert (at, len(new)) == (old_start - 1 + old_count, new_start - 1 + new_count)
    return "\n".join(new + old[at:]) + "\n"


def accuracies(folder: Path, source: str, processes: int) -> list[float]:
    """Run a loop; the accuracy on task 0 that each process prints at the end."""
    (folder / "loop.py").write_text(source)
    (folder / "start.py").write_text(STARTER)
    command = [folder / "start.py", folder / "loop.py"]
    launcher = "torchrun" if processes > 1 else "python"
    finished = launch.run(launcher, processes, command, env={"OMP_NUM_THREADS": "1"}, timeout=250)
    assert finished.returncode == 0, finished.output
    found = [float(accuracy) for accuracy in re.findall(r"task 0: (\d\.\d\d)", finished.stdout)]
    assert len(found) == processes, finished.output
    return found


def test_the_diff_is_short() -> None:
    diff = block("Plain PyTorch", "diff")
    changed = [line for line in diff.splitlines() if line[:1] in ("+", "-") and line[:3] not in ("+++", "---")]
    assert 0 < len(changed) < 15
    assert f"{len(changed)} changed lines" in PAGE.read_text("utf-8")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("processes", [1, 2])
def test_the_tutorial_remembers_once_it_is_changed(tmp_path: Path, processes: int) -> None:
    tutorial = block("Plain PyTorch", "python")
    without = accuracies(tmp_path, tutorial, processes)
    replaying = accuracies(tmp_path, patched(tutorial, block("Plain PyTorch", "diff")), processes)
    assert max(without) < 0.2
    assert min(replaying) > 0.8


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("title", "module"), [("Lightning", "lightning"), ("Hugging Face Trainer", "transformers")])
def test_a_loop_of_others_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    monkeypatch.chdir(tmp_path)  # what they write goes there
    loop = block(title, "python")
    assert loop.count("draws=(20,)") == 1
    assert max(accuracies(tmp_path, loop.replace("draws=(20,)", "draws=(0,)"), 1)) < 0.2
    assert min(accuracies(tmp_path, loop, 2)) > 0.8


@pytest.mark.parametrize(
    "diff",
    [
        "--- a\n+++ b\n@@ -1,3 +1,3 @@\n one\n-tvo\n+2\n three\n",  # another line
        "--- a\n+++ b\n@@ -2,2 +2,2 @@\n one\n-two\n+2\n",  # another place
        "--- a\n+++ b\n@@ -1,3 +1,4 @@\n one\n-two\n+2\n three\n",  # wrong counts
    ],
)
def test_a_diff_that_does_not_fit_is_refused(diff: str) -> None:
    good = "--- a\n+++ b\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
    assert patched("one\ntwo\nthree\n", good) == "one\n2\nthree\n"
    with pytest.raises(AssertionError):
        patched("one\ntwo\nthree\n", diff)
