"""Saves that hold only what has changed: put together they are the buffer, whatever happened in between."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from reprise.buffer import Field, RehearsalBuffer, increments, snapshot
from reprise.buffer.increments import Increments
from reprise.runtime import dist

FIELDS = {"id": Field((), torch.int64), "x": Field((7,), torch.bfloat16)}
CAPACITY = 60


@pytest.fixture(params=["standard", "flyweight", "python"])
def implementation(request):
    return request.param


@pytest.fixture
def arguments(implementation):
    common = {"fields": FIELDS, "capacity": CAPACITY, "draws": (4, 3), "policy": "reservoir", "deterministic": True}
    return {**common, "implementation": implementation, "dist": dist.init()}


def step(buffer, first, rows):
    ids = torch.arange(first, first + rows)
    buffer.wait()
    buffer.submit(id=ids, x=(ids % 200).to(torch.bfloat16).view(-1, 1).expand(-1, 7), y=ids % 3, task=ids // 50)


def save(saves: Increments, folder: Path):
    capture = saves.capture()
    files = saves.write(capture, folder)
    snapshot.write_manifest(folder, capture.state["schema"], [files])
    return capture, files


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_every_save_of_a_chain_restores_the_buffer_of_its_moment(arguments, tmp_path):
    """While the shard fills and afterwards; each folder alone, when all the others are gone."""
    moments, rows = [], []
    with RehearsalBuffer(**arguments) as buffer:
        saves = Increments(buffer)
        for index in range(30):
            step(buffer, 10 * index, 10)
            folder = tmp_path / f"{index}"
            capture, files = save(saves, folder)
            saves.keep(capture, folder, files)
            moments.append(buffer.state_dict())
            rows.append([file.rows for file in files])
    assert any(len(of_save) > 3 for of_save in rows)
    for index, expected in enumerate(moments):
        alone = tmp_path / "alone"
        shutil.move(tmp_path / f"{index}", alone)
        with RehearsalBuffer.restore(alone, **arguments) as restored:
            assert same(restored.state_dict(), expected)
        shutil.rmtree(alone)


def test_a_save_holds_the_samples_that_were_written_since_and_no_others(arguments, tmp_path):
    with RehearsalBuffer(**arguments) as buffer:
        saves = Increments(buffer)
        for index in range(12):
            step(buffer, 10 * index, 10)
        capture, files = save(saves, tmp_path / "whole")
        saves.keep(capture, tmp_path / "whole", files)
        before = buffer.state_dict()["engine"]["shard"]["columns"]["id"]
        step(buffer, 120, 10)
        after = buffer.state_dict()["engine"]["shard"]["columns"]["id"]
        changed = (before != after).nonzero().flatten()
        capture = saves.capture()
        assert 0 < len(changed) < 10
        assert capture.state["slots"].tolist() == changed.tolist()
        assert capture.state["engine"]["shard"]["columns"]["id"].tolist() == after[changed].tolist()


def test_captures_share_their_memory_and_files_hold_no_more_than_their_samples(arguments, tmp_path):
    """The second one has few samples, in what a capture of all samples took."""
    arguments |= {"fields": {**FIELDS, "x": Field((1000,), torch.bfloat16)}, "policy": "fifo"}
    with RehearsalBuffer(**arguments) as buffer:
        saves = Increments(buffer)
        places, sizes = [], []
        for index in range(2):
            ids = torch.arange(300 * (1 - index) + 2) + 500 * index
            buffer.wait()
            buffer.submit(id=ids, x=torch.ones(len(ids), 1000).bfloat16(), y=ids % 3)
            folder = tmp_path / f"{index}"
            capture, files = save(saves, folder)
            saves.keep(capture, folder, files)
            places.append(capture.state["engine"]["shard"]["columns"]["x"].data_ptr())
            sizes.append((folder / files[-1].file).stat().st_size)
        assert places[0] == places[1]
        assert files[-1].rows == 2
        assert sizes[1] < sizes[0] - 50 * 2000


def test_a_save_that_nobody_keeps_changes_nothing_for_the_next_one(arguments, tmp_path):
    with RehearsalBuffer(**arguments) as buffer:
        saves = Increments(buffer)
        step(buffer, 0, 50)
        capture, files = save(saves, tmp_path / "first")
        saves.keep(capture, tmp_path / "first", files)
        step(buffer, 50, 10)
        save(saves, tmp_path / "lost")
        shutil.rmtree(tmp_path / "lost")
        step(buffer, 60, 1)
        save(saves, tmp_path / "second")
        expected = buffer.state_dict()
    with RehearsalBuffer.restore(tmp_path / "second", **arguments) as restored:
        assert same(restored.state_dict(), expected)


def test_a_chain_goes_on_after_a_restore(arguments, tmp_path):
    with RehearsalBuffer(**arguments) as buffer:
        step(buffer, 0, 60)
        save(Increments(buffer), tmp_path / "first")
    with RehearsalBuffer.restore(tmp_path / "first", **arguments) as buffer:
        saves = Increments(buffer)
        saves.resume(tmp_path / "first")
        step(buffer, 60, 10)
        _, files = save(saves, tmp_path / "second")
        assert files[0].rows == 60
        assert files[1].rows < 15
        expected = buffer.state_dict()
    shutil.rmtree(tmp_path / "first")
    with RehearsalBuffer.restore(tmp_path / "second", **arguments) as restored:
        assert same(restored.state_dict(), expected)


def test_when_changes_come_to_as_much_as_everything_all_is_written_anew(arguments, tmp_path):
    arguments["policy"] = "fifo"
    with RehearsalBuffer(**arguments) as buffer:
        saves, lengths = Increments(buffer), []
        for index in range(20):
            step(buffer, 20 * index, 20)
            folder = tmp_path / f"{index}"
            capture, files = save(saves, folder)
            saves.keep(capture, folder, files)
            lengths.append([file.rows for file in files])
    assert [60, 20, 20, 20] in lengths
    assert max(sum(rows) for rows in lengths) <= 2 * CAPACITY


def test_the_number_of_files_is_bounded(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(increments, "MAX_FILES", 5)
    with RehearsalBuffer(**arguments) as buffer:
        saves, lengths = Increments(buffer), []
        step(buffer, 0, 60)
        for index in range(12):
            step(buffer, 0, 0)
            capture, files = save(saves, tmp_path / f"{index}")
            saves.keep(capture, tmp_path / f"{index}", files)
            lengths.append(len(files))
    assert lengths == [1, 2, 3, 4, 5] * 2 + [1, 2]


def test_where_files_cannot_be_linked_they_are_copied(arguments, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with RehearsalBuffer(**arguments) as buffer:
        saves = Increments(buffer)
        step(buffer, 0, 60)
        capture, files = save(saves, tmp_path / "first")
        saves.keep(capture, tmp_path / "first", files)
        step(buffer, 60, 5)
        save(saves, tmp_path / "second")
        expected = buffer.state_dict()
    (tmp_path / "first" / files[0].file).write_bytes(b"another")
    with RehearsalBuffer.restore(tmp_path / "second", **arguments) as restored:
        assert same(restored.state_dict(), expected)
