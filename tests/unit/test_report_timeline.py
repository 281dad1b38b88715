"""The published parts of a step, from the timeline's."""

import pytest

from reprise.report.timeline import beside, overheads, within


def part(total_ms: float, count: int = 4) -> dict[str, float]:
    return {"count": count, "total_ms": total_ms, "mean_ms": total_ms / count, "p50_ms": 1.0, "p95_ms": 2.0}


TIMELINE = {
    "step": part(100),
    "load": part(8),
    "rehearsal": part(4),
    "forward": part(32, count=8),
    "optimiser": part(20),
    "engine/queue": part(400),
    "engine/insert": part(2),
    "engine/plan": part(1),
    "engine/fetch": part(6),
}


def test_parts_of_the_published_table():
    assert overheads(TIMELINE) == {"load": 2, "wait": 1, "train": 13, "populate": 0.5, "augment": 1.75}


def test_without_a_buffer_nothing_is_said_of_it():
    without = {name: stats for name, stats in TIMELINE.items() if "/" not in name and name != "rehearsal"}
    assert overheads(without) == {"load": 2, "wait": 0, "train": 13}


@pytest.mark.parametrize("timeline", [{}, {"step": part(0) | {"count": 0}}, {"load": part(3)}])
def test_without_steps_there_is_no_table(timeline):
    assert overheads(timeline) == {}


def test_each_part_is_within_the_step_or_beside_it():
    assert [*within(TIMELINE), *beside(TIMELINE)] == list(TIMELINE)[1:]
