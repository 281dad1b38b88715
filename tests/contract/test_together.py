"""Contract 4: fields, label and task of a sample stay together, in every dtype and shape, across ranks and restores."""

import pytest
import torch
from streams import MANY_FIELDS, assert_consistent, encode, identities, label_of, started, task_of

DTYPES = [
    *(torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize("policy", ["class_balanced", "reservoir", "fifo"])
@pytest.mark.parametrize("candidates", [None, 3])
def test_every_row_drawn_is_one_sample_in_all_its_parts(make, comm, reach, policy, candidates):
    buffer = started(
        make(fields=MANY_FIELDS, capacity=23 * comm.size, draws=(9, 4), policy=policy, candidates=candidates)
    )
    ranks = set()
    for step in range(25):
        ids = identities(comm.rank, 11 * step, (step * 3 + comm.rank) % 12)
        buffer.submit(y=label_of(ids), task=task_of(ids), **encode(ids))
        for draw in buffer.wait():
            assert_consistent(draw)
            ranks |= set(draw["rank"].tolist())
    assert ranks == set(reach)
    assert len(buffer) == 23


def overwrite(tensors):
    for tensor in tensors:
        # Not through torch, which would count the change: the stored bytes themselves are what matters here.
        memory = tensor.view(torch.uint8).reshape(-1).numpy()
        memory[:] = 1


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("how", ["submit", "augment"])
def test_inputs_may_be_overwritten_from_the_point_that_submit_states(make, comm, copy, how):
    """At once with copy=True; else when the draw that follows the batch has been delivered."""
    if copy and how == "augment":
        pytest.skip("augment() takes no copy")
    buffer = make(fields=MANY_FIELDS, capacity=40 * comm.size, draws=(20,))
    if how == "submit":
        started(buffer)
    readable = []
    for step in range(12):
        ids = identities(comm.rank, 64 * step, 64)
        columns, y, task = encode(ids), label_of(ids), task_of(ids)
        if how == "submit":
            buffer.submit(y=y, task=task, copy=copy, **columns)
            if copy:
                overwrite([*columns.values(), y, task])
            draw = buffer.wait()[0]
        else:
            draw = buffer.augment(y=y, task=task, **columns)
        if not copy:
            overwrite(readable)
        readable = [*columns.values(), y, task]
        assert_consistent(draw)
    buffer.drain()
    overwrite(readable)
    for _ in range(2):
        buffer.submit(y=y[:0], **{name: value[:0] for name, value in columns.items()})
        assert_consistent(buffer.wait()[0])


def test_a_change_in_place_that_comes_too_early_is_reported(make, comm, implementation):
    buffer = started(make(draws=(4,), scope="local"))
    ids = identities(comm.rank, 0, 8)
    buffer.submit(id=ids, y=label_of(ids))
    ids += 1
    if implementation == "python":
        buffer.drain()  # has read it by the time submit() returned
    else:
        with pytest.raises(RuntimeError, match="'id' was changed in place"):
            buffer.drain()


def test_inputs_may_be_views_with_any_strides(make, comm):
    ids = identities(comm.rank, 0, 6)
    columns = {name: value.repeat_interleave(2, dim=0)[::2] for name, value in encode(ids).items()}
    columns["large"] = encode(ids)["large"].transpose(2, 3)
    buffer = started(make(fields=MANY_FIELDS, draws=(99,)))
    buffer.submit(y=label_of(ids).repeat(2)[:6], task=task_of(ids), **columns)
    assert_consistent(buffer.wait()[0])


def test_inputs_may_carry_gradients(make, comm):
    buffer = started(make(fields={"z": MANY_FIELDS["f64"]}, draws=(99,)))
    z = torch.ones(3, 1, dtype=torch.float64, requires_grad=True) * 2
    buffer.submit(z=z, y=torch.zeros(3, dtype=torch.int64))
    (draw,) = buffer.wait()
    assert not draw["z"].requires_grad
    assert draw["z"].unique().tolist() == [2.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_every_dtype_survives_bit_by_bit(make, comm, dtype, shape):
    """rehearsal.md 6.2-3: half precision is written and read with different strides there."""
    from reprise.buffer import Field

    width = Field(shape, dtype).nbytes
    random = torch.randint(0, 2 if dtype == torch.bool else 256, (7, width), dtype=torch.uint8)
    values = random.view(dtype).reshape(7, *shape)
    buffer = started(make(fields={"v": Field(shape, dtype)}, draws=(999,), scope="local"))
    buffer.submit(v=values, y=torch.arange(7))
    (draw,) = buffer.wait()
    assert torch.equal(draw["v"].reshape(7, -1).view(torch.uint8), random[draw["y"]])


@pytest.mark.parametrize(
    ("task", "stored"),
    [(3, [3, 3]), (None, [-1, -1]), (torch.tensor([2, 5]), [2, 5]), (torch.tensor([2, 5], dtype=torch.uint8), [2, 5])],
)
def test_tasks_are_stored_as_given(make, task, stored):
    buffer = started(make(draws=(2,), scope="local"))
    buffer.submit(id=torch.arange(2), y=torch.arange(2), task=task)
    (draw,) = buffer.wait()
    assert draw["task"][draw["y"].argsort()].tolist() == stored
    assert draw["task"].dtype == torch.int64
