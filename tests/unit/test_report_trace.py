"""trace.json: what is in it, where it lies, and from when on it is complete."""

import json

import pytest

from reprise.report import trace
from reprise.report.trace import Event, chrome, last_steps
from reprise.runtime.spans import KEPT

STEP_NS = 1000


def steps(number: int) -> list[tuple[int, int]]:
    return [(STEP_NS * k, STEP_NS * k + 900) for k in range(number)]


def shifted(times: list[tuple[int, int]], by: int) -> list[tuple[int, int]]:
    return [(begin + by, begin + by + 10) for begin, _ in times]


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(trace, "time_ns", lambda: 5_000_000)
    monkeypatch.setattr(trace, "perf_counter_ns", lambda: 1_000_000)
    return 4_000_000


def test_parts_lie_in_their_thread_at_the_time_of_the_nodes_clock(clock):
    buffer = {"submit": [(30, 40)], "queue": [(39, 50)], "fetch": [(55, 70)]}
    events = last_steps({"step": [(0, 900)], "load": [(5, 20)]}, buffer, one_thread=False)
    assert events == [
        Event("step", 0, clock, clock + 900),
        Event("load", 0, clock + 5, clock + 20),
        Event("submit", 0, clock + 30, clock + 40),
        Event("queue", 1, clock + 39, clock + 50),
        Event("fetch", 1, clock + 55, clock + 70),
    ]
    assert {event.thread for event in last_steps({"step": [(0, 900)]}, buffer, one_thread=True)} == {0}


def test_no_more_than_the_last_steps_are_there_and_nothing_before_them(clock):
    kept = steps(300)
    events = last_steps({"step": kept, "load": shifted(kept, 5)}, {"fetch": shifted(kept, 7)}, one_thread=False)
    for part in ("step", "load", "fetch"):
        begins = [event.begin_ns for event in events if event.part == part]
        assert len(begins) == trace.STEPS
        assert min(begins) - clock in range(100 * STEP_NS, 100 * STEP_NS + 10)


@pytest.mark.parametrize("kept", [KEPT, KEPT - 1])
def test_it_begins_where_every_part_is_complete(clock, kept):
    """16 passes per step: of the last 1,024 forward passes the oldest are cut off within a step."""
    whole = steps(150)
    forwards = [(begin + 50 * k, begin + 50 * k + 40) for begin, _ in whole for k in range(16)][-kept:]
    events = last_steps({"step": whole, "forward": forwards}, {}, one_thread=False)
    assert len([event for event in events if event.part == "step"]) == 63
    assert len([event for event in events if event.part == "forward"]) == 63 * 16


def test_without_steps_there_is_nothing():
    assert last_steps({}, {"submit": [(1, 2)]}, one_thread=False) == []
    assert chrome([[], []])["traceEvents"] == [
        {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}} for rank in range(2)
    ]


def test_the_file_has_microseconds_from_the_first_event_of_all_ranks():
    ranks = [[Event("load", 0, 3000, 4500), Event("step", 0, 3000, 9000)], [Event("queue", 1, 2000, 2500)]]
    content = json.loads(json.dumps(chrome(ranks)))["traceEvents"]
    names = [(e["pid"], e["args"]["name"]) for e in content if e["ph"] == "M"]
    assert names == [(0, "rank 0"), (0, "training"), (1, "rank 1"), (1, "rehearsal engine")]
    timed = [(e["ph"], e["name"], e["pid"], e["tid"], e["ts"], e.get("dur")) for e in content if e["ph"] != "M"]
    assert timed == [
        ("X", "step", 0, 0, 1.0, 6.0),
        ("X", "load", 0, 0, 1.0, 1.5),
        ("b", "queue", 1, 1, 0.0, None),
        ("e", "queue", 1, 1, 0.5, None),
    ]
    assert len({e["id"] for e in content if e["ph"] in "be"}) == 1
