"""Fetches planned samples from other ranks by collectives: one all-to-all of requests, one of records.

The slow, portable way, for the Python implementation and for nodes that no faster transport connects. Every rank must
take part in every step. Records travel as bytes, because not every backend carries every dtype.
"""

import numpy as np
import torch
from torch import Tensor

from reprise.buffer.plan import Plan
from reprise.buffer.schema import Columns
from reprise.buffer.shard import Shard
from reprise.runtime.dist import Communicator


def fetch(plan: Plan, shard: Shard, comm: Communicator) -> Columns:
    """Return the planned rows in plan order, with the columns of `Shard.gather`. Collective.

    Raises PeerLost when a rank is gone.
    """
    order = np.argsort(plan.ranks, kind="stable")
    per_rank = torch.from_numpy(np.bincount(plan.ranks, minlength=comm.size))
    wanted, wanted_from = comm.alltoall(torch.from_numpy(plan.slots[order]), per_rank, name="rehearsal.requests")
    records = _pack(shard.gather(wanted.numpy()))
    received, _ = comm.alltoall(records, wanted_from, name="rehearsal.records")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return _unpack(received, torch.from_numpy(position), shard)


def _pack(columns: Columns) -> Tensor:
    rows = len(columns["y"])
    return torch.cat([value.reshape(rows, _width(value)).view(torch.uint8) for value in columns.values()], dim=1)


def _unpack(records: Tensor, order: Tensor, shard: Shard) -> Columns:
    """Split records into columns and put row order[i] first, in one copy per column."""
    layout = {**shard.columns, "inverse_inclusion": torch.empty(0, dtype=torch.float64)}
    columns, offset = {}, 0
    for name, column in layout.items():
        end = offset + _width(column) * column.dtype.itemsize
        part = records[:, offset:end].index_select(0, order)
        columns[name] = part.view(column.dtype).reshape(len(order), *column.shape[1:])
        offset = end
    return columns


def _width(column: Tensor) -> int:
    """Elements per row, also of a column without rows."""
    return int(column.shape[1:].numel())
