"""The studies of benchmarks/accuracy.py: which runs they compare, and that their statements can fail."""

import json

import pytest

from reprise.benchmarks import accuracy
from reprise.benchmarks.studies import PEER, STUDIES, Spread, gather, not_worse
from reprise.benchmarks.training_runs import AVALANCHE, Run, train_all
from reprise.train.options import parse


def by_cell(name, value):
    """Results of a study in which every figure of every run is `value(run)`."""
    study = STUDIES[name]
    runs = study.runs(range(5), "digits", ".")
    return gather(runs, [dict.fromkeys(study.figures, value(run)) for run in runs], study.figures)


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_has_options_that_main_takes_and_a_cell_of_its_own(name):
    runs = STUDIES[name].runs(range(3), "digits", ".")
    assert len({(run.cell, run.seed) for run in runs}) == len(runs)
    for run in runs:
        if run.by != AVALANCHE:
            dataset = parse(list(run.options)).options.dataset
            assert dataset in ("digits", "digits_two_domains", "synthetic", "ptycho_synthetic")


def test_the_published_split_mnist_takes_2000_iterations_per_context():
    (run, *_) = STUDIES["types"].runs(range(1), "mnist", "data")
    options = parse(list(run.options)).options
    digits_of_train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # MNIST's training images per class
    for task in range(5):
        batches = -(-sum(digits_of_train[2 * task : 2 * task + 2]) // options.batch_size)
        assert options.epochs_of(task) * batches == pytest.approx(2000, abs=60)


def test_the_peer_trains_with_the_same_numbers():
    runs = STUDIES["digits"].runs(range(1), "digits", ".")
    cells = {run.cell: run for run in runs}
    for run in runs:
        if run.by == AVALANCHE and run.cell[2] != "Vanilla":
            theirs = dict(run.peer)
            ours = parse(list(cells[(*run.cell[:3], "Reprise, at a task's end")].options)).options
            assert (theirs["epochs"], theirs["batch_size"], theirs["lr"]) == (ours.epochs, ours.batch_size, ours.lr)
            assert theirs["memory"] == ours.buffer_config.capacity
            assert theirs["batch_size"] == ours.buffer_config.num_representatives
            if run.cell[2].startswith("Der"):
                assert theirs["alpha"] == ours.strategy_config.alpha


def test_statements_about_equal_results_hold_where_they_should_and_fail_where_not():
    equal = STUDIES["digits"].judge(by_cell("digits", lambda run: 0.9 if run.cell[2] != "Vanilla" else 0.2))
    assert all(statement.holds for statement in equal)
    assert len(equal) == 24 + 12
    better = STUDIES["digits"].judge(by_cell("digits", lambda run: 0.9 if run.cell[3] == PEER else 0.84))
    assert sum(statement.holds for statement in better) == 4, "Derpp is as good as Er, and nothing else holds"
    assert not any(statement.holds for statement in STUDIES["types"].judge(by_cell("types", lambda _: 0.5))[1:])
    assert not STUDIES["reconstruction"].judge(by_cell("reconstruction", lambda _: 0.5))[0].holds
    assert not STUDIES["storage"].judge(by_cell("storage", lambda _: 0.5))[0].holds


def test_not_worse_means_within_one_standard_error_of_the_difference():
    theirs = Spread((0.5, 0.6, 0.7, 0.8))
    error = (2 * theirs.sd**2 / 4) ** 0.5
    for shift, holds in ((-0.99 * error, True), (-1.01 * error, False), (0.1, True)):
        ours = Spread(tuple(value + shift for value in theirs.values))
        assert not_worse("", ours, theirs).holds == holds


def test_runs_train_and_are_written_down(tmp_path, monkeypatch):
    options = ("--dataset", "digits", "--backbone", "mlp", "--tasksets-config", "increment=5", "--epochs", "1")
    (summary,) = train_all([Run(("cell",), 3, options)], "torchrun", lambda: None)
    assert summary["seed"] == 3
    assert summary["tasks"] == 2
    monkeypatch.setattr(accuracy, "train_all", lambda runs, *_: [{**summary, "average_accuracy": 0.9} for _ in runs])
    code = accuracy.main(["--study", "types", "--check", "--json", str(tmp_path / "results.json"), "--seeds", "2"])
    assert code == 1, "task-IL of these numbers is below domain-IL, or Er is not above Vanilla"
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["studies"]["types"]["cells"]) == 10
    assert not all(statement["holds"] for statement in written["studies"]["types"]["statements"])
