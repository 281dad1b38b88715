"""The router against its formulas, written out with loops in float64 (peft.md 1.4, 2.3, 2.4)."""

import math

import numpy as np
import pytest
import torch

from reprise.cl_models.peft import router

TASKS = ((3, 0), (5, 1, 4), (8,))
UNSEEN = [2, 6, 7]
N, C, T = 50, 9, len(TASKS)
OF = {label: task for task, classes in enumerate(TASKS) for label in classes}


def logits(seed=0, scale=2.0, n=N):
    z = torch.tensor(np.random.default_rng(seed).normal(scale=scale, size=(n, C)))
    z[:, UNSEEN] += 20  # untrained rows may say anything
    return z


def softmax(row):
    e = np.exp(np.asarray(row) - np.max(row))
    return e / e.sum()


def by_hand(z, *, by, k, p=None, temperature=1.0, renormalise=True):
    weights = np.zeros((len(z), T))
    for i, row in enumerate(z.numpy()):
        q = dict(zip(OF, softmax([row[label] / temperature for label in OF]), strict=True))
        if by == "task":
            q = {task: sum(q[label] for label in classes) for task, classes in enumerate(TASKS)}
        best = sorted(q, key=lambda choice: -q[choice])[:k]
        for choice in best:
            if p is None or q[choice] >= p or choice == best[0]:
                weights[i, OF[choice] if by == "class" else choice] += q[choice]
    return weights / weights.sum(1, keepdims=True) if renormalise else weights


class Table:
    """Experts whose answers are given, (T, n, C), and who was asked what."""

    def __init__(self, answers):
        self.answers = answers
        self.calls = []

    def __call__(self, experts, rows):
        assert experts.dtype == rows.dtype == torch.int64
        self.calls.append(list(zip(experts.tolist(), rows.tolist(), strict=True)))
        return self.answers[experts, rows]

    @property
    def asked(self):
        return [pair for call in self.calls for pair in call]


def table(n=N, seed=9):
    return Table(torch.tensor(np.random.default_rng(seed).normal(scale=2, size=(T, n, C))))


# ---- weights


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("p", [None, 0.15, 0.4])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("by", ["class", "task"])
def test_weights_are_those_of_the_formula(by, k, p, renormalise):
    options = {"by": by, "k": k, "p": p, "temperature": 1.7, "renormalise": renormalise}
    weights = router.task_weights(logits(), TASKS, **options)
    assert weights.dtype == torch.float64
    np.testing.assert_allclose(weights, by_hand(logits(), **options), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("by", ["class", "task"])
def test_k_beyond_what_there_is_takes_all(by):
    weights = router.task_weights(logits(), TASKS, by=by, k=100)
    assert torch.equal(weights, router.task_weights(logits(), TASKS, by=by))
    assert (weights > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_by_class_is_the_task_of_the_most_probable_class(dtype):
    z = logits(n=2000).to(dtype)
    seen = list(OF)
    hard = torch.tensor([OF[seen[i]] for i in z[:, seen].argmax(1).tolist()])
    assert torch.equal(router.predicted_task(z, TASKS), hard)
    weights = router.task_weights(z, TASKS, by="class", k=1)
    assert torch.equal(weights, torch.nn.functional.one_hot(hard, T).to(weights.dtype))
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_logits_that_differ_less_than_their_probabilities_can_show_are_still_ranked():
    z = torch.full((1, C), -30.0)
    z[0, 3], z[0, 1] = 2**-10, 2**-10 + 2**-33
    assert z[0, 3] < z[0, 1]
    assert len(set(z[:, [3, 1]].softmax(1)[0].tolist())) == 1
    assert router.predicted_task(z, TASKS).tolist() == [1]
    assert router.task_weights(z, TASKS, k=1).tolist() == [[0.0, 1.0, 0.0]]


def test_the_task_of_the_best_class_need_not_be_the_best_task():
    z = torch.full((1, C), -1e9)
    z[0, [3, 5, 1, 4]] = torch.tensor([0.35, 0.25, 0.2, 0.2]).log()
    assert router.task_weights(z, TASKS, by="class", k=1).tolist() == [[1.0, 0.0, 0.0]]
    assert router.task_weights(z, TASKS, by="task", k=1).tolist() == [[0.0, 1.0, 0.0]]
    # Two of the best three classes are task 1's: their probabilities add up.
    three = router.task_weights(z, TASKS, by="class", k=3, renormalise=False)
    torch.testing.assert_close(three, torch.tensor([[0.35, 0.45, 0.0]]))


def test_a_threshold_above_all_leaves_the_best_one():
    weights = router.task_weights(logits(), TASKS, by="class", k=5, p=1.1)
    assert torch.equal(weights, router.task_weights(logits(), TASKS, by="class", k=1))


# ---- aggregation


def test_one_expert_each_is_hard_routing():
    experts = table()
    weights = router.task_weights(logits(), TASKS, k=1)
    answer = router.aggregate(weights, experts, combine="logit")
    assert torch.equal(answer, experts.answers[router.predicted_task(logits(), TASKS), torch.arange(N)])
    assert len(experts.asked) == N


@pytest.mark.parametrize("combine", ["prob", "logit"])
def test_uniform_weights_are_the_mean_of_the_experts(combine):
    experts = table()
    answer = router.aggregate(torch.full((N, T), 1 / T, dtype=torch.float64), experts, combine=combine).numpy()
    z = experts.answers.numpy()
    expected = z.mean(0) if combine == "logit" else np.log(np.apply_along_axis(softmax, 2, z).mean(0))
    np.testing.assert_allclose(answer, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("combine", ["prob", "logit"])
def test_answers_are_the_weighted_sums_of_those_asked(combine):
    experts = table()
    weights = router.task_weights(logits(), TASKS, by="class", k=2, renormalise=False)
    answer = router.aggregate(weights, experts, combine=combine)
    for i in range(N):
        parts = [(float(weights[i, t]), experts.answers[t, i].numpy()) for t in range(T) if weights[i, t] > 0]
        summed = sum(w * (z if combine == "logit" else softmax(z)) for w, z in parts)
        expected = summed if combine == "logit" else np.log(summed)
        np.testing.assert_allclose(answer[i], expected, rtol=1e-12, atol=1e-12)
    needed = [(t, i) for t in range(T) for i in range(N) if weights[i, t] > 0]
    assert N < len(needed) < N * T
    assert experts.asked == needed  # each once, those of one expert together
    assert max(map(len, experts.calls)) <= N


def test_classes_that_an_expert_rules_out_stay_ruled_out():
    experts = table()
    experts.answers[:, :, UNSEEN] = -math.inf
    for combine in ("prob", "logit"):
        answer = router.aggregate(router.task_weights(logits(), TASKS), experts, combine=combine)
        assert (answer[:, UNSEEN] == -math.inf).all()
        assert answer[:, list(OF)].isfinite().all()


def test_a_batch_of_no_samples_has_no_answers():
    weights = router.task_weights(logits(n=0), TASKS, k=2)
    assert router.aggregate(weights, table(n=0)).shape == (0, C)


def test_tii_plus_tap_is_the_larger_logit():
    one, two = logits(1), logits(2)
    assert router.tii_plus_tap(one, two).tolist() == np.maximum(one.numpy(), two.numpy()).tolist()


# ---- re-matching


def entropy(row, gamma=0.1, most=100):
    p = np.sort(softmax(row))[::-1][:most]
    return -sum((q * (1 - q)) ** gamma for q in p)


def test_generalised_entropy_is_that_of_the_formula():
    z = logits(3)
    np.testing.assert_allclose(router.generalised_entropy(z), [entropy(row) for row in z.numpy()], rtol=1e-10)
    few = router.generalised_entropy(z, gamma=0.3, most=3)
    np.testing.assert_allclose(few, [entropy(row, 0.3, 3) for row in z.numpy()], rtol=1e-10)
    certain = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert router.generalised_entropy(certain).tolist() == [0.0]


def test_direct_rematch_asks_the_task_of_the_predicted_class_where_it_is_another():
    experts, first = table(), torch.arange(N) % T
    z = experts.answers[first, torch.arange(N)]
    predicted = router.predicted_task(z, TASKS)
    moved = [(int(predicted[i]), i) for i in range(N) if predicted[i] != first[i]]
    assert 0 < len(moved) < N
    after, answers = router.direct_rematch(first, z, experts, TASKS)
    assert experts.asked == moved
    assert torch.equal(after, predicted)
    assert torch.equal(answers, experts.answers[predicted, torch.arange(N)])
    assert torch.equal(z, experts.answers[first, torch.arange(N)])  # the arguments are left alone


def test_confidence_rematch_keeps_the_surest_of_the_candidates_where_unsure():
    experts, first = table(), torch.arange(N) % T
    z = experts.answers[first, torch.arange(N)]
    seen = list(OF)
    sure = np.array([[entropy(experts.answers[t, i, seen].numpy()) for t in range(T)] for i in range(N)])
    threshold = float(np.median(sure))
    candidates = torch.stack([first, (first + 1) % T], dim=1)
    after, answers = router.confidence_rematch(first, z, experts, candidates, TASKS, threshold=threshold)
    tried = 0
    for i in range(N):
        unsure = sure[i, first[i]] < threshold
        other = (int(first[i]) + 1) % T
        expected = other if unsure and sure[i, other] > sure[i, first[i]] else int(first[i])
        tried += unsure
        assert int(after[i]) == expected
        assert torch.equal(answers[i], experts.answers[expected, i])
    assert 0 < tried < N
    assert len(experts.asked) == tried  # of two candidates one has answered already
    assert 0 < int((after != first).sum()) < tried


def test_of_more_candidates_the_surest_stays():
    experts, first = table(), torch.zeros(N, dtype=torch.int64)
    candidates = torch.arange(T).flip(0).repeat(N, 1)
    after, _ = router.confidence_rematch(first, experts.answers[0], experts, candidates, TASKS, threshold=math.inf)
    sure = [[entropy(experts.answers[t, i, list(OF)].numpy()) for t in range(T)] for i in range(N)]
    assert after.tolist() == np.argmax(sure, axis=1).tolist()
    assert sorted(experts.asked) == sorted((t, i) for t in (1, 2) for i in range(N))


def test_nobody_is_asked_again_where_all_is_sure():
    experts, first = table(), torch.zeros(N, dtype=torch.int64)
    z = torch.full((N, C), -20.0, dtype=torch.float64)
    z[:, 3] = 20.0
    candidates = torch.ones((N, 1), dtype=torch.int64)
    assert torch.equal(router.direct_rematch(first, z, experts, TASKS)[1], z)
    assert torch.equal(router.confidence_rematch(first, z, experts, candidates, TASKS)[0], first)
    assert experts.calls == []


def test_a_class_that_nobody_has_seen_has_a_finite_logit():
    """Its probability is 0 in any floating point; its loss is a number all the same, and the order of logits stays."""
    z = torch.tensor([[[2.0, 1.0, -1e4, -2e4]], [[1.0, 3.0, -1e4, -3e4]]])
    weights = torch.tensor([[0.25, 0.75]])
    answer = router.aggregate(weights, lambda ids, rows: z[ids, rows])
    assert answer.isfinite().all()
    assert answer.argsort(dim=1, descending=True).tolist() == [[1, 0, 2, 3]]
    expected = (0.25 * z[0].double().softmax(1) + 0.75 * z[1].double().softmax(1)).log()
    torch.testing.assert_close(answer[:, :2].double(), expected[:, :2])
