"""Router: from the logits of a first stage to the experts that see a sample, and from their logits to one answer.

An expert is the module of one task. HiDe-PET takes the task of the most probable class; L2C and the unused options of
HiDe-PET weigh several; HRM-PET looks at the answer and tries again. Experts are behind a callable, Experts.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Experts = Callable[[Tensor, Tensor], Tensor]
"""(expert of each row (m,) int64, rows (m,) int64 of the batch) -> logits (m, C). Experts may be mixed in one call."""

Tasks = Sequence[Sequence[int]]
"""The classes of each task seen; expert t is task t's."""


def predicted_task(logits: Tensor, tasks: Tasks) -> Tensor:
    """The task (n,) int64 of the most probable class seen, from logits (n, C): HiDe-PET's task-identity inference."""
    columns, owner = _columns(tasks, logits.device)
    return owner[logits[:, columns].argmax(dim=1)]


def task_weights(
    logits: Tensor,
    tasks: Tasks,
    *,
    by: Literal["class", "task"] = "class",
    k: int | None = None,
    p: float | None = None,
    temperature: float = 1.0,
    renormalise: bool = True,
) -> Tensor:
    """How much each task's expert counts for each sample: logits (n, C) to weights (n, T), 0 where it is not needed.

    With q = softmax(logits / temperature) over the classes seen: by "class" the k most probable classes are kept, each
    with weight q for its task, so that a task with several of them gets their sum; by "task" the k tasks with the
    largest sums of q. k: None for all, as is a k beyond what there is. p: of those, what has less weight than p is
    dropped, but never the best one. renormalise: weights of a sample add up to 1. k=1 by class is predicted_task().
    HiDe-PET: by class, not renormalised, combined as logits.
    """
    assert by in ("class", "task"), by
    assert k is None or k >= 1, k
    columns, owner = _columns(tasks, logits.device)
    seen = logits[:, columns].to(torch.promote_types(logits.dtype, torch.float32))
    q = (seen / temperature).softmax(dim=1)
    if by == "class":
        # Ranked by logits: two that differ may have the same q.
        weights = _task_sums(torch.where(_kept(seen, q, k, p), q, 0), owner, len(tasks))
    else:
        sums = _task_sums(q, owner, len(tasks))
        weights = torch.where(_kept(sums, sums, k, p), sums, 0)
    return weights / weights.sum(dim=1, keepdim=True) if renormalise else weights


def aggregate(weights: Tensor, outputs: Experts, *, combine: Literal["prob", "logit"] = "prob") -> Tensor:
    """One answer (n, C) from the experts that have a weight (n, T) above 0, each asked once per sample.

    "prob": log sum_t w_t softmax(z_t). "logit": sum_t w_t z_t. Experts are asked for n rows at a time, as many as the
    batch has, however many experts a sample has; rows of one expert follow each other.
    """
    assert combine in ("prob", "logit"), combine
    experts, rows = weights.T.nonzero(as_tuple=True)
    size = max(len(weights), 1)
    parts = zip(experts.split(size), rows.split(size), strict=True)
    z = torch.cat([outputs(ids, part).to(weights.dtype) for ids, part in parts])
    weight, shape = weights[rows, experts, None], (len(weights), z.shape[1])
    if combine == "logit":
        return z.new_zeros(shape).index_add_(0, rows, weight * z)
    # In logarithms: of a class that nobody has seen yet, the probability itself is 0 in any floating point.
    answers, total = weight.log() + z.log_softmax(dim=1), z.new_full(shape, -torch.inf)
    nth = (weights > 0).cumsum(dim=1)[rows, experts]  # of its sample's experts
    for one in nth.unique():
        chosen = nth == one
        total[rows[chosen]] = torch.logaddexp(total[rows[chosen]], answers[chosen])
    return total


def tii_plus_tap(stage1_logits: Tensor, stage2_logits: Tensor) -> Tensor:
    """The larger logit of the two stages, class by class (HiDe-PET's option tii+tap)."""
    return torch.maximum(stage1_logits, stage2_logits)


def direct_rematch(experts: Tensor, logits: Tensor, outputs: Experts, tasks: Tasks) -> tuple[Tensor, Tensor]:
    """HRM-PET's direct re-match: a sample whose predicted class is another task's is shown to that task's expert.

    experts (n,) and what they answered, logits (n, C), to the experts (n,) and logits that hold afterwards.
    """
    predicted = predicted_task(logits, tasks)
    rows = (predicted != experts).nonzero().flatten()
    logits = logits.clone()
    if len(rows):
        logits[rows] = outputs(predicted[rows], rows).to(logits.dtype)
    return predicted, logits


def confidence_rematch(
    experts: Tensor,
    logits: Tensor,
    outputs: Experts,
    candidates: Tensor,
    tasks: Tasks,
    *,
    threshold: float = -10.0,
) -> tuple[Tensor, Tensor]:
    """HRM-PET's confidence re-match: samples of a low generalised_entropy() try other experts; the surest answer stays.

    experts (n,) and their logits (n, C) to those that hold afterwards. candidates: (n, k) int64, the experts to try
    below the threshold, as the two tasks of most weight. An expert that has answered already is not asked again.
    """
    columns, _ = _columns(tasks, logits.device)
    experts, logits, asked = experts.clone(), logits.clone(), experts[:, None]
    score = generalised_entropy(logits[:, columns])
    unsure = score < threshold
    for candidate in candidates.T:
        rows = (unsure & (candidate[:, None] != asked).all(dim=1)).nonzero().flatten()
        asked = torch.cat([asked, candidate[:, None]], dim=1)
        if len(rows) == 0:
            continue
        answers = outputs(candidate[rows], rows).to(logits.dtype)
        scores = generalised_entropy(answers[:, columns])
        surer = scores > score[rows]
        better = rows[surer]
        experts[better], logits[better], score[better] = candidate[better], answers[surer], scores[surer]
    return experts, logits


def generalised_entropy(logits: Tensor, gamma: float = 0.1, most: int = 100) -> Tensor:
    """Confidence (n,): -sum of p^gamma (1 - p)^gamma over the `most` most probable classes (GEN, Liu et al. 2023).

    0 where one class has all probability. Its scale grows with the number of classes, hence so must a threshold.
    """
    p = logits.softmax(dim=1)
    p = p.topk(min(most, p.shape[1]), dim=1).values
    return -(p * (1 - p)).pow(gamma).sum(dim=1)


def _columns(tasks: Tasks, device: torch.device) -> tuple[Tensor, Tensor]:
    """The classes seen, and the task of each."""
    classes = [label for classes in tasks for label in classes]
    owner = [task for task, classes in enumerate(tasks) for _ in classes]
    return torch.tensor(classes, device=device), torch.tensor(owner, device=device)


def _task_sums(values: Tensor, owner: Tensor, num_tasks: int) -> Tensor:
    return values.new_zeros((len(values), num_tasks)).index_add_(1, owner, values)


def _kept(ranking: Tensor, weights: Tensor, k: int | None, p: float | None) -> Tensor:
    """(n, m) bool: the k highest ranking of each row, those below weight p left out except the first."""
    order = ranking.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(ranking, dtype=torch.bool).scatter_(1, order[:, :k], True)
    if p is not None:
        kept = (kept & (weights >= p)).scatter_(1, order[:, :1], True)
    return kept
