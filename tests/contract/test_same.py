"""Contract 5 across implementations: long random streams give the same slots, draws and states in all of them.

One batch goes to a buffer of each implementation; what they deliver and what they hold must agree in every bit. Also
that an implementation which is built here really runs, so that none of this passes for want of an engine.
"""

import os
import random
import shutil
from importlib.util import find_spec

import pytest
import torch
from streams import identities, label_of, raw, task_of

from reprise import cpp_loader
from reprise.buffer import Field, RehearsalBuffer

FIELDS = {
    "id": Field((), torch.int64),
    "x": Field((3, 5), torch.uint8),
    "logits": Field((7,), torch.float16),
    "flag": Field((), torch.bool),
    "z": Field((2,), torch.complex64),
    "large": Field((300,), torch.float32),
}
COMPILERS = ("c++", "g++", "clang++")


def test_the_engine_is_built_wherever_it_can_be_and_loads():
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None and find_spec("reprise.cpp_loader._core") is None:
        pytest.skip("no C++ compiler: the engine is not built")
    assert cpp_loader.available(), cpp_loader.why_not()


def test_every_implementation_runs_where_the_engine_is_built(implementations, asked):
    if not cpp_loader.available():
        pytest.skip("the test above says why")
    assert implementations == asked


@pytest.fixture
def trio(comm, implementations, transport_of):
    """Builds a buffer per implementation; all are closed after the test."""
    if implementations == ["python"]:
        pytest.skip("there is nothing to compare it with")
    built = []

    def build(**arguments):
        arguments = {"fields": FIELDS, "deterministic": True, **arguments}
        buffers = {
            name: RehearsalBuffer(implementation=name, transport=transport_of(name), **arguments)
            for name in dict.fromkeys((*implementations, "python"))
        }
        built.extend(buffers.values())
        assert all(buffer.implementation == name for name, buffer in buffers.items())
        return buffers

    yield build
    for buffer in built:
        buffer.close()


def batch_of(comm, first, rows, classes):
    """The samples first .. first + rows - 1 of this rank; their labels are among the last of `classes`."""
    ids = identities(comm.rank, first, rows)
    part = ids % 251
    return {
        "id": ids,
        "x": part.to(torch.uint8).view(-1, 1, 1).expand(-1, 3, 5).contiguous(),
        "logits": part.half().view(-1, 1).expand(-1, 7).contiguous(),
        "flag": part % 3 == 0,
        "z": torch.complex(part.float(), -part.float()).view(-1, 1).expand(-1, 2).contiguous(),
        "large": ids.float().view(-1, 1).expand(-1, 300).contiguous(),
        "y": classes - 1 - label_of(ids).abs() % min(classes, 6),
        "task": task_of(ids),
    }


def assert_same(values):
    """values: what each implementation gave; tensors must be equal in every bit, everything else just equal."""
    first, *others = values
    for other in others:
        assert type(other) is type(first)
        if isinstance(first, dict):
            assert set(other) == set(first)
            for name in first:
                assert_same([first[name], other[name]])
        elif isinstance(first, list | tuple):
            assert len(other) == len(first)
            for pair in zip(first, other, strict=True):
                assert_same(list(pair))
        elif isinstance(first, torch.Tensor):
            assert (other.dtype, other.shape) == (first.dtype, first.shape)
            assert torch.equal(raw(other), raw(first))
        else:
            assert other == first


def step_of_all(buffers, act):
    """Every buffer does the same, with the same result. Whether they did it: if one refuses, all must."""
    results, errors = [], []
    for buffer in buffers.values():
        try:
            got = act(buffer)
            got = got if isinstance(got, tuple) else (got,)
            results.append([(draw.sizes, dict(draw.items())) for draw in got if draw is not None])
        except RuntimeError as error:
            errors.append(str(error))
    assert not results or not errors
    assert_same(errors or results)
    return not errors


def rotated(buffers):
    """Each implementation goes on from another one's state."""
    states = {name: buffer.state_dict() for name, buffer in buffers.items()}
    assert_same(list(states.values()))
    names = list(buffers)
    for name, source in zip(names, names[1:] + names[:1], strict=True):
        buffers[name].load_state_dict(states[source])


def saved_and_restored(buffers, folder, writer, transport_of, arguments):
    """All implementations read what one of them has written."""
    buffers[writer].save(folder)
    for name in buffers:
        buffers[name].close()
        buffers[name] = RehearsalBuffer.restore(
            folder,
            **{"fields": FIELDS, "deterministic": True, "implementation": name, **arguments},
            transport=transport_of(name),
        )
        assert buffers[name].implementation == name


@pytest.mark.parametrize("candidates", [None, 5])
@pytest.mark.parametrize("policy", ["class_balanced", "reservoir", "fifo"])
def test_long_random_streams_give_the_same_slots_and_draws_everywhere(
    trio, comm, transport_of, folder, policy, candidates
):
    """Steps of all kinds in random order; states change hands and snapshots are read in mid-stream."""
    # "python" exchanges three times a step, which on many ranks of few cores takes most of the test.
    steps = {1: 1000, 2: 150}.get(comm.size, 80)
    choices = random.Random(f"{policy} {candidates}")  # the same on all ranks
    arguments = {"capacity": 41 * comm.size + 1, "draws": (6, 3, 0), "candidates": candidates, "policy": policy}
    arguments["seed"] = choices.getrandbits(70) - 2**69
    buffers, first, refused = trio(**arguments), 0, 0
    for step in range(steps):
        rows = choices.choice([0, 1, 2, 5, 6, 13, 13, 13, 60])
        batch = batch_of(comm, first, rows, 2 + step // 40)
        first += rows
        kind = choices.random()
        for _ in range(3 if kind > 0.97 else 0):
            refused += not step_of_all(buffers, lambda buffer: buffer.wait())
        if kind < 0.4 or not step_of_all(buffers, lambda buffer, batch=batch: buffer.augment(**batch)):
            step_of_all(buffers, lambda buffer, batch=batch: buffer.submit(**batch))
        if 0.05 < kind < 0.4:
            step_of_all(buffers, lambda buffer: buffer.wait())
        if step % 50 == 7:
            rotated(buffers)
        if step % 400 == 49:
            saved_and_restored(buffers, folder, choices.choice(list(buffers)), transport_of, arguments)
    assert refused
    states = [buffer.state_dict() for buffer in buffers.values()]
    assert_same(states)
    assert states[0]["engine"]["shard"]["submitted"] == first > 20 * 41
    assert len(buffers["python"]) == 41 + (comm.rank == 0)
    for buffer in buffers.values():
        buffer.close()


def test_the_comparison_sees_one_wrong_bit(trio, comm):
    buffers = trio(capacity=41 * comm.size, draws=(6,))
    for buffer in buffers.values():
        buffer.submit(**batch_of(comm, 0, 30, 4))
    states = [buffer.state_dict() for buffer in buffers.values()]
    assert_same(states)
    states[0]["engine"]["shard"]["columns"]["x"][29, 2, 4] ^= 1
    with pytest.raises(AssertionError):
        assert_same(states)
