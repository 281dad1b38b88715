"""Tensors as bytes and back. Backends refuse some dtypes (Gloo: bool, int16, uint16, bfloat16), none refuses uint8.

Used by base.py for everything that is moved and not reduced.
"""

import io
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_BUCKET_BYTES = 64 << 20  # bounds the extra memory of a broadcast of many tensors


def as_rows(tensor: Tensor) -> Tensor:
    """(n, ...) of any dtype as (n, bytes per row) uint8; shares memory where `tensor` is contiguous. n may be 0."""
    width = tensor.shape[1:].numel()
    return tensor.detach().reshape(len(tensor), width).contiguous().view(torch.uint8)


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of as_rows: (n, bytes per row) uint8 as (n, *like.shape[1:]) of like's dtype."""
    return rows.view(like.dtype).reshape(len(rows), *like.shape[1:])


def as_bytes(tensor: Tensor) -> Tensor:
    """All of a tensor as 1-D uint8."""
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours on the same device, grouped up to 64 MiB; the same on every rank that has the same shapes."""
    group: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if group and (size + tensor.nbytes > _BUCKET_BYTES or tensor.device != group[0].device):
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    if group:
        yield group


def pack(value: Any) -> Tensor:
    """A Python object as 1-D uint8; for the wire only, never for files."""
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def unpack(data: Tensor) -> Any:
    """Inverse of pack. The sender is a rank of the same job, which runs the same code as the same user."""
    return pickle.loads(data.numpy().tobytes())


def pack_state(state: dict[str, Any]) -> Tensor:
    """A state_dict, with tensors on any device, as 1-D uint8."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return torch.frombuffer(bytearray(stream.getbuffer()), dtype=torch.uint8)


def unpack_state(data: Tensor) -> dict[str, Any]:
    """Inverse of pack_state; tensors are on the CPU."""
    state: dict[str, Any] = torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)
    return state
