"""Saved buffers and their resharding, with ranks as threads; real processes are in tests/parallel/test_reshard.py."""

import os
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from reprise.buffer import Field, RehearsalBuffer
from reprise.buffer.snapshot import MANIFEST, generation_of, read_manifest, read_shard

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))  # thread_comm is shared with the contract suite
from thread_comm import run_ranks

FIELDS = {"id": Field((), torch.int64), "u16": Field((3,), torch.uint16)}
REPLICATES = 300


def arguments(comm, policy, capacity=24, **changes):
    return {
        "fields": FIELDS,
        "capacity": capacity,
        "draws": (4,),
        "policy": policy,
        "implementation": "python",
        "dist": comm,
        **changes,
    }


def offer(buffer, ids):
    u16 = (ids.view(-1, 1) * 3 + torch.arange(3)).to(torch.uint16)
    buffer.submit(id=ids, u16=u16, y=ids % 4, task=ids // 9)


def stored(buffer):
    columns = buffer.state_dict()["engine"]["shard"]["columns"]
    ids = columns["id"]
    assert columns["u16"].tolist() == (ids.view(-1, 1) * 3 + torch.arange(3)).tolist()
    assert columns["y"].tolist() == (ids % 4).tolist()
    assert columns["task"].tolist() == (ids // 9).tolist()
    return ids.tolist()


def stages(folder, policy, sizes, per_stage, seed=0, batch=12, **changes):
    """Ids stored at the end of each stage, over all ranks, each stage on sizes[k] ranks; saved and restored between."""
    held = []
    for index, size in enumerate(sizes):

        def work(comm, index=index):
            setting = arguments(comm, policy, seed=seed, **changes)
            buffer = RehearsalBuffer.restore(folder, **setting) if index else RehearsalBuffer(**setting)
            restored = stored(buffer)
            for first in range(index * per_stage, (index + 1) * per_stage, batch):
                offer(buffer, torch.arange(first + comm.rank, first + batch, comm.size))
            if index + 1 < len(sizes):
                buffer.save(folder)
            result = (restored, stored(buffer), buffer.seen)
            buffer.close()
            return result

        results = run_ranks(size, work)
        if held:
            assert sorted(chain(*(r[0] for r in results))) == sorted(held[-1])
        assert sum(r[2] for r in results) == (index + 1) * per_stage
        held.append(list(chain(*(r[1] for r in results))))
        assert len(set(held[-1])) == len(held[-1])
    return held


@pytest.mark.parametrize("policy", ["class_balanced", "reservoir", "fifo"])
@pytest.mark.parametrize("sizes", [(2, 4), (4, 2), (4, 1), (3, 2), (1, 4, 3, 1)])
@pytest.mark.parametrize("per_stage", [12, 96])
def test_nothing_is_lost_or_doubled_at_another_number_of_ranks(tmp_path, policy, sizes, per_stage):
    """Also while the buffer is filling: the first stage of 12 fills half of it."""
    held = stages(tmp_path, policy, sizes, per_stage)
    for index, ids in enumerate(held):
        assert len(ids) == min(24, (index + 1) * per_stage)
        if policy == "fifo":
            newest = (index + 1) * per_stage
            assert sorted(ids) == list(range(max(0, newest - 24), newest))


@pytest.mark.parametrize("sizes", [(2, 4), (3, 2), (4, 2), (4, 1)])
def test_reservoir_stays_uniform_through_a_restore_at_another_number_of_ranks(request, tmp_path, sizes, monkeypatch):
    """anchors.md A.3-11: inclusion = capacity / seen over the stream as a whole."""
    if sizes[0] == 4 and not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of saves, none of which must outlive the test
    total = 96
    counts = np.zeros(total, dtype=np.int64)
    for seed in range(REPLICATES):
        # What is drawn has no part in what is stored, and costs the most: little of it, and none from other ranks.
        held = stages(tmp_path, "reservoir", sizes, total // 2, seed, batch=24, draws=(1,), scope="local")
        counts[held[-1]] += 1
    share = 24 / total
    statistic = ((counts - REPLICATES * share) ** 2).sum() / (REPLICATES * share * (1 - share)) * (total - 1) / total
    assert stats.chi2.sf(statistic, total - 1) > 0.01


def test_the_samples_of_a_class_are_dealt_evenly_to_the_new_ranks(tmp_path):
    def fill(comm):
        buffer = RehearsalBuffer(**arguments(comm, "class_balanced"))
        offer(buffer, torch.arange(comm.rank, 96, comm.size))
        buffer.save(tmp_path)

    run_ranks(2, fill)
    counts = run_ranks(
        3, lambda comm: RehearsalBuffer.restore(tmp_path, **arguments(comm, "class_balanced")).class_counts()
    )
    for label in range(4):
        assert [rank[label] for rank in counts] == [2, 2, 2]


def test_only_the_files_of_the_last_save_are_kept(tmp_path):
    def work(comm):
        buffer = RehearsalBuffer(**arguments(comm, "fifo"))
        for step in range(3):
            offer(buffer, torch.arange(step, step + 2))
            buffer.save(tmp_path)

    run_ranks(2, work)
    manifest = read_manifest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [MANIFEST, *(file["file"] for files in manifest["shards"] for file in files)]
    )
    assert [generation_of(file["file"]) for files in manifest["shards"] for file in files] == [3, 3]


def test_foreign_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "shard-old.copy.pt.bak").write_text("mine")
    run_ranks(1, lambda comm: RehearsalBuffer(**arguments(comm, "fifo")).save(tmp_path))
    assert {"notes.txt", "shard-old.copy.pt.bak"} <= {path.name for path in tmp_path.iterdir()}


def test_shards_hold_nothing_but_tensors_numbers_and_strings(tmp_path):
    run_ranks(2, lambda comm: RehearsalBuffer(**arguments(comm, "class_balanced")).save(tmp_path))

    def check(value):
        if isinstance(value, dict):
            for key, entry in value.items():
                assert isinstance(key, str)
                check(entry)
        elif isinstance(value, list | tuple):
            for entry in value:
                check(entry)
        else:
            assert isinstance(value, torch.Tensor | int | float | str | bool)

    manifest = read_manifest(tmp_path)
    for rank in range(2):
        check(read_shard(tmp_path, manifest, rank))


def test_a_bad_shard_of_one_rank_stops_every_rank(tmp_path):
    run_ranks(2, lambda comm: RehearsalBuffer(**arguments(comm, "fifo")).save(tmp_path))
    name = read_manifest(tmp_path)["shards"][1][0]["file"]
    (tmp_path / name).write_bytes(b"garbage")

    def restore(comm):
        with pytest.raises(ValueError, match=name):
            RehearsalBuffer.restore(tmp_path, **arguments(comm, "fifo"))
        return True

    assert run_ranks(2, restore) == [True, True]
    assert run_ranks(3, restore) == [True] * 3
