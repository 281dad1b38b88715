"""The papers' studies: which runs they are made of, and that what has to come out can fail."""

import pytest

from reprise.benchmarks import paper, paper_studies
from reprise.benchmarks.paper_studies import STUDIES, Result
from reprise.train import options

SEEDS = range(2)


def results(study, accuracy, seconds=lambda job: 10.0, step=lambda job: 10.0, wait=lambda job: 0.01):
    """What the runs of a study would have left."""

    def left(job):
        summary = {
            "average_accuracy": accuracy(job),
            "forgetting": 0.1,
            "train_seconds": seconds(job),
            "step_ms": {"p50": step(job), "p95": 2 * step(job)},
            "samples_stored": 404,
            "images_per_second": 1000.0,
            "wait_share": wait(job),
            "tasks": 5,
        }
        parts = ("load", "rehearsal", "forward", "optimiser", "step")
        timeline = {name: {"count": 10, "total_ms": 20.0, "mean_ms": 2.0} for name in (*parts, "engine/insert")}
        return Result(job, summary, timeline, step(job))

    return [left(job) for job in STUDIES[study].jobs(SEEDS, True)]


def holds(study, **left):
    return [statement.holds for statement in STUDIES[study].judge(results(study, **left)).statements]


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_is_one_that_main_takes_and_has_a_place_of_its_own(name):
    for quick in (True, False):
        jobs = STUDIES[name].jobs(SEEDS, quick)
        assert len({(job.cell, job.seed) for job in jobs}) == len(jobs)
        for job in jobs:
            options.parse(list(job.options))


def approach(values):
    return lambda job: values[job.cell[0]]


GOOD = {
    "accuracy": approach({"incremental": 0.2, "scratch": 0.9, "rehearsal": 0.8}),
    "step": approach({"incremental": 100.0, "scratch": 100.0, "rehearsal": 151.0}),
    "seconds": approach({"incremental": 10.0, "scratch": 30.0, "rehearsal": 11.0}),
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [True, True, True]),
        ({"accuracy": approach({"incremental": 0.2, "scratch": 0.9, "rehearsal": 0.5})}, [False, True, True]),
        ({"step": approach({"incremental": 100.0, "scratch": 100.0, "rehearsal": 159.0})}, [True, False, True]),
        ({"step": approach({"incremental": 100.0, "scratch": 100.0, "rehearsal": 141.0})}, [True, False, True]),
        ({"seconds": approach({"incremental": 10.0, "scratch": 20.0, "rehearsal": 11.0})}, [True, True, False]),
    ],
)
def test_rehearsal_is_to_be_near_from_scratch_in_accuracy_and_near_incremental_in_time(changed, expected):
    assert holds("approaches", **{**GOOD, **changed}) == expected


@pytest.mark.parametrize("name", ["size", "representatives"])
def test_more_memory_and_larger_draws_are_to_help(name):
    assert holds(name, accuracy=lambda job: int(job.cell[0].split("=")[1]) / 100) == [True]
    assert holds(name, accuracy=lambda job: 0.5) == [False]


def test_the_number_of_candidates_is_not_to_matter_much():
    assert holds("candidates", accuracy=lambda job: 0.9) == [True]
    assert holds("candidates", accuracy=lambda job: 0.9 - 0.2 * (job.cell[0] == "c=56")) == [False]


def test_no_number_of_ranks_is_to_wait_for_draws():
    assert holds("scaling", accuracy=lambda job: None) == [True]
    assert holds("scaling", accuracy=lambda job: None, wait=lambda job: 0.06 * (job.cell == ("8", "Er"))) == [False]


def test_the_page_has_every_table_and_picture(tmp_path):
    findings = {name: STUDIES[name].judge(results(name, lambda job: 0.5)) for name in STUDIES if name != "approaches"}
    findings["approaches"] = STUDIES["approaches"].judge(results("approaches", **GOOD))
    page = paper.page(findings, "python benchmarks/paper.py --all")
    for name, finding in findings.items():
        assert f"## {finding.title}" in page
        assert all(cell in page for row in finding.rows for cell in row)
        if finding.plot:
            finding.plot(tmp_path / f"results-{name}.png")
            assert (tmp_path / f"results-{name}.png").read_bytes().startswith(b"\x89PNG")
            assert f"](results-{name}.png)" in page
    assert "FAIL" in page
    assert paper_studies.INTRODUCTION in page
