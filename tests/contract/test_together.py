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
def test_every_row_drawn_is_one_sample_in_all_its_parts(make, comm, policy, candidates):
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
    assert ranks == set(range(comm.size))
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


def test_a_change_in_place_of_a_batch_in_rows_is_reported(make, comm, implementation):
    buffer = make(draws=(4,), scope="local")
    for step in range(3):
        rows = buffer.rows(8)
        rows["id"].copy_(identities(comm.rank, 8 * step, 8))
        rows["y"].zero_()
        batch = buffer.augment(**rows)
    batch["id"][:8] += 1
    if implementation == "python":
        buffer.drain()
    else:
        with pytest.raises(RuntimeError, match="'id' was changed in place"):
            buffer.drain()


def submit_or_augment(buffer, how, **batch):
    """The draw after this batch, with everything stored in it."""
    if how == "submit":
        started(buffer)
        buffer.submit(**batch)
    else:
        assert buffer.augment(**batch).sizes[0] == len(batch["y"])
    return buffer.wait()[0]


class OfAnotherKind(torch.Tensor):
    """What libraries hand out that give tensors metadata of their own."""


VIEWS = {
    "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "transposed": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1) if x.ndim > 2 else x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x,
    "with gaps": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "backwards in the storage": lambda x: x.flip(0)[torch.arange(len(x)).flip(0)],
    "from the middle of a storage": lambda x: torch.cat([x, x])[len(x) :],
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "another kind of tensor": lambda x: x.as_subclass(OfAnotherKind),
    "made for inference": lambda x: torch.inference_mode()(x.clone)(),
}


@pytest.mark.parametrize("how", ["submit", "augment"])
@pytest.mark.parametrize("view", VIEWS)
def test_inputs_may_be_views_and_tensors_of_any_kind(make, comm, view, how):
    change, ids = VIEWS[view], identities(comm.rank, 0, 6)
    columns = {name: change(value) for name, value in encode(ids).items()}
    y, task = (change(value) if value.ndim < 4 else value for value in (label_of(ids), task_of(ids)))
    draw = submit_or_augment(make(fields=MANY_FIELDS, draws=(99,)), how, y=y, task=task, **columns)
    assert_consistent(draw)
    assert set(ids.tolist()) <= set(draw["i64"].tolist())


@pytest.mark.parametrize("how", ["submit", "augment"])
def test_inputs_may_be_expanded(make, comm, how):
    """One row for all: the rows of the batch share their memory."""
    ids = identities(comm.rank, 3, 1)
    columns = {name: value.expand(6, *value.shape[1:]) for name, value in encode(ids).items()}
    y, task = label_of(ids).expand(6), task_of(ids).expand(6)
    draw = submit_or_augment(make(fields=MANY_FIELDS, draws=(99,), scope="local"), how, y=y, task=task, **columns)
    assert draw["i64"].tolist() == ids.tolist() * 6
    assert_consistent(draw)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("part", ["conjugate", "imaginary"])
@pytest.mark.parametrize("how", ["submit", "augment"])
def test_lazy_conjugates_and_negations_are_stored_as_the_numbers_they_are(make, how, part, rows):
    """torch only notes down that such a view is to be conjugated or negated: its memory holds something else."""
    from reprise.buffer import Field

    z = torch.complex(torch.arange(rows) + 1.0, torch.arange(rows) + 2.0)
    value = z.conj() if part == "conjugate" else z.conj().imag
    assert value.is_conj() if part == "conjugate" else value.is_neg()
    buffer = make(fields={"v": Field((), value.dtype)}, draws=(99,), scope="local")
    draw = submit_or_augment(buffer, how, v=value, y=torch.arange(rows))
    expected = [complex(k + 1, -k - 2) for k in range(rows)]
    got = draw["v"][draw["y"].argsort()].tolist()
    assert got == (expected if part == "conjugate" else [number.imag for number in expected])


@pytest.mark.parametrize("how", ["submit", "augment"])
def test_a_batch_of_no_rows_may_have_any_strides(make, comm, how):
    buffer = make(fields=MANY_FIELDS, draws=(99,))
    for strides in ((1,), (7, 5, 3, 2), (0,)):
        columns = {}
        for name, field in MANY_FIELDS.items():
            steps = (strides * 4)[: 1 + len(field.shape)]
            columns[name] = torch.empty(9999, dtype=field.dtype).as_strided((0, *field.shape), steps)
        y = torch.empty(9, dtype=torch.int64).as_strided((0,), strides[:1])
        if how == "submit":
            buffer.wait()
            buffer.submit(y=y, **columns)
        else:
            assert len(buffer.augment(y=y, **columns)) == 0
    assert (buffer.seen, len(buffer)) == (0, 0)


@pytest.mark.parametrize("how", ["submit", "augment"])
def test_inputs_may_be_dropped_at_once(make, comm, how):
    """Nobody else holds them, and their memory would be used again at once."""
    buffer = make(fields=MANY_FIELDS, capacity=900 * comm.size, draws=(9,))
    churn = []
    for step in range(15):
        ids = identities(comm.rank, 20 * step, 20)
        if how == "submit":
            buffer.submit(y=label_of(ids), task=task_of(ids), **encode(ids))
            draw = None
        else:
            draw = buffer.augment(y=label_of(ids), task=task_of(ids), **encode(ids))
        churn = [torch.full_like(value, 1) for value in encode(ids).values()]
        assert_consistent(buffer.wait()[0] if draw is None else draw)
    assert churn
    buffer.submit(y=ids[:0], **encode(ids[:0]))
    assert_consistent(buffer.wait()[0])
    assert len(buffer) == 300


@pytest.mark.parametrize("how", ["submit", "augment"])
def test_inputs_may_carry_gradients_which_end_at_the_buffer(make, how):
    buffer = make(fields={"z": MANY_FIELDS["f64"]}, draws=(99,), scope="local")
    weight = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    y = torch.zeros(3, dtype=torch.int64)
    for factor in (2, 2, 2):
        if how == "submit":
            buffer.submit(z=weight * factor, y=y)
            draw = buffer.wait()[0]
        else:
            draw = buffer.augment(z=weight * factor, y=y)
        assert not draw["z"].requires_grad
        assert draw["z"].grad_fn is None
    assert draw["z"].unique().tolist() == [2.0]


def test_a_step_in_inference_mode_leaves_tensors_that_can_be_trained_on(make):
    buffer = make(fields={"z": MANY_FIELDS["f64"]}, draws=(99,), scope="local")
    z, y = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        rows = buffer.rows(3)
        rows["z"].copy_(z)
        rows["y"].copy_(y)
        buffer.augment(**rows)
        buffer.submit(z=z, y=y)
    (draw,) = buffer.wait()
    (draw["z"] * weight).sum().backward()
    buffer.submit(z=z, y=y)
    batch = buffer.augment(z=z, y=y, task=1)
    (batch["z"] * weight).sum().backward()
    assert weight.grad.item() == len(draw) + len(batch)


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
