"""The memory limit as a contestant: limit.c compiled on first use, its memory, and the trace it replays.

memcpy: libc's memcpy, 4 KiB pages. streaming: stores past the caches and huge pages, the least a step can take. stores:
ordinary vector stores, 4 KiB pages; what memcpy comes to where libc does not use the processor's string moves.
"""

import ctypes
import hashlib
import mmap
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reprise.benchmarks.contestants import Contestant
from reprise.benchmarks.workloads import Batch, Copies, Trace, Workload

LIMITS = ("memcpy", "streaming", "stores")

_SOURCE = Path(__file__).with_suffix(".c")
_BUILD = _SOURCE.parent.parent / "build" / "bench"
_COMMAND = ("cc", "-O3", "-march=native", "-std=c11", "-Wall", "-Wextra", "-shared", "-fPIC")
_HUGE_PAGE = 2 << 20
# How limit.c inserts and draws. A staging area is read at once, so it is not streamed: measured slower.
MEMCPY, _STREAM, _STORES = range(3)
_WAYS = {"memcpy": (MEMCPY, MEMCPY), "streaming": (_STREAM, MEMCPY), "stores": (_STORES, _STORES)}


class Column(ctypes.Structure):
    """struct Column of limit.c: bytes of a record, and addresses."""

    _fields_ = (
        ("record", ctypes.c_size_t),
        ("slab", ctypes.c_void_p),
        ("batch", ctypes.c_void_p),
        ("staging", ctypes.c_void_p),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """limit.c as a library, from build/bench. Raises RuntimeError with the compiler's words when it cannot be built."""
    digest = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_COMMAND).encode()).hexdigest()[:16]
    path = _BUILD / f"limit-{digest}.so"
    if not path.exists():
        _BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        try:
            subprocess.run([*_COMMAND, "-o", unfinished, _SOURCE], check=True, capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(f"the memory limit needs a C compiler: {error}") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"limit.c does not compile: {error.stderr}") from error
        unfinished.replace(path)
    return ctypes.CDLL(str(path))


def call(ways: tuple[int, int], columns: "ctypes.Array[Column]", copies: Copies) -> tuple[int, int]:
    """The copies of one step: nanoseconds of inserting and of drawing, taken inside the C call."""
    ns = (ctypes.c_uint64 * 2)()
    way, other = ctypes.c_int(ways[0]), ctypes.c_int(ways[1])
    library().LimitStep(way, other, ctypes.c_size_t(len(columns)), columns, *_arguments(copies), ns)
    return ns[0], ns[1]


class Limit(Contestant):
    """The copies of a trace and nothing else. Times are taken inside the one C call of a step."""

    def __init__(self, name: str, workload: Workload) -> None:
        super().__init__(name, workload)
        self._ways = _WAYS[name]
        self._trace: Trace | None = None
        widths = {**{name: field.nbytes for name, field in workload.fields}, "y": 8, "task": 8}
        huge = name == "streaming"
        num_drawn = sum(workload.draws)
        self._slabs = {name: _allocate(workload.capacity * width, huge) for name, width in widths.items()}
        self._staging = {name: _allocate(num_drawn * width, huge) for name, width in widths.items()}
        self._columns = (Column * len(widths))()
        for column, (name, width) in zip(self._columns, widths.items(), strict=True):
            column.record = width
            column.slab = self._slabs[name].ctypes.data
            column.staging = self._staging[name].ctypes.data

    def fill(self, trace: Trace) -> None:
        self._trace = trace
        for index in range(trace.fill_steps):
            self.step(trace.batch(index))

    def submit(self, batch: Batch) -> None:
        self.step(batch)

    def wait(self) -> None:
        """Everything has been done in submit()."""

    def step(self, batch: Batch) -> tuple[int, int]:
        assert self._trace is not None, "fill() comes first"
        sources = (*batch.fields.values(), batch.y, batch.tasks)
        for column, source in zip(self._columns, sources, strict=True):
            column.batch = source.data_ptr()
        copies = self._trace.copies[batch.index]
        return call(self._ways, self._columns, copies)

    def bytes_per_step(self, trace: Trace, index: int) -> int:
        return sum(trace.bytes_at(index))

    def staged(self, name: str) -> Tensor:
        """The rows of the latest draws, all draws one after the other. For tests."""
        return self._typed(self._staging[name], name)

    def stored(self, name: str) -> Tensor:
        """All slots. For tests."""
        return self._typed(self._slabs[name], name)

    def close(self) -> None:
        self._slabs.clear()
        self._staging.clear()

    def _typed(self, memory: np.ndarray, name: str) -> Tensor:
        field = self.workload.field_map.get(name)
        dtype, shape = (torch.int64, ()) if field is None else (field.dtype, field.shape)
        return torch.from_numpy(memory).view(dtype).view(-1, *shape)


def _arguments(copies: Copies) -> tuple[object, ...]:
    return (
        ctypes.c_size_t(len(copies.rows)),
        ctypes.c_void_p(copies.rows.ctypes.data),
        ctypes.c_void_p(copies.slots.ctypes.data),
        ctypes.c_size_t(len(copies.drawn)),
        ctypes.c_void_p(copies.drawn.ctypes.data),
    )


def _allocate(num_bytes: int, huge: bool) -> np.ndarray:
    """Private anonymous memory on pages of one kind; it lives as long as the array."""
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(memory, dtype=np.uint8)
    start = -array.ctypes.data % _HUGE_PAGE
    return array[start : start + num_bytes]
