"""Contract 7: mistakes are ValueErrors of one line that name field, got and expected; nothing is stored then."""

import json
import os

import pytest
import torch
from streams import contents, feed, identities, started

from reprise.buffer import Field, RehearsalBuffer
from reprise.runtime.errors import UserError

FIELDS = {"x": Field((3, 4), torch.uint8), "logits": Field((5,), torch.float16)}


def batch(rows=2, **changes):
    columns = {
        "x": torch.zeros(rows, 3, 4, dtype=torch.uint8),
        "logits": torch.zeros(rows, 5, dtype=torch.float16),
        "y": torch.zeros(rows, dtype=torch.int64),
        "task": 0,
        **changes,
    }
    return {name: value for name, value in columns.items() if value is not ...}


WRONG_BATCHES = {
    "missing field": (batch(logits=...), ["logits", "missing"]),
    "unknown field": (batch(logit=torch.zeros(2, 5)), ["logit", "did you mean", "logits"]),
    "wrong shape": (batch(x=torch.zeros(2, 3, 5, dtype=torch.uint8)), ["'x'", "(2, 3, 5)", "(2, 3, 4)"]),
    "no batch dimension": (batch(x=torch.zeros(3, 4, dtype=torch.uint8)), ["'x'", "(3, 4)", "(2, 3, 4)"]),
    "wrong number of rows": (batch(x=torch.zeros(3, 3, 4, dtype=torch.uint8)), ["'x'", "(3, 3, 4)", "(2, 3, 4)"]),
    "wrong dtype": (batch(logits=torch.zeros(2, 5)), ["'logits'", "float32", "float16"]),
    "wrong device": (batch(x=torch.zeros(2, 3, 4, dtype=torch.uint8, device="meta")), ["'x'", "meta", "cpu"]),
    "labels elsewhere": (batch(y=torch.zeros(2, dtype=torch.int64, device="meta")), ["'y'", "meta", "cpu"]),
    "not a tensor": (batch(x=[[0] * 12] * 2), ["'x'", "list", "uint8"]),
    "labels of floats": (batch(y=torch.zeros(2)), ["'y'", "int64", "float32"]),
    "labels of int32": (batch(y=torch.zeros(2, dtype=torch.int32)), ["'y'", "int64", "int32"]),
    "labels of two dimensions": (batch(y=torch.zeros(2, 1, dtype=torch.int64)), ["'y'", "(2, 1)"]),
    "labels in a list": (batch(y=[0, 0]), ["'y'", "list"]),
    "task of another length": (batch(task=torch.zeros(3, dtype=torch.int64)), ["'task'", "(3,)", "(2,)"]),
    "task of floats": (batch(task=torch.zeros(2)), ["'task'", "float32"]),
    "task as text": (batch(task="1"), ["'task'", "'1'"]),
    "task of bools": (batch(task=torch.ones(2, dtype=torch.bool)), ["'task'", "bool"]),
    "task as a bool": (batch(task=True), ["'task'", "True"]),
    "task beyond int64": (batch(task=2**63), ["'task'", "9223372036854775808", "int64"]),
    "task below int64": (batch(task=-(2**63) - 1), ["'task'", "-9223372036854775809", "int64"]),
    "task elsewhere": (batch(task=torch.zeros(2, dtype=torch.int64, device="meta")), ["'task'", "meta", "cpu"]),
}


def one_line_with(caught, words):
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("method", ["submit", "augment"])
@pytest.mark.parametrize("wrong", WRONG_BATCHES)
def test_a_wrong_batch_is_refused_with_one_line_and_leaves_no_trace(make, comm, method, wrong):
    arguments, words = WRONG_BATCHES[wrong]
    buffer = started(make(fields=FIELDS, draws=(50,)))
    buffer.submit(**batch(4))
    with pytest.raises(UserError) as caught:
        getattr(buffer, method)(**arguments)
    one_line_with(caught, words)
    assert (len(buffer), buffer.seen) == (4, 4)
    assert len(buffer.wait()[0]) == 4 * comm.size  # the draw that was ready has not been taken


WRONG_ARGUMENTS = {
    "no fields": ({"fields": {}}, ["field"]),
    "reserved field": ({"fields": {"task": Field((), torch.int64)}}, ["task", "reserved"]),
    "field of another type": ({"fields": {"x": (3, 4)}}, ["'x'", "Field", "tuple"]),
    "no capacity": ({"capacity": 0}, ["capacity", "0"]),
    "negative capacity": ({"capacity": -5}, ["capacity", "-5"]),
    "capacity of a float": ({"capacity": 10.5}, ["capacity", "10.5"]),
    "huge capacity": ({"capacity": 2**32}, ["capacity", "2**32"]),
    "capacity of a bool": ({"capacity": True}, ["capacity", "True"]),
    "negative draw": ({"draws": (3, -1)}, ["draws", "-1"]),
    "draw of a float": ({"draws": (3.0,)}, ["draws", "3.0"]),
    "draws as a number": ({"draws": 16}, ["draws", "16"]),
    "no candidates": ({"candidates": 0}, ["candidates", "0"]),
    "candidates as text": ({"candidates": "4"}, ["candidates", "4"]),
    "unknown policy": ({"policy": "resevoir"}, ["policy", "resevoir", "did you mean 'reservoir'"]),
    "unknown scope": ({"scope": "world"}, ["scope", "world", "global"]),
    "unknown implementation": ({"implementation": "pyton"}, ["implementation", "pyton", "python"]),
    "unknown device": ({"device": "gpu"}, ["device", "gpu"]),
    "reserved by Python": ({"fields": {"self": Field((), torch.int64)}}, ["self", "reserved"]),
    "unknown storage": ({"storage": "disk"}, ["storage", "'disk'", "memory", "file:/path"]),
    "storage without a path": ({"storage": "file:"}, ["storage", "'file:'", "file:/path"]),
    "storage of another type": ({"storage": None}, ["storage", "None"]),
    "storage of the python implementation": ({"storage": "file:/tmp"}, ["storage", "file:/tmp", "'python'", "C++"]),
    "no threads": ({"threads": 0}, ["threads", "0"]),
    "threads of a float": ({"threads": 1.5}, ["threads", "1.5"]),
    "threads of a bool": ({"threads": True}, ["threads", "True"]),
    "far too many threads": ({"threads": 2**40}, ["threads", "1099511627776"]),
    "seed as text": ({"seed": "x"}, ["seed", "x"]),
}


@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS)
def test_a_wrong_argument_is_refused_with_one_line(wrong):
    arguments, words = WRONG_ARGUMENTS[wrong]
    with pytest.raises(UserError) as caught:
        RehearsalBuffer(**{"fields": FIELDS, "capacity": 100, "implementation": "python", **arguments})
    one_line_with(caught, words)


@pytest.mark.parametrize(
    ("shape", "dtype", "word"), [((3, 0), torch.uint8, "0"), (7, torch.uint8, "7"), ((3,), "uint8", "uint8")]
)
def test_a_wrong_field_is_refused(shape, dtype, word):
    with pytest.raises(ValueError, match=word):
        Field(shape, dtype)


def test_a_share_of_at_least_one_sample_per_rank_is_asked_for(comm):
    if comm.size == 1:
        pytest.skip("needs several ranks")
    with pytest.raises(ValueError, match="capacity"):
        RehearsalBuffer(fields=FIELDS, capacity=comm.size - 1, implementation="python")


def test_close_may_be_called_twice_and_everything_after_it_raises(make, folder):
    buffer = make(fields=FIELDS)
    state = buffer.state_dict()
    buffer.close()
    buffer.close()
    calls = {
        "submit": lambda: buffer.submit(**batch()),
        "augment": lambda: buffer.augment(**batch()),
        "wait": buffer.wait,
        "rows": lambda: buffer.rows(2),
        "drain": buffer.drain,
        "save": lambda: buffer.save(folder),
        "state_dict": buffer.state_dict,
        "load_state_dict": lambda: buffer.load_state_dict(state),
        "class_counts": buffer.class_counts,
        "len": lambda: len(buffer),
        "seen": lambda: buffer.seen,
        "global_size": lambda: buffer.global_size,
    }
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match="closed"):
            call()
        assert name in calls


@pytest.fixture
def restore_like(restore):
    """Restores what `saved` holds, with changes."""

    def read(folder, **changes):
        return restore(folder, **{"fields": FIELDS, "capacity": 64, "draws": (8,), **changes})

    return read


@pytest.fixture
def saved(make, comm, folder):
    """A folder with a saved buffer of capacity 64."""
    buffer = make(fields=FIELDS, capacity=64)
    buffer.submit(**batch(5, y=torch.arange(5) + comm.rank))
    buffer.save(folder)
    comm.barrier()
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fields": {"x": FIELDS["x"]}}, ["logits", "absent"]),
        ({"fields": {**FIELDS, "z": Field((), torch.bool)}}, ["'z'", "absent", "bool"]),
        ({"fields": {**FIELDS, "x": Field((3, 5), torch.uint8)}}, ["'x'", "(3, 4)", "(3, 5)"]),
        ({"fields": {**FIELDS, "x": Field((3, 4), torch.int8)}}, ["'x'", "torch.uint8", "torch.int8"]),
        ({"capacity": 65}, ["capacity", "64", "65"]),
        ({"policy": "fifo"}, ["policy", "class_balanced", "fifo"]),
        ({"draws": (8, 8)}, ["draws", "[8]", "[8, 8]"]),
    ],
)
def test_a_buffer_of_another_kind_is_not_restored(saved, restore_like, changes, words):
    with pytest.raises(UserError) as caught:
        restore_like(saved, **changes)
    one_line_with(caught, words)


def test_a_missing_snapshot_is_named(folder, restore_like):
    with pytest.raises(ValueError, match=r"buffer\.json") as caught:
        restore_like(folder / "nowhere")
    one_line_with(caught, ["nowhere"])


def shards(folder):
    return sorted(folder.glob("shard-*.pt"))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
@pytest.mark.parametrize("target", ["manifest", "last shard"])
def test_a_missing_or_cut_file_is_named_on_every_rank(saved, comm, restore_like, damage, target):
    """The other ranks must not wait for the one whose shard is bad."""
    path = saved / "buffer.json" if target == "manifest" else shards(saved)[-1]
    comm.barrier()
    if comm.rank == 0:
        data = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes(b"" if damage == "empty" else data[: len(data) - 7])
    comm.barrier()
    with pytest.raises(ValueError, match=path.name) as caught:
        restore_like(saved)
    one_line_with(caught, [])


@pytest.mark.parametrize("target", ["manifest", "shard"])
def test_any_flipped_byte_is_found_before_anything_is_used(saved, comm, restore_like, target):
    path = saved / "buffer.json" if target == "manifest" else shards(saved)[0]
    data = path.read_bytes()
    positions = sorted({*range(0, len(data), max(1, len(data) // 55)), len(data) - 2})
    assert len(positions) >= 50
    for position in positions[:: 1 if comm.size == 1 else 10]:
        comm.barrier()
        if comm.rank == 0:
            path.write_bytes(data[:position] + bytes([data[position] ^ 0x01]) + data[position + 1 :])
        comm.barrier()
        with pytest.raises(ValueError, match=path.name):
            restore_like(saved)


def test_an_edited_manifest_is_damage(saved, comm, restore_like):
    comm.barrier()
    if comm.rank == 0:
        path = saved / "buffer.json"
        manifest = json.loads(path.read_text())
        manifest["schema"]["world_size"] += 1
        path.write_text(json.dumps(manifest))
    comm.barrier()
    with pytest.raises(ValueError, match=r"buffer\.json"):
        restore_like(saved)


def test_a_save_that_was_interrupted_leaves_the_earlier_one(make, comm, folder, restore, monkeypatch):
    """As if killed after the shards were written and before the manifest was."""
    buffer = make(capacity=64)
    feed(buffer, identities(comm.rank, 0, 5))
    before = contents(buffer)
    buffer.save(folder)
    feed(buffer, identities(comm.rank, 100, 5))

    class Killed(BaseException):
        pass

    def die(self, value, root=0, name=None):
        if value is None or isinstance(value, int):  # the generation's number, at the start
            return original(value, root, name)
        raise Killed

    from reprise.buffer import snapshot

    original = comm.broadcast_object
    real_write = snapshot.atomic_write

    def write(path, mode="w"):
        if path.name == "buffer.json":
            raise Killed
        return real_write(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "atomic_write", write)
        patch.setattr(type(comm), "broadcast_object", die)
        with pytest.raises(Killed):
            buffer.save(folder)
    comm.barrier()
    assert len(shards(folder)) == 2 * comm.size
    arguments = {"capacity": 64, "draws": (8,), "fields": {"id": Field((), torch.int64)}}
    with restore(folder, **arguments) as restored:
        assert contents(restored) == before
    comm.barrier()
    buffer.save(folder)
    comm.barrier()
    assert len(shards(folder)) == comm.size
    with restore(folder, **arguments) as restored:
        assert contents(restored) == contents(buffer)


def test_a_folder_that_cannot_be_written_is_an_error_on_every_rank(make, comm, folder):
    if comm.rank == 0:
        (folder / "file").write_text("in the way")
    comm.barrier()
    buffer = make()
    with pytest.raises(ValueError, match="file") as caught:
        buffer.save(folder / "file" / "below")
    one_line_with(caught, ["not saved"])
    buffer.save(folder / "new" / "deeper")
    comm.barrier()
    assert (folder / "new" / "deeper" / "buffer.json").is_file()


def test_a_disk_error_on_one_rank_is_an_error_on_every_rank_and_leaves_no_new_files(make, comm, folder, monkeypatch):
    buffer = make()
    buffer.save(folder)
    comm.barrier()
    before = sorted(os.listdir(folder))
    comm.barrier()
    if comm.rank == comm.size - 1:

        def full(state, stream):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=f"rank {comm.size - 1}.*No space left"):
        buffer.save(folder)
    comm.barrier()
    assert sorted(os.listdir(folder)) == before


def test_the_state_of_another_rank_or_kind_is_refused_and_changes_nothing(make, comm):
    buffer = make()
    feed(buffer, identities(comm.rank, 0, 6))
    for key, value in (("rank", comm.rank + 1), ("world_size", comm.size + 1), ("capacity", 3)):
        state = make().state_dict()
        (state if key == "rank" else state["schema"])[key] = value
        with pytest.raises(ValueError, match=key):
            buffer.load_state_dict(state)
        assert len(contents(buffer)) == 6
