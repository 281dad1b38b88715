"""Every strategy on several ranks is what one process does with the batches of all ranks joined.

The one process is computed here by plain torch, from the rows that each rank says it trained on.
"""

import functools
import tempfile
from itertools import pairwise
from pathlib import Path

import launch
import pytest
import torch
from strategy_worker import LR, OPTIONS, OVERFLOW_AT, REPRESENTATIVES, STEPS, strategies, whole_networks

WORKER = Path(__file__).with_name("strategy_worker.py")
JOBS = (("horovodrun", 2), ("torchrun", 2), ("torchrun", 4))
# What a launcher's one job does besides; Horovod's gloo has no Adasum.
MORE_WAYS = {"horovodrun": ("predivided", "fp16", "passes", "overflow", "inserted")}


def ranks(launcher, num_ranks, way="plain"):
    return [rank[way] for rank in job(launcher, num_ranks, ("plain", *MORE_WAYS.get(launcher, ())))]


@functools.cache
def job(launcher, num_ranks, ways):
    with tempfile.TemporaryDirectory() as name:
        env = {"REPRISE_TIMEOUT": "60", "OMP_NUM_THREADS": "1"}
        done = launch.run(launcher, num_ranks, [WORKER, name, *ways], env=env, timeout=200)
        assert done.returncode == 0, done.output[-4000:]
        return [torch.load(Path(name) / f"rank_{rank}.pt", weights_only=True) for rank in range(num_ranks)]


def outputs(weights, x):
    return torch.tanh(x @ weights["0.weight"].T + weights["0.bias"]) @ weights["2.weight"].T + weights["2.bias"]


def cross_entropy(weights, rows):
    z = outputs(weights, rows["x"])
    return (z.exp().sum(1).log() - z[torch.arange(len(z)), rows["y"]]).mean() if len(z) else torch.zeros(())


def squared_error(weights, rows):
    error = (outputs(weights, rows["x"]) - rows["logits"]) ** 2
    return error.mean() if len(error) else torch.zeros(())


def joined(parts):
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def gradient(loss, weights):
    if not loss.requires_grad:
        return [torch.zeros_like(value) for value in weights.values()]
    return list(torch.autograd.grad(loss, list(weights.values())))


def er(weights, new, drawn):
    rows = joined([new, {name: drawn[0][name] for name in ("x", "y")}])
    return gradient(cross_entropy(weights, rows), weights)


def agem(weights, new, drawn):
    g, r = gradient(cross_entropy(weights, new), weights), gradient(cross_entropy(weights, drawn[0]), weights)
    dot = sum(float((a * b).sum()) for a, b in zip(g, r, strict=True))
    square = sum(float((b * b).sum()) for b in r)
    return [a - dot / square * b for a, b in zip(g, r, strict=True)] if dot < 0 else g


def der(weights, new, drawn):
    loss = cross_entropy(weights, new) + OPTIONS["alpha"] * squared_error(weights, drawn[0])
    return gradient(loss, weights)


def derpp(weights, new, drawn):
    loss = cross_entropy(weights, new) + OPTIONS["alpha"] * squared_error(weights, drawn[0])
    return gradient(loss + OPTIONS["beta"] * cross_entropy(weights, drawn[1]), weights)


def vanilla(weights, new, drawn):
    return gradient(cross_entropy(weights, new), weights)


FORMULAS = {"Vanilla": vanilla, "Er": er, "Agem": agem, "Der": der, "Derpp": derpp}


def test_no_strategy_is_left_out():
    assert set(FORMULAS) == set(whole_networks())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.parametrize(("launcher", "num_ranks"), JOBS)
def test_several_ranks_train_what_one_process_trains_on_the_joined_batches(launcher, num_ranks, name):
    if launcher not in launch.available():
        pytest.skip(f"{launcher} (or Horovod) is not installed")
    found = [rank[name] for rank in ranks(launcher, num_ranks)]
    trains_as_one_process(name, found)
    if name != "Vanilla":
        owners = torch.cat([draw["rank"] for rank in found for draws in rank["drawn"] for draw in draws])
        assert len(owners.unique()) == num_ranks, "every rank's samples were drawn"
    if name == "Agem":
        assert 0 < found[0]["projected"] < STEPS, "both branches were taken"


def trains_as_one_process(name, found):
    """Every step of the ranks is the formula's on their joined rows."""
    weights = found[0]["before"]
    for step in range(STEPS):
        weights = {key: value.clone().requires_grad_() for key, value in weights.items()}
        new = joined([rank["new"][step] for rank in found])
        drawn = [rank["drawn"][step] if rank["drawn"] else [] for rank in found]
        draws = [joined(parts) for parts in zip(*drawn, strict=True)]
        sizes = [[len(draw["y"]) for draw in own] for own in drawn]
        assert sizes.count(sizes[0]) == len(found), "the mean over ranks is that over rows only where ranks draw alike"
        change = FORMULAS[name](weights, new, draws)
        weights = {key: (value - LR * g).detach() for (key, value), g in zip(weights.items(), change, strict=True)}
    for rank in found:
        for key, value in weights.items():
            torch.testing.assert_close(rank["after"][key], value, rtol=0, atol=1e-5)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(set(FORMULAS) - {"Vanilla"}))
def test_what_enters_the_memory_when_a_task_ends_is_replayed_by_all_ranks_from_then_on(name):
    _, found = with_horovod("inserted")
    found = [rank[name] for rank in found]
    trains_as_one_process(name, found)
    half = STEPS // 2
    owners = []
    for rank in found:
        assert all(len(draw["y"]) == 0 for draws in rank["drawn"][:half] for draw in draws)
        for draws in rank["drawn"][half:]:
            for draw in draws:
                assert len(draw["y"]) == REPRESENTATIVES
                assert draw["task"].unique().tolist() == [0]
                owners.append(draw["rank"])
                if "logits" in draw:
                    expected = outputs(rank["steps"][half - 1], draw["x"])
                    torch.testing.assert_close(draw["logits"], expected, rtol=0, atol=1e-5)
    assert len(torch.cat(owners).unique()) == len(found)


def with_horovod(way):
    """What both ranks of the job under Horovod found, plainly and this way."""
    if "horovodrun" not in launch.available():
        pytest.skip("Horovod is not installed")
    return ranks("horovodrun", 2), ranks("horovodrun", 2, way)


def furthest(found, other, name):
    """The largest difference between the weights after any step, over both ranks."""
    return max(
        float((one[key] - two[key]).abs().max())
        for rank, other_rank in zip(found, other, strict=True)
        for one, two in zip(rank[name]["steps"], other_rank[name]["steps"], strict=True)
        for key in one
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.parametrize("way", ["predivided", "passes"])
def test_dividing_early_or_in_two_passes_changes_nothing(way, name):
    """rehearsal.md 6.1-17: the reference takes one step per pass."""
    plain, other = with_horovod(way)
    assert furthest(plain, other, name) < 1e-5
    assert furthest(plain, [{name: {"steps": [rank[name]["before"]] * STEPS}} for rank in other], name) > 0.1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_gradients_of_16_bits_are_as_good_as_their_precision(name):
    plain, half = with_horovod("fp16")
    assert 0 < furthest(plain, half, name) < 2e-3
    for one, two in zip(half[0][name]["steps"], half[1][name]["steps"], strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one), "every rank takes the same step"


@pytest.mark.timeout(300)
def test_an_overflow_on_one_rank_skips_the_step_on_every_rank():
    """rehearsal.md 3: averaged, then unscaled, then checked; a rank that checks its own gradients leaves the others."""
    _, found = with_horovod("overflow")
    for rank in found:
        steps = rank["Vanilla"]["steps"]
        for before, after in pairwise(range(STEPS)):
            same = all(torch.equal(steps[before][key], steps[after][key]) for key in steps[before])
            assert same == (after == OVERFLOW_AT), after
    assert furthest(found[:1], found[1:], "Vanilla") == 0


@pytest.mark.timeout(300)
def test_adasum_trains_every_strategy_that_needs_no_averaged_gradients():
    """Over MPI alone; that Agem is refused is in integration/test_bad_inputs.py."""
    if "mpirun" not in launch.available():
        pytest.skip("Horovod with MPI is not installed")
    found = [rank["adasum"] for rank in job("mpirun", 2, ("adasum",))]
    assert set(found[0]) == set(strategies("adasum")) == set(FORMULAS) - {"Agem"}
    for name in found[0]:
        assert furthest(found[:1], found[1:], name) == 0, "every rank takes the same step"
        losses = torch.tensor([rank[name]["losses"] for rank in found]).mean(0)
        assert losses[STEPS // 2 - 4 : STEPS // 2].mean() < losses[:4].mean()
