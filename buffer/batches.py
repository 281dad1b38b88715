"""Contiguous batches of new samples and representatives, for engines that deliver draws in memory of their own.

The representatives are copied behind the new samples. The engine of "standard" needs none of this: it gathers them to
where they belong.
"""

import torch

from reprise.buffer.schema import Columns, Prepared, Spec


class CopiedBatches:
    """Two sets of rows on `device` that take turns: one with the user, one to collate the next batch into."""

    def __init__(self, spec: Spec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._sets: list[Columns] = [{}, {}]
        self._next = 0
        self.storages: frozenset[int] = frozenset()
        """Addresses of all columns' memory."""

    def rows(self, rows: int) -> Columns:
        """The first `rows` rows of the next batch, uninitialised; fields and "y"."""
        columns = self._set(rows)
        return {name: columns[name][:rows] for name in (*self._spec.fields, "y")}

    def join(self, rows: int, prepared: Prepared) -> Prepared:
        """The draws, copied behind `rows` rows for new samples."""
        columns = self._set(rows)
        self._next = 1 - self._next
        total = sum(prepared.sizes)
        for name, column in columns.items():
            column[rows : rows + total].copy_(prepared.columns[name][prepared.start : prepared.start + total])
        return Prepared(columns, rows, prepared.sizes)

    def _set(self, rows: int) -> Columns:
        needed = rows + sum(self._spec.draws)
        if not self._sets[self._next] or len(self._sets[self._next]["y"]) < needed:
            with torch.inference_mode(False):  # the next caller may want to train on them
                columns = {name: field.empty(needed, self._device) for name, field in self._spec.fields.items()}
                for name in ("y", "task", "rank"):
                    columns[name] = torch.empty(needed, dtype=torch.int64, device=self._device)
                columns["weight"] = torch.empty(needed, dtype=torch.float32, device=self._device)
            self._sets[self._next] = columns
            self.storages = frozenset(c.untyped_storage().data_ptr() for one in self._sets for c in one.values())
        return self._sets[self._next]
