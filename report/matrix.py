"""The formulas of continual learning, on the matrix R: R[i, j] is the accuracy on task j after training task i.

Pure functions of numpy arrays, nothing else: no files, no printing, nothing of ours imported. Libraries differ in
forgetting, BWT and FWT, so each docstring states its formula, its source and who computes it otherwise.
The results have the unit of R (here fractions). With one task forgetting, BWT and FWT have nothing to average: 0.0.
Called by train/results.py for summary.json and by the plots.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_accuracy(matrix: ArrayLike) -> float:
    """ACC = mean_j R[T-1, j]: all tasks, after the last one (Lopez-Paz and Ranzato 2017)."""
    return float(_square(matrix)[-1].mean())


def pooled_accuracy(row: ArrayLike, samples: ArrayLike, task: int) -> float:
    """sum_{j<=t} n_j R[t, j] / sum_{j<=t} n_j, n_j test samples of task j: SLCA's and PILOT's Last-Acc after task t.

    Every image counts alike, where ACC counts every task alike; the same only where tasks are of one size.
    """
    return float(np.average(np.asarray(row)[: task + 1], weights=np.asarray(samples)[: task + 1]))


def average_incremental_accuracy(matrix: ArrayLike) -> float:
    """AIA = mean_i mean_{j<=i} R[i, j] (Rebuffi 2017). PILOT weights the inner mean by the tasks' sample counts."""
    return float(average_of_seen(_square(matrix)).mean())


def forgetting(matrix: ArrayLike) -> float:
    """Mean over j < T-1 of max_{j<=l<T-1} R[l, j] - R[T-1, j] (Chaudhry 2018).

    The last row is not part of the maximum, so forgetting is negative where the last task helped an earlier one
    (Mammoth and PILOT include it and never go below 0; Avalanche takes the first accuracy in place of the maximum).
    """
    return _mean(forgetting_of_each(_square(matrix)).tolist())


def forgetting_of_each(matrix: ArrayLike) -> NDArray[np.float64]:
    """What forgetting is the mean of, shape (n - 1,): task by task. n <= T rows do: so far."""
    rows = _checked(matrix)
    last = len(rows) - 1
    return np.array([rows[j:last, j].max() - rows[last, j] for j in range(last)])


def backward_transfer(matrix: ArrayLike) -> float:
    """BWT = mean over j < T-1 of R[T-1, j] - R[j, j] (Lopez-Paz and Ranzato 2017). Continuum averages all i > j."""
    rows = _square(matrix)
    last = len(rows) - 1
    return _mean([rows[last, j] - rows[j, j] for j in range(last)])


def forward_transfer(matrix: ArrayLike, baseline: ArrayLike) -> float:
    """FWT = mean over j >= 1 of R[j-1, j] - b_j (Lopez-Paz and Ranzato 2017); Continuum leaves b out.

    `baseline` is b, shape (T,): the accuracy of the untrained model on every task.
    """
    rows = _square(matrix)
    untrained = np.asarray(baseline, dtype=np.float64)
    if untrained.shape != (len(rows),):
        raise ValueError(f"baseline has shape {untrained.shape}, expected ({len(rows)},): one accuracy per task")
    _refuse_unfinished(untrained, "baseline")
    return _mean([rows[j - 1, j] - untrained[j] for j in range(1, len(rows))])


def average_error(matrix: ArrayLike) -> float:
    """Reconstruction, R[i, j] an error: mean_j R[T-1, j], as average_accuracy."""
    return average_accuracy(matrix)


def error_increase(matrix: ArrayLike) -> float:
    """Reconstruction: mean over j < T-1 of R[T-1, j] - min_{j<=l<T-1} R[l, j]: forgetting, for errors."""
    return forgetting(-np.asarray(matrix, dtype=np.float64))


def of_accuracies(matrix: ArrayLike, untrained: ArrayLike) -> dict[str, float]:
    """Every measure of a classifier under its name in summary.json. untrained: b of forward_transfer."""
    return {
        "average_accuracy": average_accuracy(matrix),
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix, untrained),
    }


def of_errors(matrix: ArrayLike) -> dict[str, float]:
    """Every measure of a reconstruction under its name in summary.json."""
    return {"average_error": average_error(matrix), "error_increase": error_increase(matrix)}


def average_of_seen(matrix: ArrayLike) -> NDArray[np.float64]:
    """mean_{j<=i} R[i, j] for every row i, shape (n,): the accuracy over the tasks seen so far. n <= T rows do."""
    rows = _checked(matrix)
    return np.array([row[: i + 1].mean() for i, row in enumerate(rows)])


def _square(matrix: ArrayLike) -> NDArray[np.float64]:
    rows = _checked(matrix)
    if rows.shape[0] != rows.shape[1]:
        raise ValueError(f"accuracy matrix has shape {rows.shape}, expected (T, T): one row per trained task")
    return rows


def _checked(matrix: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(matrix, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0 or rows.shape[0] > rows.shape[1]:
        raise ValueError(f"accuracy matrix has shape {rows.shape}, expected (n, T) with 1 <= n <= T")
    _refuse_unfinished(rows, "accuracy matrix")
    return rows


def _refuse_unfinished(values: NDArray[np.float64], name: str) -> None:
    missing = np.argwhere(~np.isfinite(values))
    if len(missing):
        raise ValueError(
            f"{name} has no finite value at {missing[0].tolist()}: every task is evaluated after every task"
        )


def _mean(terms: list[float]) -> float:
    return float(np.mean(terms)) if terms else 0.0
