"""benchmarks/checkpoint_cost.py measures every size and phase, writes what it found, judges; no time is asserted."""

import json

from reprise.benchmarks import checkpoint_cost


def test_every_size_and_phase_is_measured_and_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint_cost, "BACKBONE", "mlp")
    monkeypatch.setattr(checkpoint_cost, "SIZES", {"64 B": 64, "3 KiB": 3 << 10})
    asked = ["--gib", "0.0003", "--steps", "2", "--turns", "1", "--json", str(tmp_path / "found.json")]
    assert checkpoint_cost.main(asked) == 0
    found = json.loads((tmp_path / "found.json").read_text())["sizes"]
    assert {name: list(phases) for name, phases in found.items()} == {
        "64 B": ["filling", "steady"],
        "3 KiB": ["filling", "steady"],
    }
    assert found["64 B"]["steady"]["written_mib"] * 2**20 == 64 * 400
    shown = capsys.readouterr().out
    for phases in found.values():
        for cost in phases.values():
            assert ("pass" if cost["background"] < checkpoint_cost.LIMIT else "FAIL") in shown
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_a_checkpoint_that_costs_too_much_fails_the_check(tmp_path, monkeypatch):
    cost = {"written_mib": 1.0, "step_ms": 1.0, "full": 0.5, "turns": {}}
    monkeypatch.chdir(tmp_path)
    for background, code in ((0.5, 1), (0.001, 0)):
        found = {phase: {**cost, "background": background} for phase in checkpoint_cost.PHASES}
        monkeypatch.setattr(checkpoint_cost, "measure", lambda *_, found=found: found)
        assert checkpoint_cost.main(["--check"]) == code
        assert checkpoint_cost.main([]) == 0
