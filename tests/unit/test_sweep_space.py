"""A sweep file's trials: all combinations, draws that follow what the file says, and mistakes in one line."""

import itertools
import math

import pytest
from scipy import stats

from reprise.runtime.errors import UserError
from reprise.sweeps.space import Sweep

DRAWS = 4000
ONE = "parameters: {lr: {value: 0.1}}"


def sweep(tmp_path, text: str) -> Sweep:
    path = tmp_path / "search.yaml"
    path.write_text(text)
    return Sweep(path)


def draws(tmp_path, parameter: str) -> list:
    made = sweep(tmp_path, f"{{method: random, run_cap: {DRAWS}, parameters: {{x: {parameter}}}}}")
    return [made[trial]["x"] for trial in range(len(made))]


def test_a_grid_is_every_combination_in_order(tmp_path):
    made = sweep(
        tmp_path,
        """
        parameters:
          lr: {values: [0.1, 1e-3]}
          model: {value: Er}
          buffer_config.num_candidates: {min: 2, max: 4}
          alpha: {min: 0.1, max: 0.3, distribution: q_uniform, q: 0.1}
        """,
    )
    expected = itertools.product([0.1, 0.001], ["Er"], [2, 3, 4], [0.1, 0.2, 0.3])
    assert [tuple(made[trial].values()) for trial in range(len(made))] == list(expected)
    assert list(made[0]) == ["lr", "model", "buffer_config.num_candidates", "alpha"]
    assert made.varied == ["lr", "buffer_config.num_candidates", "alpha"]
    with pytest.raises(IndexError):
        made[len(made)]


def test_run_cap_shortens_a_grid(tmp_path):
    assert len(sweep(tmp_path, "{run_cap: 3, parameters: {a: {values: [1, 2]}, b: {values: [1, 2]}}}")) == 3


def test_more_trials_leave_the_ones_there_are_as_they_were(tmp_path):
    text = "{{method: random, run_cap: {}, parameters: {{lr: {{min: 0.0, max: 1.0}}, n: {{min: 1, max: 99}}}}}}"
    few, many = sweep(tmp_path, text.format(5)), sweep(tmp_path, text.format(9))
    assert [few[trial] for trial in range(5)] == [many[trial] for trial in range(5)]
    assert len({str(many[trial]) for trial in range(9)}) == 9
    assert few.same_trials(many)
    assert not few.same_trials(sweep(tmp_path, text.format(5).replace("99", "98")))


@pytest.mark.parametrize(
    ("parameter", "values", "probabilities"),
    [
        ("{values: [a, b, c, d]}", list("abcd"), [0.25] * 4),
        ("{values: [a, b, c], probabilities: [0.5, 0.3, 0.2]}", list("abc"), [0.5, 0.3, 0.2]),
        ("{min: 3, max: 9}", list(range(3, 10)), [1 / 7] * 7),
        ("{distribution: q_uniform, min: 0, max: 4, q: 2}", [0, 2, 4], [0.25, 0.5, 0.25]),
    ],
)
def test_discrete_draws_follow_their_distribution(tmp_path, parameter, values, probabilities):
    drawn = draws(tmp_path, parameter)
    counts = [drawn.count(value) for value in values]
    assert sum(counts) == DRAWS
    assert stats.chisquare(counts, [DRAWS * share for share in probabilities]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("parameter", "distribution"),
    [
        ("{min: 0.5, max: 2.5}", stats.uniform(0.5, 2.0)),
        ("{distribution: log_uniform_values, min: 0.0001, max: 1.0}", stats.loguniform(0.0001, 1.0)),
        ("{distribution: log_uniform, min: -3, max: 2}", stats.loguniform(math.exp(-3), math.exp(2))),
        ("{distribution: normal, mu: 3, sigma: 2}", stats.norm(3, 2)),
        ("{mu: 3.0, sigma: 2.0}", stats.norm(3, 2)),
        ("{distribution: log_normal, mu: 1, sigma: 0.5}", stats.lognorm(0.5, scale=math.e)),
    ],
)
def test_continuous_draws_follow_their_distribution(tmp_path, parameter, distribution):
    assert stats.kstest(draws(tmp_path, parameter), distribution.cdf).pvalue > 1e-3


def test_quantised_draws_are_numbers_a_person_would_write(tmp_path):
    tenths = set(draws(tmp_path, "{distribution: q_uniform, min: 0, max: 1, q: 0.1}"))
    assert tenths == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
    whole = draws(tmp_path, "{distribution: q_log_uniform_values, min: 8, max: 512, q: 8}")
    assert all(isinstance(value, int) and value % 8 == 0 for value in whole)  # main.py takes whole numbers alone
    assert all(isinstance(value, int) for value in draws(tmp_path, "{distribution: q_normal, mu: 9, sigma: 2, q: 1}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is no sweep file"),
        ("a: b: c", "is not YAML"),
        ("method: grid", "parameters"),
        (f"{{methods: grid, {ONE}}}", "unknown key 'methods'"),
        (f"{{method: grit, {ONE}}}", "'grit'"),
        (f"{{method: bayes, {ONE}}}", "bayes is the service's own"),
        (f"{{method: random, {ONE}}}", "run_cap"),
        (f"{{run_cap: 0, {ONE}}}", "run_cap 0"),
        (f"{{metric: {{name: acc}}, {ONE}}}", "metric.name 'acc' is not measured"),
        (f"{{metric: {{goal: up}}, {ONE}}}", "'up'"),
        ("parameters: {}", "parameters"),
        ("parameters: {lr: 0.1}", "parameters.lr 0.1: expected value, values, or min and max"),
        ("parameters: {lr: {}}", "parameters.lr: expected value, values, or min and max"),
        ("parameters: {lr: {vals: [1]}}", "unknown key 'vals'"),
        ("parameters: {lr: {values: []}}", "values"),
        ("parameters: {lr: {value: 1, values: [1, 2]}}", "give one of"),
        ("parameters: {lr: {min: 1}}", "give both min and max"),
        ("parameters: {lr: {min: 2, max: 1}}", "min 2 is above max 1"),
        ("parameters: {lr: {min: 0.0, max: 1.0}}", "a grid cannot try every value of uniform"),
        ("parameters: {lr: {values: [1, 2], probabilities: [1.0]}}", "as many values"),
        ("parameters: {lr: {values: [1, 2], probabilities: [0.5, 0.6]}}", "add up to 1.1"),
        ("parameters: {lr: {min: 0, max: 1, distribution: beta}}", "distribution 'beta'"),
        ("parameters: {lr: {distribution: uniform}}", "uniform needs min and max"),
        ("parameters: {lr: {distribution: constant}}", "constant needs a value"),
        ("parameters: {lr: {min: 0, max: 1, distribution: log_uniform_values}}", "min above 0"),
        ("parameters: {buffer_config: {parameters: {policy: {value: fifo}}}}", "buffer_config.rehearsal_ratio"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, text, said):
    with pytest.raises(UserError) as caught:
        sweep(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml"):
        Sweep(tmp_path / "nothing.yaml")


def test_exponents_too_large_to_be_meant_are_refused(tmp_path):
    with pytest.raises(UserError, match="exponents of e"):
        sweep(tmp_path, "{method: random, run_cap: 1, parameters: {x: {distribution: log_uniform, min: 1, max: 1000}}}")
