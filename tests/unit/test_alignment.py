"""Classifier alignment against SGD written out in float64, its losses against their formulas, its batches by count.

Two ranks are in tests/parallel/test_peft_statistics.py.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats as tests
from torch import nn

from reprise.cl_models.peft.alignment import (
    Alignment,
    align,
    logit_normalised,
    sce,
    slca_feature_scale,
    slca_mean_scale,
)
from reprise.cl_models.peft.statistics import ClassStatistics
from reprise.runtime import dist
from reprise.runtime.errors import UserError

D, C = 4, 6
CLASSES, TASK_OF = (4, 0, 3), {4: 0, 0: 1, 3: 1}


def statistics(centres, labels, ridge=1e-12):
    """One sample per class, so that its draws are that sample to within sqrt(ridge)."""
    found = ClassStatistics("variance", comm=dist.init(), seed=0, ridge=ridge)
    found.fit(centres, torch.tensor(labels), labels)
    return found


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(seed=1, d=D, c=C):
    torch.manual_seed(seed)
    return nn.Linear(d, c)


def run(head, stats, classes, settings, **options):
    return align(head, stats, classes, settings, comm=dist.init(), **{"generator": generator(), **options})


def inputs_of(head):
    """What the head gets in each step."""
    seen = []
    head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    return seen


# ---- the update


def by_hand(head, x, y, settings, loss):
    """Weights after SGD on the same batch at every step, and the loss of the last epoch's steps, in float64."""
    weights = [p.detach().double().requires_grad_() for p in (head.weight, head.bias)]
    velocity = [torch.zeros_like(w) for w in weights]
    for epoch in range(settings.epochs):
        lr, values = settings.lr * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2, []
        for _ in range(settings.steps_per_epoch):
            value = loss(x @ weights[0].T + weights[1], y)
            values.append(float(value.detach()))
            for w, v, g in zip(weights, velocity, torch.autograd.grad(value, weights), strict=True):
                v.copy_(settings.momentum * v + g + settings.weight_decay * w.detach())
                w.data -= lr * v
    return weights, float(np.mean(values))


def masked(z, y):
    return z[:, list(CLASSES)], torch.tensor([CLASSES.index(int(label)) for label in y])


def cross_entropy(z, y):
    return (z.exp().sum(1).log() - z[torch.arange(len(y)), y]).mean()


def symmetric(z, y, a, b):
    p = z.exp() / z.exp().sum(1, keepdim=True)
    q = torch.nn.functional.one_hot(y, z.shape[1]).double()
    return (-a * (q * p.log()).sum(1) - b * (p * q.clamp(min=1e-4).log()).sum(1)).mean()


def normalised(z, tau):
    norms = [z[:, [c for c in CLASSES if TASK_OF[c] == task]].square().sum(1).sqrt() for task in (0, 1)]
    return z / (sum(norms) / 2)[:, None] / tau


WAYS = {
    "plain": ({}, {}, lambda z, y: cross_entropy(*masked(z, y)), lambda x, task: x),
    "logit norm": (
        {"logit_norm": 0.4},
        {},
        lambda z, y: cross_entropy(*masked(normalised(z, 0.4), y)),
        lambda x, task: x,
    ),
    "mean scale": (
        {},
        {"mean_scale": slca_mean_scale(1)},
        lambda z, y: cross_entropy(*masked(z, y)),
        lambda x, task: x * (0.9 + 0.1 * (task + 1) / 2),
    ),
    "feature scale": (
        {},
        {"feature_scale": slca_feature_scale(1, 0.3)},
        lambda z, y: cross_entropy(*masked(z, y)),
        lambda x, task: x / (1 + 0.3 * (1 - task)),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_those_of_sgd_written_out(way):
    changes, options, loss, scaled = WAYS[way]
    settings = Alignment(epochs=4, lr=0.2, weight_decay=0.03, batch=6, steps_per_epoch=3, **changes)
    centres = 2 * torch.randn((3, D), generator=generator(5))
    x = torch.stack([scaled(row, TASK_OF[c]) for row, c in zip(centres.double(), CLASSES, strict=True)])
    head = linear()
    expected, last = by_hand(head, x, torch.tensor(CLASSES), settings, loss)
    before = head.weight.detach().clone()
    mean = run(head, statistics(centres, CLASSES), CLASSES, settings, task_of=TASK_OF, **options)
    for parameter, value in zip(head.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), value, rtol=1e-4, atol=2e-5)
    assert (head.weight - before).abs().max() > 0.1
    assert mean == pytest.approx(last, rel=1e-4)


def test_real_features_count_like_drawn_ones():
    settings = Alignment(epochs=3, lr=0.2, batch=3, steps_per_epoch=1)
    centres, real = torch.randn((3, D), generator=generator(5)), 3 * torch.randn((2, D), generator=generator(6))
    head = linear()
    x, y = torch.cat([centres, real]).double(), torch.tensor([*CLASSES, 3, 4])
    expected, _ = by_hand(head, x, y, settings, lambda z, y: cross_entropy(*masked(z, y)))
    run(head, statistics(centres, CLASSES), CLASSES, settings, extra=(real, y[3:]))
    torch.testing.assert_close(head.weight.double(), expected[0], rtol=1e-4, atol=2e-5)


def test_adamw_takes_the_steps_of_its_definition():
    settings = Alignment(epochs=3, optimizer="adamw", lr=0.1, weight_decay=0.2, batch=3, steps_per_epoch=1)
    centres = torch.randn((3, D), generator=generator(5))
    head = linear()
    x, y = centres.double(), torch.tensor(CLASSES)
    weights = [p.detach().double().requires_grad_() for p in (head.weight, head.bias)]
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for step in (1, 2, 3):
        lr = settings.lr * (1 + math.cos(math.pi * (step - 1) / 3)) / 2
        loss = cross_entropy(*masked(x @ weights[0].T + weights[1], y))
        for w, m, v, g in zip(weights, first, second, torch.autograd.grad(loss, weights), strict=True):
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.999 * v + 0.001 * g * g)
            w.data *= 1 - lr * settings.weight_decay
            w.data -= lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    run(head, statistics(centres, CLASSES), CLASSES, settings)
    torch.testing.assert_close(head.weight.double(), weights[0].detach(), rtol=1e-4, atol=2e-5)


def test_what_is_frozen_stays():
    head = nn.Sequential(nn.Linear(D, D), nn.Linear(D, C))
    head[0].requires_grad_(False)
    before = head[0].weight.clone(), head[1].weight.detach().clone()
    run(head, statistics(torch.randn(3, D), CLASSES), CLASSES, Alignment(epochs=1))
    assert torch.equal(head[0].weight, before[0])
    assert not torch.equal(head[1].weight, before[1])


def test_a_head_that_favours_new_classes_is_put_right():
    """Ten Gaussians; the head was trained on the last five only, after the first five."""
    random, classes, d = np.random.default_rng(0), list(range(10)), 16
    centres = 3 * random.normal(size=(10, d))
    mixing = random.normal(size=(10, d, d)) / d**0.5

    def samples(n):
        x = np.concatenate([centres[c] + random.normal(size=(n, d)) @ mixing[c] for c in classes])
        return torch.tensor(x, dtype=torch.float32), torch.arange(10).repeat_interleave(n)

    def accuracy(x, y):
        right = head(x).argmax(1) == y
        return float(right[y < 5].float().mean()), float(right[y >= 5].float().mean())

    x, y = samples(100)
    stats = ClassStatistics("covariance", comm=dist.init(), seed=0)
    stats.fit(x, y, classes)
    head = linear(d=d, c=10)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x[y >= 5]), y[y >= 5]).backward()
        optimizer.step()
    test = samples(200)
    old, new = accuracy(*test)
    assert old < 0.2 < 0.9 < new
    first = run(head, stats, classes, Alignment(epochs=1))
    last = run(head, stats, classes, Alignment(epochs=20), generator=generator(1))
    assert last < first
    assert min(accuracy(*test)) > 0.95


# ---- the batches


def coded(classes, d=D):
    """Statistics of classes whose features say which class they are: label + 1 in every dimension."""
    return statistics(torch.tensor(classes)[:, None].float().expand(-1, d) + 1, list(classes))


@pytest.mark.parametrize(("batch", "steps"), [(7, 4), (10, None), (3, 5), (1, 12)])
def test_every_batch_is_balanced_and_as_large_as_was_asked_for(batch, steps):
    classes, head = (0, 2, 3, 4, 5), linear()
    seen = inputs_of(head)
    run(head, coded(classes), classes, Alignment(epochs=2, batch=batch, steps_per_epoch=steps))
    assert len(seen) == 2 * (steps or len(classes))
    total = np.zeros(C, dtype=int)
    for x in seen:
        counts = np.bincount(x[:, 0].round().int() - 1, minlength=C)
        assert len(x) == batch == counts[list(classes)].sum()
        if batch % len(classes) == 0:
            assert set(counts[list(classes)]) == {batch // len(classes)}
        assert counts[list(classes)].max() - counts[list(classes)].min() <= 2
        total += counts
    assert total[list(classes)].max() - total[list(classes)].min() <= 2  # of two epochs


def test_no_class_is_favoured_where_a_batch_cannot_hold_them_all():
    classes, head = (0, 1, 3, 4, 5), linear()
    seen = inputs_of(head)
    run(head, coded(classes), classes, Alignment(epochs=300, batch=2, steps_per_epoch=1))
    label = (torch.stack(seen)[:, :, 0].round().int() - 1).numpy()
    assert (label[:, 0] != label[:, 1]).all()
    pairs = [np.sum((label[:, 0] == a) & (label[:, 1] == b)) for a in classes for b in classes if a != b]
    assert tests.chisquare(pairs).pvalue > 1e-3


def test_draws_are_new_in_every_epoch_and_follow_the_generator():
    def epochs(seed):
        head = linear()
        seen = inputs_of(head)
        stats = statistics(torch.zeros(2, D), [0, 1], ridge=1.0)
        run(head, stats, [0, 1], Alignment(epochs=2, batch=4, steps_per_epoch=1), generator=generator(seed))
        return seen

    one, two = epochs(0)
    assert not set(one[:, 0].tolist()) & set(two[:, 0].tolist())
    assert torch.equal(one, epochs(0)[0])
    assert not set(one[:, 0].tolist()) & set(epochs(1)[0][:, 0].tolist())


@pytest.mark.parametrize("num_real", [0, 3, 11])
def test_every_real_feature_is_used_once_per_epoch_beside_a_whole_batch(num_real):
    classes, head = (0, 1, 2), linear()
    seen = inputs_of(head)
    real = torch.arange(num_real)[:, None].float().expand(-1, D) + 100
    extra = real, torch.arange(num_real) % 3
    run(head, coded(classes), classes, Alignment(epochs=5, lr=1e-9, batch=6, steps_per_epoch=4), extra=extra)
    sizes = {len(x) for x in seen}
    assert sizes <= {6 + num_real // 4, 6 + -(-num_real // 4)}
    orders = []
    for epoch in range(5):
        x = torch.cat(seen[4 * epoch : 4 * epoch + 4])[:, 0]
        used = (x[x >= 100] - 100).int().tolist()
        assert sorted(used) == list(range(num_real))
        orders.append(tuple(used))
    assert len(set(orders)) > 1 or num_real == 0


# ---- formulas


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.1), (0.5, 0.5)])
def test_symmetric_cross_entropy_of_each_sample(a, b):
    z, y = torch.randn((20, 5), generator=generator(), dtype=torch.float64), torch.arange(20) % 5
    expected = [float(symmetric(z[i : i + 1], y[i : i + 1], a, b)) for i in range(20)]
    np.testing.assert_allclose(sce(z, y, a, b), expected, rtol=1e-12)
    z[:, 4] = -math.inf  # a class that is ruled out
    expected = a * -z[:, :4].log_softmax(1)[0, 0] + b * -math.log(1e-4) * (1 - z[0, :4].softmax(0)[0])
    torch.testing.assert_close(sce(z, y, a, b)[0], expected)


def test_logit_norm_is_the_mean_of_the_tasks_norms():
    z = torch.tensor([[3.0, 4.0, 0.0, 12.0, 5.0]])
    # Norms 5 (columns 0, 1) and 13 (columns 3, 4), mean 9.
    torch.testing.assert_close(logit_normalised(z, [torch.tensor([0, 1]), torch.tensor([3, 4])], 0.5), z / 9 / 0.5)


def test_scales_by_the_age_of_a_task():
    assert [slca_mean_scale(4)(task) for task in (0, 4)] == pytest.approx([0.92, 1.0])
    assert [slca_feature_scale(4)(task) for task in (0, 3, 4)] == pytest.approx([1 / 1.08, 1 / 1.02, 1.0])


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch": 0}, {"steps_per_epoch": 0}, {"lr": 0.0}, {"logit_norm": 0}]
)
def test_values_out_of_range_are_named(change):
    name, value = next(iter(change.items()))
    with pytest.raises(UserError, match=f"alignment: {name}={value}"):
        Alignment(**change)
