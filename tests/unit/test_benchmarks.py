"""The benchmark command runs, says what it promises, and its memory limit copies the bytes that a buffer copies.

Sizes that mean nothing; no time is asserted. Design, section 5.
"""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reprise.benchmarks import checks, peers
from reprise.benchmarks.limit import LIMITS, Limit
from reprise.benchmarks.workloads import POLICY, WORKLOADS, Trace
from reprise.buffer import RehearsalBuffer

COMMAND = Path(__file__).resolve().parents[2] / "benchmarks" / "buffer.py"
STEPS = 30

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="the memory limit is compiled on first use")


@pytest.mark.parametrize(
    "program", [path.stem for path in COMMAND.parent.glob("*.py") if "ArgumentParser(" in path.read_text()]
)
def test_every_program_explains_itself(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"reprise.benchmarks.{program}").main(["--help"])
    assert "usage:" in capsys.readouterr().out


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(COMMAND), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "results.json"
    done = run("--quick", "--peers", "none", "--implementation", "python", "standard+rows", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@needs_compiler
def test_ratios_to_both_limits_are_in_the_file(results: dict[str, Any]) -> None:
    unhidden = results["unhidden"]["tiny"]
    assert list(unhidden) == ["memcpy", "streaming", "python", "standard+rows", "loop"]
    for contestant in unhidden.values():
        assert contestant["p50_us"] <= contestant["p95_us"]
        for limit in ("memcpy", "streaming"):
            ratio = contestant["ratio_to"][limit]
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert unhidden["memcpy"]["ratio_to"]["memcpy"]["median"] == 1
    assert unhidden["python"]["parts_mean_us"].keys() >= {"insert"}


@needs_compiler
def test_every_measurement_is_in_the_file(results: dict[str, Any]) -> None:
    assert list(results["hidden"]["tiny"]) == ["none", "python"]
    assert all(contestant["loop_ratio"] > 0 for contestant in results["hidden"]["tiny"].values())
    assert list(results["capacity"]) == ["40", "80"]
    assert results["capacity"]["80"]["python"]["ratio_to"]["streaming"]["median"] > 0
    assert set(results["rows"]["tiny"]) == {"memcpy", "streaming", "standard+augment", "standard+rows"}
    memory = results["memory"]["tiny"]["python"]
    assert memory["resident"]["payload_bytes"] == 40 * WORKLOADS["tiny"].record_bytes
    assert memory["untouched"]["payload_bytes"] > 2**31
    assert memory["idle"]["core_share"] >= 0
    assert {"torch", "cpu", "git_commit"} <= results["environment"].keys()
    assert "--quick" in results["command"]


@needs_compiler
def test_bytes_per_step_are_those_of_the_trace(results: dict[str, Any]) -> None:
    workload = WORKLOADS["tiny"]
    drawn = sum(workload.draws) * workload.record_bytes
    most = drawn + workload.candidates * workload.record_bytes
    unhidden = results["unhidden"]["tiny"]
    # Not equal to each other: a contestant whose block is cut short has taken part in fewer of the steps.
    for name in ("memcpy", "streaming", "python", "standard+rows"):
        assert drawn <= unhidden[name]["bytes_per_step"] <= most
    assert unhidden["loop"]["bytes_per_step"] == most


@needs_compiler
@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("workload", [WORKLOADS["tiny"], WORKLOADS["derpp"].with_capacity(500)], ids=lambda w: w.name)
def test_limit_copies_what_a_buffer_stores_and_draws(name: str, workload: Any) -> None:
    trace = Trace(workload, seed=3, steps=STEPS)
    limit = Limit(name, workload)
    buffer = RehearsalBuffer(
        workload.field_map,
        workload.capacity,
        workload.draws,
        workload.candidates,
        POLICY,
        implementation="python",
        seed=3,
        deterministic=True,
    )
    limit.fill(trace)
    buffer.wait()
    for index in range(trace.fill_steps + STEPS):
        buffer.submit(**trace.batch(index).arguments)
        draws = buffer.wait()
        if index < trace.fill_steps:
            continue
        limit.step(trace.batch(index))
        for column in (*workload.field_map, "y", "task"):
            drawn = torch.cat([draw[column] for draw in draws])
            assert torch.equal(limit.staged(column), drawn), (index, column)
    assert len(limit.stored("y")) == workload.capacity
    counts = {
        int(label): int(count) for label, count in zip(*limit.stored("y").unique(return_counts=True), strict=True)
    }
    assert counts == buffer.class_counts()
    limit.close()
    buffer.close()


@needs_compiler
def test_limit_bytes_are_those_it_changes() -> None:
    """Rows that carry the number of their step are found again in exactly as many slots as the step claims to write."""
    workload = WORKLOADS["tiny"]
    trace = Trace(workload, seed=4, steps=1)
    limit = Limit("streaming", workload)
    limit.fill(trace)
    limit.step(trace.batch(trace.fill_steps))
    stored_bytes, drawn_bytes = trace.bytes_at(trace.fill_steps)
    written = int((limit.stored("task") == trace.fill_steps).sum())
    assert written * workload.record_bytes == stored_bytes > 0
    assert drawn_bytes == sum(workload.draws) * workload.record_bytes


def test_list_names_workloads_and_absent_peers() -> None:
    done = run("--list")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("cifar", "imagenet", "imagenet-u8", "derpp", "memcpy", "streaming"))
    for peer in peers.PEERS:
        assert peers.installed(peer) or f"{peer}: not installed" in done.stdout


def test_unknown_peer_is_refused() -> None:
    done = run("--peers", "torchrl,redis")
    assert done.returncode == 2
    assert "unknown peer 'redis'" in done.stderr


def side(p50: float, moved: float, **more: Any) -> dict[str, Any]:
    return {"p50_us": p50, "bytes_per_step": moved, **more}


def test_speedup_counts_the_bytes_moved() -> None:
    assert checks.per_byte_speedup(side(10, 100), side(30, 100)) == pytest.approx(3)
    assert checks.per_byte_speedup(side(10, 50), side(30, 100)) == pytest.approx(1.5)
    assert checks.per_byte_speedup(side(10, 100), side(30, 50)) == pytest.approx(3)


@pytest.mark.parametrize(("ratio", "passed"), [(1.19, True), (1.21, False)])
def test_checks_judge_the_measured_ratio(ratio: float, passed: bool) -> None:
    standard = side(10, 100, runs="standard", ratio_to={"memcpy": {"median": ratio}})
    torchrl = side(19, 100)
    lines = checks.judge({"unhidden": {"imagenet": {"standard": standard, "torchrl": torchrl}}})
    assert [(check.line, check.passed) for check in lines] == [(2, passed), (4, True)]


def test_checks_leave_open_what_was_not_measured() -> None:
    standard = side(10, 100, runs="standard", ratio_to={})
    lines = checks.judge({"unhidden": {"cifar": {"standard": standard}}})
    assert {check.passed for check in lines} == {None}
    assert {check.measured for check in lines} == {"not measured"}


@pytest.mark.parametrize(("last_us", "passed"), [(25.0, True), (27.0, False)])
def test_growth_with_capacity_is_judged_against_that_of_the_limit(last_us: float, passed: bool) -> None:
    sizes = {
        "2000": {"standard": side(10, 1, runs="standard", limit_p50_us={"streaming": 5.0})},
        "200000": {"standard": side(last_us, 1, runs="standard", limit_p50_us={"streaming": 10.0})},
    }
    assert [check.passed for check in checks.judge({"capacity": sizes})] == [passed]
