"""What the tests submit: samples that encode their identity, and helpers to feed buffers and read draws."""

import torch
from torch import Tensor

from reprise.buffer import Draw, Field, RehearsalBuffer

PER_RANK = 10_000_000  # sample i of rank k has the identity k * PER_RANK + i

MANY_FIELDS = {
    "u8": Field((3, 4, 4), torch.uint8),
    "f16": Field((5,), torch.float16),
    "bf16": Field((2, 3), torch.bfloat16),
    "flag": Field((), torch.bool),
    "i16": Field((2,), torch.int16),
    "u16": Field((3,), torch.uint16),
    "f8": Field((3,), torch.float8_e5m2),
    "c64": Field((), torch.complex64),
    "f64": Field((1,), torch.float64),
    "i64": Field((), torch.int64),
    "large": Field((3, 32, 32), torch.float32),
}


def identities(rank: int, first: int, count: int) -> Tensor:
    return torch.arange(first, first + count) + rank * PER_RANK


def label_of(ids: Tensor) -> Tensor:
    return ids * 7919 % 13 - 3


def task_of(ids: Tensor) -> Tensor:
    return ids // 5 % 4


def encode(ids: Tensor) -> dict[str, Tensor]:
    """Every field of MANY_FIELDS, filled with numbers that follow from the identity and are exact in its dtype."""
    values = {
        "u8": ids % 251,
        "f16": ids % 2039,
        "bf16": ids % 241,
        "flag": ids // 3 % 2,
        "i16": ids % 32749 - 16000,
        "u16": ids % 65521,
        "f8": 2 ** (ids % 7),
        "c64": ids % 1_000_003,
        "f64": ids,
        "i64": ids,
        "large": ids % 16_777_213,
    }
    columns = {}
    for name, field in MANY_FIELDS.items():
        value = values[name].to(field.dtype).view(-1, *[1] * len(field.shape))
        columns[name] = value.expand(-1, *field.shape).contiguous()
    return columns


def raw(tensor: Tensor) -> Tensor:
    """A copy of the bytes, 1-D: equal bits, and not equal numbers, is what the tests ask for."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).reshape(-1).view(torch.uint8)


def assert_consistent(draw: Draw) -> None:
    """Every field, the label, the task and the rank of every row belong to one and the same sample."""
    ids = draw["i64"]
    for name, expected in encode(ids).items():
        got = draw[name]
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert torch.equal(raw(got), raw(expected)), name
    assert torch.equal(draw["y"], label_of(ids))
    assert torch.equal(draw["task"], task_of(ids))
    assert torch.equal(draw["rank"], ids // PER_RANK)


def feed(buffer: RehearsalBuffer, ids: Tensor, labels: Tensor | None = None) -> None:
    """Submit a batch to a buffer whose only field is "id"."""
    buffer.submit(id=ids, y=label_of(ids) if labels is None else labels, task=task_of(ids))


def ask(buffer: RehearsalBuffer) -> None:
    """Submit nothing: only ask for the next draw."""
    feed(buffer, torch.empty(0, dtype=torch.int64))


def started(buffer: RehearsalBuffer) -> RehearsalBuffer:
    """Take the first, empty draw: afterwards each submit is answered by the wait that follows it."""
    assert all(len(draw) == 0 for draw in buffer.wait())
    return buffer


def contents(buffer: RehearsalBuffer) -> set[int]:
    """Identities stored on this rank."""
    ids = buffer.state_dict()["engine"]["shard"]["columns"]["id"].tolist()
    assert len(set(ids)) == len(ids) == len(buffer)
    return set(ids)
