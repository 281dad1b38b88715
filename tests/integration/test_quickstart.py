"""The commands of docs/quickstart.md, as they stand there, in a folder of their own; `make demo` is the README's."""

import json
import re
import shlex
import sys
from pathlib import Path

import launch
import pytest

import reprise.main
from reprise.report import __main__ as report

PAGE = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text("utf-8")
RUNS = ("plain", "er", "er-2")


def run(command: str) -> int:
    """Python's commands run in this process, which has imported everything; several workers under their launcher."""
    words = shlex.split(command)
    if words[:2] == ["python", "main.py"]:
        return reprise.main.main(words[2:])
    if words[:3] == ["python", "-m", "reprise.report"]:
        return report.main(words[3:])
    assert words[:6] == ["horovodrun", "--gloo", "-np", "2", "python", "main.py"], command
    # The page says that torchrun does without Horovod.
    launcher = "horovodrun" if "horovodrun" in launch.available() else "torchrun"
    finished = launch.run(launcher, 2, [reprise.main.__file__, *words[6:]], env={"OMP_NUM_THREADS": "1"}, timeout=400)
    sys.stdout.write(finished.output)
    return finished.returncode


@pytest.mark.timeout(600)
def test_every_command_works_and_does_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (section,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    install, *blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    assert install.splitlines() == ["make demo", "source .venv/bin/activate"]
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(section)
    commands = "".join(blocks).replace("\\\n", " ").splitlines()
    assert len(commands) == 5
    assert "--resume" in commands[-1]
    for command in commands[:-1]:
        assert run(command) == 0, command

    summaries = {name: json.loads(Path("results", name, "summary.json").read_text()) for name in RUNS}
    assert [summaries[name]["world_size"] for name in RUNS] == [1, 1, 2]
    assert summaries["plain"]["average_accuracy"] < 0.3
    assert summaries["er"]["average_accuracy"] > 0.85
    assert summaries["er-2"]["average_accuracy"] > 0.85
    assert "er-2" in Path("results", "report.html").read_text("utf-8")
    files = re.findall(r"`([a-z_]+\.(?:json|csv|png|yaml|txt))`", PAGE.partition("## Read the results")[2])
    assert len(files) >= 8
    for name in files:
        assert Path("results", "er", name).exists(), name

    before = Path("results", "er", "metrics.csv").stat()
    assert run(commands[-1]) == 0
    assert Path("results", "er", "metrics.csv").stat() == before, "a run that has finished is left alone"
