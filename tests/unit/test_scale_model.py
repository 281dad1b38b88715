"""The arithmetic of benchmarks/scale_model.py: its queues, its expected traffic, its fits, and what it must come to.

Cases small enough to be worked out by hand; the same seed gives the same bits.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprise.benchmarks import global_checks, scale_model
from reprise.benchmarks.scale_model import Costs, Job, Network, costs_from, fifo, fit_copy, predict, simulate

EXACT = Costs(
    call_us=10.0,
    call_p95_us=10.0,
    plan_us=2.0,
    plan_near_us=0.5,
    plan_far_us=0.25,
    record_us=1.0,
    byte_us=0.01,
    issue_us=3.0,
    serve_us=20.0,
)
"""Without spread, so that times can be added up."""
SLOW = Network(1.0, 50.0, False, 0.5, 0.5, "made up")
JOB = Job(ranks=1, ranks_per_node=1, record_bytes=1000, records=4, insert_us=100.0, compute_us=0.0, jitter=0.0)


def served_one_by_one(
    resource: list[int], arrival: list[float], service: list[float], free: list[float]
) -> tuple[list[float], list[float]]:
    start, end = [0.0] * len(arrival), [0.0] * len(arrival)
    for job in sorted(range(len(arrival)), key=lambda job: arrival[job]):
        start[job] = max(arrival[job], free[resource[job]])
        end[job] = free[resource[job]] = start[job] + service[job]
    return start, end


def test_queues_serve_in_order_of_arrival() -> None:
    random = np.random.default_rng(3)
    for jobs in (1, 2, 50, 400):
        resource, service = random.integers(0, 7, jobs), random.exponential(2.0, jobs)
        arrival, free = random.uniform(0, jobs / 2, jobs), random.uniform(0, 20, 7)
        expected_free = free.tolist()
        expected = served_one_by_one(resource.tolist(), arrival.tolist(), service.tolist(), expected_free)
        start, end = fifo(resource, arrival, service, free)
        np.testing.assert_allclose(start, expected[0])
        np.testing.assert_allclose(end, expected[1])
        np.testing.assert_allclose(free, expected_free)


def test_no_jobs_leave_a_queue_as_it_is() -> None:
    free = np.array([4.0])
    start, end = fifo(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0), free)
    assert len(start) == len(end) == 0
    assert free.tolist() == [4.0]


def test_one_rank_waits_for_everything_that_no_compute_hides() -> None:
    outcome = simulate(JOB, EXACT, SLOW, steps=5)
    prepared = 100.0 + 2.0 + 4 * (1.0 + 1000 * 0.01)
    np.testing.assert_allclose(outcome.prepared_us, prepared)
    np.testing.assert_allclose(outcome.blocked_us, 10.0 + prepared)
    assert outcome.requests.sum() == outcome.network_bytes.sum() == outcome.node_bytes.sum() == 0


@pytest.mark.parametrize(("compute_us", "blocked_us"), [(1000.0, 10.0), (146.0, 10.0), (100.0, 56.0)])
def test_compute_hides_as_much_as_it_is_long(compute_us: float, blocked_us: float) -> None:
    outcome = simulate(replace(JOB, compute_us=compute_us), EXACT, SLOW, steps=5)
    np.testing.assert_allclose(outcome.blocked_us, blocked_us)


def remote_draws(outcome: scale_model.Outcome) -> np.ndarray:
    """Rows from the other of two ranks, per rank, of the first step that counts."""
    return outcome.network_bytes[0] / 1000


def test_one_reply_is_asked_for_gathered_sent_and_taken_in() -> None:
    """Two nodes of one rank; a step in which one rank draws from the other, and not the other way round."""
    job = replace(JOB, ranks=2, records=1, compute_us=10_000.0)
    for seed in range(50):
        outcome = simulate(job, EXACT, SLOW, steps=1, seed=seed)
        rows = remote_draws(outcome)
        if rows.sum() == 1:
            break
    reader = int(rows.argmax())
    before = 100.0 + 2.0 + 0.25
    # 1 GB/s, half of it for draws: 2 µs a KB. A thread: 2 µs a KB at 0.5 GB/s, on either side.
    gathered = 1.0 + 1000 * 0.01
    sent = before + 3.0 + 50.0 + 20.0 + gathered + 2.0  # last byte out of the owner's thread
    arrived = sent + 50.0
    assert outcome.prepared_us[0, reader] == pytest.approx(arrived)
    assert outcome.prepared_us[0, 1 - reader] == pytest.approx(before + gathered)
    assert outcome.requests[0, reader] == 1
    assert outcome.messages[0, reader] == 2


def test_a_one_sided_read_needs_nobody_and_takes_three_rounds() -> None:
    job = replace(JOB, ranks=2, records=1, compute_us=10_000.0)
    network = replace(SLOW, one_sided=True)
    for seed in range(50):
        outcome = simulate(job, EXACT, network, steps=1, seed=seed)
        rows = remote_draws(outcome)
        if rows.sum() == 1:
            break
    reader = int(rows.argmax())
    assert outcome.prepared_us[0, reader] == pytest.approx(102.25 + 3.0 + 3 * 2 * 50.0 + 2.0)
    # Version, label and task, weight, field, version; the owner's counters in every round.
    assert outcome.messages[0, reader] == 5 + 3


@pytest.mark.parametrize(("ranks", "per_node"), [(8, 4), (64, 8), (256, 8)])
def test_traffic_is_what_uniform_draws_come_to(ranks: int, per_node: int) -> None:
    job = replace(JOB, ranks=ranks, ranks_per_node=per_node, records=7, compute_us=1000.0)
    outcome = simulate(job, EXACT, SLOW, steps=40_000 // ranks)
    far = ranks - per_node
    asked = far * (1 - (1 - 1 / ranks) ** 7)
    assert outcome.requests.mean() == pytest.approx(asked, rel=0.02)
    assert outcome.requests.max() <= min(7, far)
    assert outcome.network_bytes.mean() == pytest.approx(7 * 1000 * far / ranks, rel=0.02)
    assert outcome.node_bytes.mean() == pytest.approx(7 * 1000 * (per_node - 1) / ranks, rel=0.05)
    assert outcome.messages.mean() == pytest.approx(2 * outcome.requests.mean())


def test_a_full_link_holds_everybody_up() -> None:
    """What a node's card has to send takes longer than the compute: steps go at the pace of the card."""
    job = replace(JOB, ranks=8, ranks_per_node=4, record_bytes=1_000_000, records=8, compute_us=1000.0)
    costs = replace(EXACT, byte_us=0.0)
    outcome = simulate(job, costs, SLOW, steps=50)
    out_of_a_node = 4 * 8 * 0.5 * 1_000_000 * 2e-3
    assert outcome.blocked_us.max(axis=1).mean() + 1000.0 > out_of_a_node
    fast = simulate(job, costs, replace(SLOW, gigabytes_per_s=1000.0, thread_gigabytes_per_s=1000.0), steps=50)
    assert fast.blocked_us.max(axis=1).mean() + 1000.0 < out_of_a_node


def test_nobody_goes_ahead_of_an_allreduce() -> None:
    """With jitter, steps are as long as the slowest rank's compute; blocked time is not what grows."""
    job = replace(JOB, ranks=16, ranks_per_node=16, compute_us=10_000.0, jitter=0.2)
    together = simulate(job, EXACT, SLOW, steps=50)
    np.testing.assert_allclose(together.blocked_us, 10.0)


def test_the_same_seed_gives_the_same_bits() -> None:
    job = replace(JOB, ranks=32, ranks_per_node=4, compute_us=300.0, jitter=0.1)
    first, again, other = (simulate(job, Costs(), SLOW, steps=20, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.blocked_us, again.blocked_us)
    np.testing.assert_array_equal(first.prepared_us, again.prepared_us)
    assert (first.prepared_us != other.prepared_us).any()


def test_fit_finds_the_costs_that_made_the_times() -> None:
    points = [(n, size, n * (0.4 + 7e-5 * size)) for n, size in ((16, 1024), (16, 12288), (7, 602112), (1, 12288))]
    assert fit_copy(points) == pytest.approx((0.4, 7e-5))


def test_fit_never_gives_time_back() -> None:
    record, byte = fit_copy([(16, 1024, 0.1), (16, 1_048_576, 2000.0)])
    assert record == 0.0
    assert byte > 0.0


def measured() -> dict[str, Any]:
    def case(records: int, size: int, fetch: float, lat: float) -> dict[str, Any]:
        yardsticks = {"am_lat": lat, "am_bw": size / 4000, "am_lat_sleep": 2 * lat}
        return {
            "records": records,
            "bytes": size,
            "fetch_p50_us": fetch,
            "plan_p50_us": 0.75,
            "ratio": {"fetch": 1.0, "draw": 1.1, "step": 1.3},
            "perftest_us": yardsticks,
        }

    row = {
        "p50_us": 30.0,
        "p95_us": 60.0,
        "engine_cpu_us": 900.0,
        "requests_per_step": 0.99,
        "submit_p50_us": 8.0,
        "parts_us": {"insert": 50.0},
    }
    bare = {**row, "p50_us": 200.0}
    memory = {"make_s": 1.0, "used_anonymous_kib": 800.0}
    return {
        "environment": {"cpu_count": 2},
        "draws": {
            "shm": {"cases": [case(16, 12288, 16 * (0.5 + 12288 * 1e-4), 1.0), case(1, 1024, 0.5 + 1024 * 1e-4, 1.0)]},
            "ucx": {"cases": [case(1, 12288, 55.0, 10.0), case(7, 602112, 1500.0, 90.0)]},
        },
        "hidden": {"2": {"cifar": {"0": {"shm": bare}, "20": {"shm": row}}}},
        "ranks": {
            str(n): {
                "shm": {
                    **row,
                    **memory,
                    "plan_p50_us": 1.0 + 0.5 * n,
                    "used_page_tables_kib": 30.0 * n,
                    "requests_per_step": n * 0.5,
                    "remote_bytes_per_step": 100_000.0,
                }
            }
            for n in (2, 8, 32)
        },
    }


def test_costs_are_those_that_were_measured() -> None:
    costs = costs_from(measured())
    assert (costs.record_us, costs.byte_us) == pytest.approx((0.5, 1e-4))
    assert costs.plan_us == 0.75
    assert costs.plan_near_us == pytest.approx(0.5)
    assert costs.serve_us == pytest.approx(55.0 - 2 * 10.0)
    assert (costs.call_us, costs.call_p95_us, costs.call_warm_us) == (30.0, 60.0, 8.0)
    assert costs.insert_us["cifar"] == 50.0
    assert costs.insert_us["imagenet"] == Costs().insert_us["imagenet"]
    assert "plan_far_us" not in costs.sources, "nothing was measured over UCX at several counts"
    assert {"record_us", "byte_us", "plan_us", "serve_us", "insert_us"} <= costs.sources.keys()


def test_nothing_measured_leaves_the_defaults() -> None:
    failed = {"draws": {"shm": {"failed": "x"}}, "hidden": {"2": {"failed": "x"}}, "ranks": {"2": {"failed": "x"}}}
    assert costs_from({}) == costs_from(failed) == Costs()


def test_comparison_divides_the_model_by_what_was_measured() -> None:
    results = measured()
    rows = scale_model.compare(costs_from(results), results, steps=40)
    by_name = {(row["ranks"], row["what"]): row for row in rows}
    alone = by_name[(2, "blocked at 0 ms, p50 µs")]
    assert alone["measured"] == 200.0
    assert alone["ratio"] == pytest.approx(alone["model"] / 200.0)
    # Two ranks on two cores: a warm call, insert, plan and 16 records of 12,304 bytes from memory.
    expected = 8.0 + 50.0 + 0.75 + 0.5 + 16 * (0.5 + 12_304 * 1e-4)
    assert alone["model"] == pytest.approx(expected, rel=0.1)
    assert by_name[(32, "ranks read from")]["model"] == pytest.approx(31 * (1 - (1 - 1 / 32) ** 16), rel=0.05)


def test_checks_judge_what_was_measured_and_name_what_failed() -> None:
    results = {**measured(), "collectives": {"mpirun": {"failed": "exit code 1: why"}}}
    lines = {check.text: check.passed for check in global_checks.judge(results)}
    assert lines["collectives, mpirun"] is False
    assert lines["shm: 16 x 12 KiB, of a plain copy (plan and fetch)"] is True
    assert lines["shm: 7 x 588 KiB, of a plain copy"] is None
    # 1,500 µs for 7 records of which the stream takes 150.5 each; 55 µs against round trips of 20.
    assert lines["ucx: 7 x 588 KiB, bandwidth of ucx_perftest's active messages"] is True
    assert lines["ucx: 1 x 12 KiB, in round trips of ucx_perftest"] is True
    assert lines["shm: memory per peer, 2 to 32 ranks"] is True
    slow = measured()
    slow["draws"]["ucx"]["cases"][0]["fetch_p50_us"] = 61.0
    slow["ranks"]["32"]["shm"]["make_s"] = 11.0
    lines = {check.text: check.passed for check in global_checks.judge(slow)}
    assert lines["ucx: 1 x 12 KiB, in round trips of ucx_perftest"] is False
    assert lines["shm: start-up of the buffer at 32 ranks"] is False


def test_command_writes_tables_json_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps(measured()))
    paths = [tmp_path / "model.json", tmp_path / "model.png"]
    arguments = ["--check-against", str(results), "--ranks", "8", "16", "--steps", "4", "--workload", "cifar"]
    assert scale_model.main([*arguments, "--json", str(paths[0]), "--png", str(paths[1])]) == 0
    model = json.loads(paths[0].read_text())
    assert len(model["points"]) == 2 * 2 * len(scale_model.NETWORKS)
    assert model["points"] == predict(costs_from(measured()), (8, 16), 4, workloads=["cifar"])["points"]
    assert all(network["source"] for network in model["networks"].values())
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert "the model against what was measured" in capsys.readouterr().out
