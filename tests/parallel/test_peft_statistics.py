"""Class statistics and classifier alignment on several ranks are those of one process with all rows (peft.md 6.11)."""

import functools
import itertools
import math
import tempfile
from pathlib import Path

import launch
import pytest
import torch
from peft_statistics_worker import CLASSES, METHODS, SETTINGS, statistics

from reprise.runtime import dist

WORKER = Path(__file__).with_name("peft_statistics_worker.py")
JOBS = (("horovodrun", 2), ("horovodrun", 4), ("torchrun", 2))


@functools.cache
def job(launcher, num_ranks):
    if launcher not in launch.available():
        pytest.skip(f"no {launcher} here")
    with tempfile.TemporaryDirectory() as name:
        env = {"REPRISE_TIMEOUT": "60", "OMP_NUM_THREADS": "1"}
        done = launch.run(launcher, num_ranks, [WORKER, name], env=env, timeout=120)
        assert done.returncode == 0, done.output[-4000:]
        return [torch.load(Path(name) / f"rank_{rank}.pt", weights_only=True) for rank in range(num_ranks)]


@functools.cache
def alone():
    return statistics(dist.init())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("launcher", "num_ranks"), JOBS)
def test_statistics_are_the_same_bits_on_every_rank_and_the_numbers_of_one_process(launcher, num_ranks, method):
    ranks = [rank["statistics"][method] for rank in job(launcher, num_ranks)]
    assert len({key.split(".")[0] for key in ranks[0]}) == len(CLASSES) + 1
    for name, value in ranks[0].items():
        assert all(torch.equal(rank[name], value) for rank in ranks), name
        torch.testing.assert_close(value, alone()[method][name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(("launcher", "num_ranks"), JOBS)
def test_ranks_draw_different_features_and_end_with_the_same_head(launcher, num_ranks):
    ranks = [rank["alignment"] for rank in job(launcher, num_ranks)]
    for rank in ranks:
        assert all(torch.equal(a, b) for a, b in zip(rank["after"], ranks[0]["after"], strict=True))
        assert not torch.equal(rank["after"][0], rank["before"][0])
        assert rank["loss"] == ranks[0]["loss"]
    for one, other in itertools.combinations(ranks, 2):
        drawn = [{*x[: SETTINGS.batch, 1].tolist()} for x in (one["inputs"][0], other["inputs"][0])]
        assert not drawn[0] & drawn[1]


@pytest.mark.parametrize(("launcher", "num_ranks"), JOBS)
def test_a_step_is_that_of_one_process_with_the_batches_of_all_ranks_joined(launcher, num_ranks):
    ranks = [rank["alignment"] for rank in job(launcher, num_ranks)]
    weights = [parameter.double().requires_grad_() for parameter in ranks[0]["before"]]
    velocity = [torch.zeros_like(weight) for weight in weights]
    losses = []
    for step in range(SETTINGS.epochs * SETTINGS.steps_per_epoch):
        x = torch.cat([rank["inputs"][step] for rank in ranks]).double()
        assert len(x) >= SETTINGS.batch * num_ranks + (num_ranks > 1)  # real features too, of the later ranks
        y = x[:, 0].round().long() - 1
        z = (x @ weights[0].T + weights[1])[:, : len(CLASSES)]
        loss = (z.exp().sum(1).log() - z[torch.arange(len(y)), y]).mean()
        losses.append((float(loss.detach()), len(x)))
        lr = SETTINGS.lr * (1 + math.cos(math.pi * (step // SETTINGS.steps_per_epoch) / SETTINGS.epochs)) / 2
        for w, v, g in zip(weights, velocity, torch.autograd.grad(loss, weights), strict=True):
            v.copy_(SETTINGS.momentum * v + g + SETTINGS.weight_decay * w.detach())
            w.data -= lr * v
    for parameter, weight in zip(ranks[0]["after"], weights, strict=True):
        torch.testing.assert_close(parameter.double(), weight.detach(), rtol=1e-4, atol=1e-5)
    last = losses[-SETTINGS.steps_per_epoch :]
    mean = sum(loss * rows for loss, rows in last) / sum(rows for _, rows in last)
    assert ranks[0]["loss"] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize(("launcher", "num_ranks"), JOBS)
def test_a_mistake_of_one_rank_is_raised_on_all(launcher, num_ranks):
    for rank in job(launcher, num_ranks):
        assert "features of class 2 are not finite" in rank["refused"]["not finite"]
        assert f"of rank {num_ranks - 1} differ from rank 0's" in rank["refused"]["another expert"]
