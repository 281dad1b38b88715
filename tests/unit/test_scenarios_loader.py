"""Loaders: whole batches, raw, in the sampler's order, with or without worker processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reprise.scenarios.loader import eval_loader, train_loader
from reprise.scenarios.sampler import EvalSampler, TrainSampler
from reprise.scenarios.task import ArrayDataset


def numbered(num: int) -> ArrayDataset:
    """Samples whose pixels say which label they have."""
    y = torch.arange(num)
    return ArrayDataset(y.to(torch.uint8).view(num, 1, 1, 1).expand(num, 2, 3, 3).contiguous(), y)


def sampler_of(rank: int = 0, world_size: int = 1) -> TrainSampler:
    return TrainSampler(50, 8, rank=rank, world_size=world_size, seed=3, task=0)


# A program of its own, because worker processes import what they run, and test modules cannot be imported.
DRAWS_OF_WORKERS = """
import random, sys, numpy, torch
from reprise.scenarios.loader import train_loader
from reprise.scenarios.sampler import TrainSampler
from reprise.scenarios.task import ArrayDataset

class Draws(ArrayDataset):
    def __getitems__(self, indices):
        draws = [torch.rand(()).item(), random.random(), numpy.random.rand()]
        return torch.tensor(draws, dtype=torch.float64), torch.tensor(indices)

if __name__ == "__main__":
    for rank in (0, 0, 1):
        sampler = TrainSampler(50, 8, rank=rank, world_size=2, seed=3, task=0)
        batches = list(train_loader(Draws(torch.zeros(50, 1), torch.zeros(50).long()), sampler, workers=1))
        as_sampled = [indices.tolist() for _, indices in batches] == list(sampler)
        print(as_sampled, *torch.cat([x for x, _ in batches]).tolist())
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_are_the_samplers_and_stay_raw(rank: int) -> None:
    sampler = sampler_of(rank, 2)
    expected = list(sampler)
    got = list(train_loader(numbered(50), sampler))
    assert [y.tolist() for _, y in got] == expected
    for x, y in got:
        assert x.dtype == torch.uint8
        assert x.shape == (len(y), 2, 3, 3)
        assert torch.equal(x[:, 1, 2, 2].long(), y)


def test_epochs_follow_set_epoch() -> None:
    sampler = sampler_of()
    loader = train_loader(numbered(50), sampler)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append([y.tolist() for _, y in loader])
    assert epochs[0] == epochs[2] != epochs[1]


def test_evaluation_reads_its_share_in_order() -> None:
    got = [y for _, y in eval_loader(numbered(50), EvalSampler(50, 8, rank=1, world_size=3))]
    assert torch.cat(got).tolist() == list(range(16, 33))
    assert list(eval_loader(numbered(1), EvalSampler(1, 8, rank=0, world_size=2))) == []


def test_loading_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(train_loader(numbered(50), sampler_of()))
    list(eval_loader(numbered(50), EvalSampler(50, 8, rank=0, world_size=1)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.timeout(180)
def test_workers_load_the_samplers_batches_and_draw_their_own_random_numbers_per_rank(tmp_path: Path) -> None:
    """rehearsal.md 6.1-12: the reference's ranks share one seed, so that their workers draw the same numbers."""
    program = tmp_path / "draws.py"
    program.write_text(DRAWS_OF_WORKERS)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["True"] * 3
    first, again, other = (line[1:] for line in lines)
    assert len(first) == 3 * 3  # the last step would be one sample per rank
    assert first == again
    assert not set(first) & set(other)


def test_workers_hand_over_whole_raw_batches_epoch_after_epoch() -> None:
    sampler = sampler_of()
    loader = train_loader(numbered(50), sampler, workers=2)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        got = list(loader)
        assert [y.tolist() for _, y in got] == list(sampler)
        assert all(torch.equal(x[:, 0, 0, 0].long(), y) for x, y in got)
        assert got[0][0].dtype == torch.uint8


class Rows:
    """Where batches are wanted: memory of the test, which notes what it was asked for."""

    def __init__(self) -> None:
        self.memory = {"x": torch.empty(8, 2, 3, 3, dtype=torch.uint8), "y": torch.empty(8, dtype=torch.int64)}
        self.asked: list[int] = []

    def __call__(self, b: int) -> dict[str, torch.Tensor]:
        self.asked.append(b)
        return {name: value[-b:] for name, value in self.memory.items()}


def test_batches_are_gathered_into_the_rows_that_are_wanted() -> None:
    sampler, rows = TrainSampler(53, 8, rank=0, world_size=1, seed=3, task=0), Rows()
    expected = list(sampler)
    loader = train_loader(numbered(53), sampler, rows=rows)
    for step, (x, y) in enumerate(loader):
        assert rows.asked == [len(indices) for indices in expected[: step + 1]], (
            "asked for when the batch is, not before"
        )
        assert x.data_ptr() == rows.memory["x"][-len(y) :].data_ptr()
        assert y.data_ptr() == rows.memory["y"][-len(y) :].data_ptr()
        assert y.tolist() == expected[step]
        assert torch.equal(x[:, 1, 2, 2].long(), y)
    assert sorted(set(rows.asked)) == [5, 8], "the last batch of the epoch is smaller"


def test_targets_are_gathered_into_rows_of_their_own() -> None:
    """A reconstruction stores its targets in a field, beside the labels: one class for all samples."""
    x, y = torch.rand(10, 1, 4, 4), torch.rand(10, 2, 4, 4)
    memory = {"x": torch.empty(5, 1, 4, 4), "target": torch.empty(5, 2, 4, 4), "y": torch.zeros(5, dtype=torch.int64)}
    sampler = TrainSampler(10, 5, rank=0, world_size=1, seed=3, task=0)
    for indices, (got_x, got_y) in zip(
        list(sampler), train_loader(ArrayDataset(x, y), sampler, rows=lambda b: memory), strict=True
    ):
        assert (got_x.data_ptr(), got_y.data_ptr()) == (memory["x"].data_ptr(), memory["target"].data_ptr())
        assert torch.equal(got_x, x[indices])
        assert torch.equal(got_y, y[indices])
        assert memory["y"].tolist() == [0] * 5


def test_batches_are_new_where_no_rows_are_wanted() -> None:
    sampler, asked = sampler_of(), []
    expected = list(sampler)
    got = list(train_loader(numbered(50), sampler, rows=lambda b: asked.append(b)))
    assert [y.tolist() for _, y in got] == expected
    assert asked == [len(indices) for indices in expected]
    assert len({x.data_ptr() for x, _ in got}) == len(got)


def test_workers_load_ahead_and_ask_for_no_rows() -> None:
    sampler, rows = sampler_of(), Rows()
    got = list(train_loader(numbered(50), sampler, workers=1, rows=rows))
    assert [y.tolist() for _, y in got] == list(sampler)
    assert rows.asked == []


def test_a_gpu_gets_pinned_batches_but_of_rows_that_are_wanted_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning would copy them to yet another place."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert train_loader(numbered(50), sampler_of()).pin_memory
    assert not train_loader(numbered(50), sampler_of(), rows=Rows()).pin_memory
