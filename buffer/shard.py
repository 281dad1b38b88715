"""One rank's share of the memory: a tensor per field, and the policy that says which row goes where.

No collectives and no threads here; python_engine.py drives it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprise.buffer.policies import POLICIES
from reprise.buffer.policies.random_words import CANDIDATES, Int64s, RandomWords, choose
from reprise.buffer.schema import Columns, Empty, Spec, as_words


class Shard:
    """Rows 0 .. stored-1 of every column hold samples; the rest is allocated and untouched (no resident memory)."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.words = RandomWords(spec.seed, spec.rank)
        self.policy = POLICIES[spec.policy](spec.share)
        self.submitted = 0
        self.versions = np.zeros(spec.share, dtype=np.uint32)  # how often each slot has been written
        self.columns: Columns = {name: spec.empty(name, spec.share) for name in spec.stored_columns}

    @property
    def stored(self) -> int:
        return self.policy.stored

    def insert(self, batch: Columns, step: int) -> None:
        """Offer up to `candidates` rows of a batch (CPU columns of b rows: fields, "y", "task") to the policy."""
        batch_size = len(batch["y"])
        limit = self.spec.candidates
        if limit is not None and limit < batch_size:
            picked = choose(lambda n, round_: self.words(CANDIDATES, step, n, round_), batch_size, limit)
            candidates = np.sort(picked)
        else:
            candidates = np.arange(batch_size, dtype=np.int64)
        labels = batch["y"].numpy()[candidates]
        rows, slots = self.policy.insert(labels, batch_size, step, self.words)
        self.submitted += batch_size
        if not len(rows):
            return
        self.versions[slots] += 1
        source, target = torch.from_numpy(candidates[rows]), torch.from_numpy(slots)
        whole = len(rows) == batch_size  # every row is written: no need to pick rows out of the batch first
        for name, column in self.columns.items():
            values = as_words(batch[name])
            as_words(column).index_copy_(0, target, values if whole else values.index_select(0, source))

    def gather(self, slots: Int64s) -> Columns:
        """Copies of the samples in `slots`, plus "inverse_inclusion" float64 (n,)."""
        index = torch.from_numpy(slots)
        columns = {
            name: as_words(column).index_select(0, index).view(column.dtype) for name, column in self.columns.items()
        }
        columns["inverse_inclusion"] = torch.from_numpy(self.policy.inverse_inclusion(slots))
        return columns

    def class_counts(self) -> dict[int, int]:
        labels, counts = torch.unique(self.columns["y"][: self.stored], return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))

    def state_dict(self, slots: Int64s | None = None, empty: Empty | None = None) -> dict[str, Any]:
        """Contents (of `slots`, if given), copied to `empty` columns, and counters; tensors and numbers only."""
        chosen = torch.arange(self.stored) if slots is None else torch.from_numpy(slots)
        copies = {name: (empty or self.spec.empty)(name, len(chosen)) for name in self.columns}
        for name, copy in copies.items():
            torch.index_select(as_words(self.columns[name]), 0, chosen, out=as_words(copy))
        return {
            "submitted": self.submitted,
            "policy": {name: _as_tensor(value) for name, value in self.policy.state_dict().items()},
            "columns": copies,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.submitted = int(state["submitted"])
        self.policy.load_state_dict(policy_arrays(state))
        self.versions[: self.stored] += 1
        for name, column in self.columns.items():
            column[: self.stored].copy_(state["columns"][name])


def policy_arrays(state: dict[str, Any]) -> dict[str, Any]:
    """The policy's part of a shard's state, with NumPy arrays in place of tensors."""
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in state["policy"].items()}


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
