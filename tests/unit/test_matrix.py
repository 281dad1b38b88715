"""The metric formulas, worked by hand on 3x3 matrices, and where other libraries compute something else.

Covers anchors.md A.3-12 and C.6: a number without its formula is not comparable.
"""

import numpy as np
import pytest

from reprise.report import matrix

# Rows: after training task 0, 1, 2. Columns: accuracy on task 0, 1, 2.
FORGETS = np.array([[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.4, 1.0]])
# Task 0 peaks after task 1, not when learned; the last task helps task 1.
LATE_PEAK = np.array([[0.6, 0.0, 0.0], [0.8, 0.5, 0.0], [0.7, 0.9, 0.4]])


def test_average_accuracy_is_the_mean_of_the_last_row():
    assert matrix.average_accuracy(FORGETS) == pytest.approx((0.5 + 0.4 + 1.0) / 3)


def test_average_incremental_accuracy_averages_the_tasks_seen_after_each_task():
    expected = (0.9 + (0.6 + 0.8) / 2 + (0.5 + 0.4 + 1.0) / 3) / 3
    assert matrix.average_incremental_accuracy(FORGETS) == pytest.approx(expected)


def test_forgetting_is_best_before_the_end_minus_the_end():
    assert matrix.forgetting(FORGETS) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.4)) / 2)


def test_forgetting_leaves_the_last_row_out_of_the_maximum_and_can_be_negative():
    """anchors.md C.6: Mammoth and PILOT include the last row, so task 1 would give 0 instead of -0.4."""
    ours = matrix.forgetting(LATE_PEAK)
    with_last_row = np.mean([LATE_PEAK[j:, j].max() - LATE_PEAK[-1, j] for j in range(2)])
    assert ours == pytest.approx(((0.8 - 0.7) + (0.5 - 0.9)) / 2)
    assert with_last_row == pytest.approx((0.1 + 0.0) / 2)
    assert ours < 0 < with_last_row


def test_forgetting_uses_the_maximum_and_not_the_first_accuracy():
    """anchors.md C.6: Avalanche takes first minus last, its BWT is the negative of that; Chaudhry takes the best."""
    assert matrix.forgetting(LATE_PEAK) != pytest.approx(-matrix.backward_transfer(LATE_PEAK))
    assert matrix.forgetting(FORGETS) == pytest.approx(-matrix.backward_transfer(FORGETS))


def test_forgetting_ignores_accuracy_before_a_task_was_trained():
    lucky = np.array([[0.9, 1.0, 0.0], [0.9, 0.5, 0.0], [0.9, 0.5, 0.7]])
    assert matrix.forgetting(lucky) == pytest.approx(0.0)


def test_backward_transfer_compares_the_end_with_the_moment_of_learning():
    assert matrix.backward_transfer(LATE_PEAK) == pytest.approx(((0.7 - 0.6) + (0.9 - 0.5)) / 2)


def test_backward_transfer_does_not_average_the_rows_between():
    """anchors.md C.6: Continuum averages over all i > j."""
    continuum = np.mean([FORGETS[i, j] - FORGETS[j, j] for i in range(3) for j in range(i)])
    assert continuum == pytest.approx((-0.3 - 0.4 - 0.4) / 3)
    assert matrix.backward_transfer(FORGETS) == pytest.approx((-0.4 - 0.4) / 2)


def test_forward_transfer_subtracts_the_untrained_model():
    """anchors.md C.6: Continuum leaves the baseline out, which turns chance level into transfer."""
    assert matrix.forward_transfer(FORGETS, [0.5, 0.1, 0.1]) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.1)) / 2)
    assert matrix.forward_transfer(FORGETS, [0.5, 0.0, 0.0]) == pytest.approx((0.2 + 0.3) / 2)


def test_average_of_seen_takes_the_rows_known_so_far():
    assert matrix.average_of_seen(FORGETS[:2]) == pytest.approx([0.9, 0.7])


def test_one_task_has_nothing_to_forget_or_transfer():
    one = [[0.8]]
    assert matrix.average_accuracy(one) == matrix.average_incremental_accuracy(one) == 0.8
    assert matrix.forgetting(one) == matrix.backward_transfer(one) == matrix.forward_transfer(one, [0.1]) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cell_that_was_not_evaluated_is_an_error_and_not_a_zero(bad):
    rows = FORGETS.copy()
    rows[0, 2] = bad
    for formula in (matrix.average_accuracy, matrix.average_incremental_accuracy, matrix.forgetting):
        with pytest.raises(ValueError, match=r"no finite value at \[0, 2\]"):
            formula(rows)
    with pytest.raises(ValueError, match=r"baseline has no finite value at \[1\]"):
        matrix.forward_transfer(FORGETS, [0.1, bad, 0.1])


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (0, 0), (3,)])
def test_formulas_refuse_a_matrix_that_is_not_square(shape):
    with pytest.raises(ValueError, match="accuracy matrix has shape"):
        matrix.average_accuracy(np.zeros(shape))


def test_forward_transfer_refuses_a_baseline_of_another_length():
    with pytest.raises(ValueError, match=r"baseline has shape \(2,\), expected \(3,\)"):
        matrix.forward_transfer(FORGETS, [0.1, 0.1])


def test_pooled_accuracy_weighs_tasks_seen_by_their_samples():
    row, samples = [0.5, 0.8, 0.1], [10, 30, 60]
    assert matrix.pooled_accuracy(row, samples, 0) == 0.5
    assert matrix.pooled_accuracy(row, samples, 1) == pytest.approx((5 + 24) / 40)
    assert matrix.pooled_accuracy(row, samples, 2) == pytest.approx((5 + 24 + 6) / 100)
