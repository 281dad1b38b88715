"""The strategy that docs/strategies.md adds is complete: one file, found by its name, that learns."""

import json
import re
from pathlib import Path

from reprise.cl_models import STRATEGIES
from reprise.main import main

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"
JOB = ["--dataset", "digits", "--backbone", "mlp", "--epochs", "3", "--batch-size", "32", "--seed", "1"]
ER_ACE = ["--model", "ErAce", "--buffer-config", "capacity=200 num_representatives=32 deterministic=true"]


def accuracy(folder: Path, name: str, *arguments: str) -> float:
    where = ["--tasksets-config", "{'increment': 2}", "--results-dir", str(folder), "--save-dir", name]
    assert main([*JOB, *arguments, *where]) == 0
    return float(json.loads((folder / name / "summary.json").read_text())["average_accuracy"])


def test_the_example_trains_and_remembers(tmp_path, monkeypatch):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(source.splitlines()) <= 40
    with monkeypatch.context() as patch:
        patch.setattr(STRATEGIES, "_entries", dict(STRATEGIES._entries))
        exec(compile(source, str(PAGE), "exec"), {"__name__": "example"})
        assert accuracy(tmp_path, "ace", *ER_ACE) > accuracy(tmp_path, "vanilla", "--model", "Vanilla") + 0.3
