"""Resident memory and idle time of a buffer, each in a process of its own: `python -m reprise.benchmarks.memory`.

It prints one line of JSON. Called by benchmarks/buffer.py through `measure_memory`.
"""

import gc
import json
import subprocess
import sys
import time
from typing import Any

import psutil

from reprise.benchmarks.contestants import Ours
from reprise.benchmarks.workloads import WORKLOADS, Trace, pool, trace

UNTOUCHED_CAPACITY = 200_000
"""cifar samples that are asked for, of which next to none are stored."""


def measure_memory(kind: str, workload: str, implementation: str, seconds: float = 0.0) -> dict[str, Any]:
    """kind: "resident" (a full buffer), "untouched" (an empty one) or "idle" (CPU over `seconds`)."""
    command = [sys.executable, "-m", "reprise.benchmarks.memory", kind, workload, implementation, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def _warmed_up(implementation: str) -> None:
    """Run a small buffer first: libraries that load on first use are no part of a buffer's memory."""
    workload = WORKLOADS["tiny"]
    contestant = Ours(implementation, workload)
    contestant.fill(trace(workload, 0, 0))
    contestant.close()


def _full(workload_name: str, implementation: str) -> dict[str, Any]:
    workload = WORKLOADS[workload_name]
    pool(workload)
    stream = Trace(workload, 0, 20)
    _warmed_up(implementation)
    contestant = Ours(implementation, workload)
    before = _resident()
    contestant.fill(stream)
    for index in range(stream.fill_steps, stream.fill_steps + 20):
        contestant.step(stream.batch(index))
    grown = _resident() - before
    payload = contestant.buffer.bytes_per_rank
    return {"runs": contestant.runs, "payload_bytes": payload, "overhead_bytes": grown - payload}


def _untouched(implementation: str) -> dict[str, Any]:
    workload = WORKLOADS["cifar"]
    pool(workload)
    stream = Trace(workload.with_capacity(workload.candidates), 0, 0)
    _warmed_up(implementation)
    contestant = Ours(implementation, workload.with_capacity(UNTOUCHED_CAPACITY))
    before = _resident()
    contestant.fill(stream)
    stored = len(contestant.buffer) * workload.record_bytes
    payload = contestant.buffer.bytes_per_rank
    return {"runs": contestant.runs, "payload_bytes": payload, "grown_bytes": _resident() - before - stored}


def _idle(workload_name: str, implementation: str, seconds: float) -> dict[str, Any]:
    workload = WORKLOADS[workload_name]
    stream = Trace(workload, 0, 10)
    contestant = Ours(implementation, workload)
    contestant.fill(stream)
    contestant.submit(stream.batch(stream.fill_steps))
    contestant.buffer.drain()
    before = time.process_time()
    time.sleep(seconds)
    return {"runs": contestant.runs, "seconds": seconds, "core_share": (time.process_time() - before) / seconds}


def main(kind: str, workload: str, implementation: str, seconds: str) -> None:
    result = {
        "resident": lambda: _full(workload, implementation),
        "untouched": lambda: _untouched(implementation),
        "idle": lambda: _idle(workload, implementation, float(seconds)),
    }[kind]()
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
