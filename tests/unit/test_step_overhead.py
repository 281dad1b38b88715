"""benchmarks/step_overhead.py counts the passes of every strategy, compares with steps of the same ones, and judges.

One rank and a small network; no time is asserted.
"""

from pathlib import Path
from typing import Any

import pytest

from reprise.benchmarks import job, step_overhead

SCRIPT = str(Path(__file__).resolve().parents[2] / "benchmarks" / "step_overhead.py")
ASKED = {
    "backbone": "mlp",
    "strategies": step_overhead.STRATEGIES,
    "implementations": ["standard", "python"],
    "batch_size": 4,
    "representatives": 2,
    "candidates": 4,
    "capacity": 16,
    "turns": 2,
    "minutes": 1,
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    results = job.run(SCRIPT, "python", 1, ASKED, {}, timeout_s=120)
    assert "failed" not in results, results["failed"]
    return results["contestants"]


@pytest.mark.parametrize("suffix", ["", ", python"])
@pytest.mark.parametrize(
    ("strategy", "rows", "vanilla"),
    [("Er", [6], 6), ("Agem", [2, 4], 6), ("Der", [6], 6), ("Derpp", [8], 8)],
)
def test_passes_of_a_strategy_are_those_of_its_baseline(found, strategy, rows, vanilla, suffix):
    """b = 4, r = 2: Agem has a pass over its draw, Derpp two draws."""
    mine = found[strategy + suffix]
    assert mine["passes"] == {"forward": rows, "backward": rows, "gradient_averages": len(rows)}
    assert found[mine["baseline"]]["passes"] == mine["passes"]
    assert found[mine["vanilla"]]["passes"]["forward"] == [vanilla]
    assert found[mine["vanilla"]]["strategy"] == "Vanilla"


def test_everybody_has_a_step_in_every_turn_and_the_engine_is_judged(found):
    assert all(len(mine["wall_ms"]) == len(mine["cpu_ms"]) == ASKED["turns"] for mine in found.values())
    verdicts = step_overhead.judge(found)
    judged = {name for name, own in verdicts.items() if own["passed"] is not None}
    assert judged == {name for name, mine in found.items() if mine["implementation"] == "standard"}
    assert "Vanilla, 6 rows, again" in verdicts.keys() - judged


def contestant(baseline: str, wall_ms: list[float]) -> dict[str, Any]:
    return {
        "implementation": "standard" if baseline else None,
        "baseline": baseline,
        "vanilla": baseline,
        "wall_ms": wall_ms,
        "cpu_ms": wall_ms,
    }


@pytest.mark.parametrize(("factor", "passed"), [(1.029, True), (1.031, False)])
def test_the_median_over_turns_is_judged_and_slow_turns_do_not_count(factor, passed):
    bare = [100.0, 130.0, 90.0, 100.0, 500.0]
    mine = [factor * ms for ms in bare]
    mine[2] *= 3  # somebody else wanted the core
    verdict = step_overhead.judge({"bare": contestant("", bare), "Er": contestant("bare", mine)})["Er"]
    assert verdict["overhead"]["median"] == pytest.approx(factor - 1)
    assert verdict["overhead"]["low"] <= factor - 1 <= verdict["overhead"]["high"]
    assert verdict["passed"] is passed
