"""One rank of a job of benchmarks/global_sampling.py: what is timed. Launchers start it as that file's worker.

A specification names the part; rank 0 writes what all ranks have found out. Contestants take turns in short blocks, at
the same time on every rank. A transport that does not work here is reported with its reason.
"""

import logging
import mmap
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch

from reprise.benchmarks import job, limit, perftest
from reprise.benchmarks.measure import matmul_loop, percentile_us, turns
from reprise.benchmarks.workloads import WORKLOADS, Copies, Workload, pool
from reprise.buffer import Field, RehearsalBuffer
from reprise.runtime import dist
from reprise.runtime.dist import Communicator

_WARMUP = 2
_TRAFFIC = re.compile(r"sent (\d+) messages, (\d+) bytes; received (\d+) bytes")
_POLICY = "fifo"
"""Stores every candidate at every step, so that a long measurement is as hard at its end as at its beginning."""


def run(folder: Path) -> None:
    """Do what asked.json says; rank 0 writes results.json, whoever fails its reason to failed.txt."""
    job.answer(folder, _run)


def _run(asked: dict[str, Any]) -> dict[str, Any] | None:
    logging.disable(logging.WARNING)
    if asked.get("busy"):
        _leave_no_core_idle(int(asked["ranks"]))
    comm = dist.init()
    torch.set_num_threads(1)
    parts = {"draws": _draws, "hidden": _hidden, "ranks": _ranks}
    results = parts[asked["part"]](comm, asked)
    comm.shutdown()
    return results if comm.rank == 0 else None


def _leave_no_core_idle(ranks: int) -> None:
    """Have all ranks share as many cores as there are ranks: their engines then find every core computing."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > ranks:
        os.sched_setaffinity(0, cores[:ranks])


# ---- draws of remote records only


def _draws(comm: Communicator, asked: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 stores everything; rank 0 submits batches of 0 rows, so that all it draws lies with rank 1."""
    assert comm.size == 2, "one rank stores, one draws"
    program = perftest.find(asked["ucx"])
    results: dict[str, Any] = {"cases": []}
    if isinstance(program, str):
        results["no_perftest"] = program
    for case in asked["cases"]:
        measured = _draw_case(comm, asked, case["records"], case["bytes"])
        if "not_available" in measured:
            return {**results, **measured}
        yardsticks: dict[str, Any] = {}
        if comm.rank == 0 and not isinstance(program, str):
            yardsticks = _yardsticks(program, case, asked)
        comm.barrier()  # asleep: the other rank leaves the cores to ucx_perftest
        results["cases"].append({**case, **measured, "perftest_us": yardsticks})
    return results


def _draw_case(comm: Communicator, asked: dict[str, Any], records: int, num_bytes: int) -> dict[str, Any]:
    share = min(max(int(asked["shard_bytes"]) // num_bytes, 4 * records), 20_000)
    made = _make(
        comm,
        asked["transport"],
        fields={"x": Field((num_bytes,), torch.uint8)},
        capacity=share * comm.size,
        draws=(records,),
        seed=1,
    )
    if isinstance(made, str):
        return {"not_available": made}
    with made as buffer:
        empty: dict[str, Any] = {
            "x": torch.empty((0, num_bytes), dtype=torch.uint8),
            "y": torch.empty(0, dtype=torch.int64),
        }
        if comm.rank == 1:
            rows = min(64, share)
            x, y = torch.full((rows, num_bytes), 7, dtype=torch.uint8), torch.zeros(rows, dtype=torch.int64)
            for _ in range(-(-share // rows)):
                buffer.submit(x=x, y=y)
                buffer.wait()
            buffer.drain()
        comm.barrier()
        compares = asked["transport"] == "shm"
        shared = _Shared(share * num_bytes) if comm.rank == 1 and compares else None
        places = comm.allgather_object(shared.place if shared else None)
        result: dict[str, Any] = {"share": share}
        if comm.rank == 0:
            place = places[1]
            copy = _Copy(place, share, records, num_bytes) if place else None
            result |= _take_turns(buffer, empty, copy, records, share, asked)
        comm.barrier()
    return result


def _take_turns(
    buffer: RehearsalBuffer,
    empty: dict[str, Any],
    copy: "_Copy | None",
    records: int,
    share: int,
    asked: dict[str, Any],
) -> dict[str, Any]:
    series: dict[str, list[int]] = {}

    def draw() -> None:
        before = buffer.timings()
        start = perf_counter_ns()
        buffer.submit(**empty)
        buffer.wait()
        whole = perf_counter_ns() - start
        after = buffer.timings()
        parts = {name: _spent_ns(after, name) - _spent_ns(before, name) for name in ("plan", "fetch")}
        add({"step": whole, "draw": sum(parts.values()), **parts})

    def plain() -> None:
        buffer.timings()  # leaves the caches as the other one finds them
        assert copy is not None
        add({"copy": copy()})

    def add(ns: dict[str, int]) -> None:
        for name, value in ns.items():
            series.setdefault(name, []).append(value)

    contestants: list[Callable[[], None]] = [draw] if copy is None else [draw, plain]
    # The first touch of a mapped page is a fault. Both mappings are touched (nearly) everywhere before.
    warm = 3 * share // records if copy else 50
    buffer.wait()
    for contestant in contestants:
        for _ in range(warm):
            contestant()
    buffer.submit(**empty)
    ranks = buffer.wait()[0]["rank"]
    assert ranks.tolist() == [1] * records, f"expected {records} rows of rank 1, got {ranks.tolist()}"
    series.clear()
    for block in range(asked["blocks"]):
        for contestant in turns(contestants, block):
            kept = {name: len(values) for name, values in series.items()}
            for _ in range(_WARMUP):
                contestant()
            for name, values in series.items():
                del values[kept.get(name, 0) :]
            for _ in range(asked["block"]):
                contestant()
    result: dict[str, Any] = {
        f"{name}_{label}_us": percentile_us(values, percentile)
        for name, values in series.items()
        for label, percentile in (("p50", 50), ("p95", 95))
    }
    if copy:
        result["ratio"] = {name: result[f"{name}_p50_us"] / result["copy_p50_us"] for name in ("fetch", "draw", "step")}
    return result


class _Shared:
    """Memory of this process that another one can map; written once, so that every page is there."""

    def __init__(self, num_bytes: int) -> None:
        self._descriptor = os.memfd_create("reprise-benchmark")
        os.ftruncate(self._descriptor, num_bytes)
        self._memory = mmap.mmap(self._descriptor, num_bytes)
        np.frombuffer(self._memory, dtype=np.uint8)[:] = 7
        self.place = os.getpid(), self._descriptor, num_bytes

    def __del__(self) -> None:
        os.close(self._descriptor)


class _Copy:
    """Random records out of another process' memory, memcpy for memcpy, into a staging area that is used again."""

    def __init__(self, place: tuple[int, int, int], share: int, records: int, num_bytes: int) -> None:
        process, descriptor, total = place
        with open(f"/proc/{process}/fd/{descriptor}", "rb") as stream:
            self._memory = np.frombuffer(mmap.mmap(stream.fileno(), total, prot=mmap.PROT_READ), dtype=np.uint8)
        self._staging = np.zeros(records * num_bytes, dtype=np.uint8)
        column = limit.Column(num_bytes, self._memory.ctypes.data, None, self._staging.ctypes.data)
        self._columns = (limit.Column * 1)(column)
        self._share, self._records = share, records
        self._random = np.random.default_rng(1)

    def __call__(self) -> int:
        """Nanoseconds, taken inside the one C call."""
        nothing = np.empty(0, dtype=np.int64)
        drawn = self._random.choice(self._share, self._records, replace=False, shuffle=False)
        return limit.call((limit.MEMCPY, limit.MEMCPY), self._columns, Copies(nothing, nothing, drawn))[1]


def _yardsticks(program: perftest.Program, case: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """What ucx_perftest takes per message of a record's size: the best of some repeats, the tests taking turns.

    Two processes that spin are the first to suffer when anybody else wants a core, and what counts is what they can do.
    """
    found: dict[str, Any] = {}
    for repeat in range(case["repeats"]):
        try:
            times = perftest.microseconds(
                program, turns(perftest.TESTS, repeat), case["bytes"], asked["perftest_seconds"]
            )
        except RuntimeError as error:
            return {**found, "failed": str(error)}
        found = {test: min(value, found.get(test, value)) for test, value in times.items()}
    return found


# ---- steps with and without compute


def _hidden(comm: Communicator, asked: dict[str, Any]) -> dict[str, Any]:
    """workload -> compute ms -> contestant -> what its steps cost; "none" has no buffer."""
    results: dict[str, Any] = {}
    # One after the other, so that ranks do not take each other for slow cores.
    counts: dict[float, Callable[[], None]] = {}
    for rank in range(comm.size):
        if rank == comm.rank:
            counts = {ms: matmul_loop(ms) if ms else _nothing for ms in asked["compute_ms"]}
        comm.barrier()
    for name in asked["workloads"]:
        workload = WORKLOADS[name]
        contestants = [_Contestant(comm, transport, workload) for transport in asked["transports"]]
        for contestant in contestants:
            contestant.fill()
        results[name] = {
            f"{ms:g}": _take_turns_hidden(comm, [_Contestant(comm, "none", workload), *contestants], counts[ms], asked)
            for ms in asked["compute_ms"]
        }
        for contestant in contestants:
            contestant.close()
    return results


def _nothing() -> None:
    """No compute at all."""


class _Contestant:
    """A buffer of one transport in a training loop without training; "none": the loop alone."""

    def __init__(self, comm: Communicator, transport: str, workload: Workload) -> None:
        self.name, self.workload, self._comm = transport, workload, comm
        self._buffer: RehearsalBuffer | None = None
        self.not_available = ""
        self._steps = 0
        labels = torch.arange(workload.batch_size) % workload.num_classes
        # Put together ahead of the timed calls.
        self._batches: list[dict[str, Any]] = [{**fields, "y": labels, "task": 0} for fields in pool(workload)]
        before = _engine_threads()
        if transport != "none":
            made = _make(
                comm,
                transport,
                fields=workload.field_map,
                capacity=workload.capacity,
                draws=workload.draws,
                candidates=workload.candidates,
                seed=1,
            )
            self._buffer, self.not_available = (None, made) if isinstance(made, str) else (made, "")
        self._threads = _engine_threads() - before
        self.forget()

    @property
    def runs(self) -> str:
        return self._buffer.transport if self._buffer is not None else ""

    def forget(self) -> None:
        """Start counting anew."""
        self.submit_ns: list[int] = []
        self.wait_ns: list[int] = []
        self.loop_ns: list[int] = []
        self.engine_ns = self.process_ns = self.steps_in_blocks = 0
        self.requests = self.remote_rows = self.counted = 0
        self.traffic_before = self._traffic()
        self.parts_us: dict[str, list[float]] = {}

    def fill(self) -> None:
        if self._buffer is None:
            return
        for _ in range(-(-self.workload.capacity // (self.workload.candidates * self._comm.size))):
            self._buffer.wait()
            self._buffer.submit(**self._next())
        self._buffer.drain()

    def block(self, compute: Callable[[], None], steps: int) -> None:
        before_all = self._timings()
        engine, process = self._engine_cpu_ns(), time.process_time_ns()
        begun = perf_counter_ns()
        for step in range(-_WARMUP, steps):
            batch = self._next()
            before = perf_counter_ns()
            if self._buffer is not None:
                self._buffer.submit(**batch)
            submitted = perf_counter_ns()
            compute()
            computed = perf_counter_ns()
            draws = self._buffer.wait() if self._buffer is not None else ()
            waited = perf_counter_ns()
            if step >= 0:
                self.submit_ns.append(submitted - before)
                self.wait_ns.append(waited - computed)
            for draw in draws:
                owners = Counter(draw["rank"].tolist())
                owners.pop(self._comm.rank, None)
                self.requests += len(owners)
                self.remote_rows += owners.total()
                self.counted += 1
        self.loop_ns.append(perf_counter_ns() - begun)
        self.engine_ns += self._engine_cpu_ns() - engine
        self.process_ns += time.process_time_ns() - process
        self.steps_in_blocks += steps + _WARMUP
        for part, mean in _means_us(before_all, self._timings()).items():
            self.parts_us.setdefault(part, []).append(mean)

    def summary(self) -> dict[str, Any]:
        """Of all ranks together; a collective."""
        steps = self.steps_in_blocks
        parts = self._timings()
        traffic = np.subtract(self._traffic(), self.traffic_before)
        mine: dict[str, Any] = {
            "submit": self.submit_ns,
            "wait": self.wait_ns,
            "engine": self.engine_ns / steps,
            "process": self.process_ns / steps,
            "traffic": (traffic / steps).tolist(),
            "requests": self.requests / max(self.counted, 1),
            "bytes": self.remote_rows / max(self.counted, 1) * self.workload.record_bytes,
            "parts": {part: float(np.median(means)) for part, means in self.parts_us.items()},
            "plan": 1000 * parts["plan"]["p50_ms"] if "plan" in parts else 0.0,
        }
        ranks = self._comm.allgather_object(mine)
        submit, wait = (np.concatenate([one[part] for one in ranks]) for part in ("submit", "wait"))
        return {
            "runs": self.runs,
            "steps": len(submit),
            "p50_us": percentile_us(submit + wait, 50),
            "p95_us": percentile_us(submit + wait, 95),
            "max_us": percentile_us(submit + wait, 100),
            "submit_p50_us": percentile_us(submit, 50),
            "wait_p50_us": percentile_us(wait, 50),
            "engine_cpu_us": float(np.mean([one["engine"] for one in ranks])) / 1000,
            "process_cpu_us": float(np.mean([one["process"] for one in ranks])) / 1000,
            "requests_per_step": float(np.mean([one["requests"] for one in ranks])),
            "remote_bytes_per_step": float(np.mean([one["bytes"] for one in ranks])),
            # Counted by UCX's side of the engine.
            "messages_per_step": float(np.mean([one["traffic"][0] for one in ranks])),
            "sent_bytes_per_step": float(np.mean([one["traffic"][1] for one in ranks])),
            "received_bytes_per_step": float(np.mean([one["traffic"][2] for one in ranks])),
            # A median over blocks of their means, so that what interrupted one of them does not count.
            "parts_us": {part: float(np.mean([one["parts"][part] for one in ranks])) for part in ranks[0]["parts"]},
            # Since the buffer was made.
            "plan_p50_us": float(np.median([one["plan"] for one in ranks])),
        }

    def close(self) -> None:
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None

    def _next(self) -> dict[str, Any]:
        self._steps += 1
        return self._batches[self._steps % len(self._batches)]

    def _timings(self) -> dict[str, dict[str, float]]:
        return self._buffer.timings() if self._buffer is not None else {}

    def _traffic(self) -> tuple[int, ...]:
        """Messages and bytes sent, and bytes received, through UCX; the engine tells them in its description only."""
        engine = self._buffer._native if self._buffer is not None else None
        lines = engine.describe_peers() if engine else []
        found = [numbers for line in lines if (numbers := _TRAFFIC.search(line))]
        return tuple(map(int, found[-1].groups())) if found else (0, 0, 0)

    def _engine_cpu_ns(self) -> int:
        return sum(_thread_cpu_ns(thread) for thread in self._threads)


def _take_turns_hidden(
    comm: Communicator, contestants: Sequence[_Contestant], compute: Callable[[], None], asked: dict[str, Any]
) -> dict[str, Any]:
    present = [contestant for contestant in contestants if not contestant.not_available]
    for contestant in present:
        contestant.forget()
    for block in range(-(-asked["steps"] // asked["block"])):
        for contestant in turns(present, block):
            comm.barrier()
            contestant.block(compute, asked["block"])
    bare = np.array(present[0].loop_ns)
    results: dict[str, Any] = {}
    for contestant in contestants:
        if contestant.not_available:
            results[contestant.name] = {"not_available": contestant.not_available}
            continue
        loops = comm.allgather_object(float(np.median(np.array(contestant.loop_ns) / bare)))
        results[contestant.name] = {**contestant.summary(), "loop_ratio": float(np.median(loops))}
    return results


# ---- many ranks


def _ranks(comm: Communicator, asked: dict[str, Any]) -> dict[str, Any]:
    """transport -> what ranks cost: start-up, memory, messages, time per step. The same share on every rank."""
    workload = WORKLOADS[asked["workload"]].with_capacity(asked["share"] * comm.size)
    pool(workload)
    return {transport: _many(comm, transport, workload, asked["steps"]) for transport in asked["transports"]}


def _many(comm: Communicator, transport: str, workload: Workload, steps: int) -> dict[str, Any]:
    # What torch and the launcher allocate when they are first used is no part of the buffer's memory.
    comm.allreduce(torch.zeros(1))
    comm.barrier()
    memory = [_memory_kib()]
    start = perf_counter_ns()
    contestant = _Contestant(comm, transport, workload)
    made_s = (perf_counter_ns() - start) / 1e9
    if contestant.not_available:
        return {"not_available": contestant.not_available}
    memory.append(_memory_kib())
    start = perf_counter_ns()
    contestant.block(_nothing, 1)  # the first draws: mappings and connections are made for them
    first_s = (perf_counter_ns() - start) / 1e9
    contestant.fill()
    comm.barrier()
    contestant.forget()
    loop_ms = []
    for _ in range(steps // 10):
        contestant.block(lambda: _one_sum(comm), 10)
        loop_ms.append(contestant.loop_ns[-1] / (10 + _WARMUP) / 1e6)
    memory.append(_memory_kib())
    result = contestant.summary()
    grown = [{name: later[name] - memory[0][name] for name in later} for later in memory[1:]]
    all_ranks = comm.allgather_object((made_s, first_s, float(np.median(loop_ms)), grown))
    contestant.close()
    comm.barrier()
    return {
        **result,
        "make_s": max(one[0] for one in all_ranks),
        "first_steps_s": max(one[1] for one in all_ranks),
        "step_ms": float(np.median([one[2] for one in all_ranks])),
        "payload_kib": workload.capacity // comm.size * workload.record_bytes / 1024,
        **{
            f"{when}_{name}_kib": float(np.median([one[3][index][name] for one in all_ranks]))
            for index, when in enumerate(("made", "used"))
            for name in memory[0]
        },
    }


def _one_sum(comm: Communicator) -> None:
    """In place of a training step's allreduce: ranks go at one pace."""
    comm.allreduce(torch.zeros(1), op="sum")


def _memory_kib() -> dict[str, int]:
    """anonymous: the process' own pages, of no file and no shared memory. private: all that no other process maps."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    lines += Path("/proc/self/status").read_text().splitlines()
    found = {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines if line.endswith("kB")}
    return {
        "anonymous": found["Anonymous"],
        "private": found["Private_Clean"] + found["Private_Dirty"],
        "page_tables": found["VmPTE"],
    }


# ---- all of them


def _make(comm: Communicator, transport: str, **arguments: Any) -> RehearsalBuffer | str:
    """A buffer, or why there is none; the same on every rank."""
    try:
        return RehearsalBuffer(**arguments, policy=_POLICY, transport=transport, dist=comm)
    except (ValueError, RuntimeError) as error:
        return str(error)


def _spent_ns(timings: dict[str, dict[str, float]], part: str) -> int:
    return round(timings[part]["total_ms"] * 1e6) if part in timings else 0


def _means_us(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> dict[str, float]:
    means = {}
    for name, part in after.items():
        count = part["count"] - before.get(name, {"count": 0})["count"]
        if count:
            means[name] = (_spent_ns(after, name) - _spent_ns(before, name)) / 1000 / count
    return means


def _engine_threads() -> set[int]:
    """This process' threads that belong to an engine."""
    threads = set()
    for folder in Path("/proc/self/task").iterdir():
        if (folder / "comm").read_text().startswith("reprise-"):
            threads.add(int(folder.name))
    return threads


def _thread_cpu_ns(thread: int) -> int:
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0])
