"""A Chrome trace of a run's last steps: the spans of all ranks on one axis of time, for ui.perfetto.dev and the like.

In the Trace Event Format: complete events for what is nested in its thread, asynchronous ones for waiting in a queue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns, time_ns
from typing import Any

from reprise.report.timeline import ENGINE_PARTS, STEP
from reprise.runtime.spans import KEPT

STEPS = 200  # at most

Intervals = Mapping[str, Sequence[tuple[int, int]]]
"""Part -> begin and end of each of its last times, oldest first, in ns of perf_counter_ns."""

_TRAINING, _ENGINE = 0, 1
_THREADS = {_TRAINING: "training", _ENGINE: "rehearsal engine"}


@dataclass(frozen=True)
class Event:
    """Some part of a rank's work, in ns of the node's clock. Clocks of nodes are as far apart as NTP leaves them."""

    part: str
    thread: int
    begin_ns: int
    end_ns: int


def last_steps(spans: Intervals, buffer: Intervals, *, one_thread: bool) -> list[Event]:
    """What this rank did since its STEPS-th last step began, or since when everything was kept.

    spans: of the training loop. buffer: `RehearsalBuffer.recent_timings()`. one_thread: the buffer works in the
    training's thread.
    """
    # The engine leaves out one that it is writing.
    full = [times[0][1] for times in (*spans.values(), *buffer.values()) if len(times) >= KEPT - 1]
    complete = max(full, default=0)
    steps = [step for step in spans.get(STEP, ()) if step[0] >= complete][-STEPS:]
    if not steps:
        return []
    clock = time_ns() - perf_counter_ns()
    parts = [(part, _TRAINING, times) for part, times in spans.items()]
    for part, times in buffer.items():
        parts.append((part, _ENGINE if part in ENGINE_PARTS and not one_thread else _TRAINING, times))
    return [
        Event(part, thread, begin + clock, end + clock)
        for part, thread, times in parts
        for begin, end in times
        if begin >= steps[0][0]
    ]


def chrome(ranks: Sequence[Sequence[Event]]) -> dict[str, Any]:
    """The content of trace.json, from the events of each rank. Its microseconds begin with the first of them."""
    start = min((event.begin_ns for events in ranks for event in events), default=0)
    content: list[dict[str, Any]] = []
    for rank, events in enumerate(ranks):
        content.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}})
        for thread in sorted({event.thread for event in events}):
            name = {"name": _THREADS[thread]}
            content.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": thread, "args": name})
        # Outer before inner, where both begin at once.
        for number, event in enumerate(sorted(events, key=lambda event: (event.begin_ns, -event.end_ns))):
            common = {"name": event.part, "cat": _THREADS[event.thread], "pid": rank, "tid": event.thread}
            begin, end = (event.begin_ns - start) / 1e3, (event.end_ns - start) / 1e3
            if event.part == "queue":  # of two steps at once, neither within the other
                content.append({**common, "ph": "b", "id": number, "ts": begin})
                content.append({**common, "ph": "e", "id": number, "ts": end})
            else:
                content.append({**common, "ph": "X", "ts": begin, "dur": end - begin})
    return {"traceEvents": content, "displayTimeUnit": "ms"}
