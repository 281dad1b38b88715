"""One rank of test_buffer_dead_peer.py: `dead_peer_worker.py FOLDER VICTIM IMPLEMENTATION TRANSPORT DETERMINISTIC`.

The victim kills itself in mid-loop.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch

from reprise.buffer import Field, RehearsalBuffer
from reprise.runtime import dist
from reprise.runtime.files import atomic_write

DIES_AT, LAST = 20, 60
PACE_S = 0.01  # nothing else keeps ranks together that read each other's memory
PATIENCE_S = 10


class Kept(logging.Handler):
    """Every message of level ERROR."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main(folder: Path, victim: int, implementation: str, transport: str, deterministic: bool) -> None:
    kept = Kept()
    logging.getLogger().addHandler(kept)
    comm = dist.init()
    buffer = RehearsalBuffer(
        fields={"id": Field((), torch.int64)},
        capacity=40 * comm.size,
        draws=(4,),
        implementation=implementation,
        transport=transport,
        deterministic=deterministic,
    )
    assert buffer.implementation == implementation
    before, after, sizes = set(), set(), set()
    step, noticed = 0, None
    while step < LAST + (noticed or 0):
        if step == DIES_AT and comm.rank == victim:
            comm.allgather_object("dying")  # nobody is so far ahead that all its steps are over
            os.kill(os.getpid(), signal.SIGKILL)
        if step == DIES_AT:
            comm.allgather_object("living")
            dead_since = time.monotonic()
        ids = torch.arange(6) + 1000 * step
        batch = buffer.augment(id=ids, y=ids % 3)
        drawn = batch["rank"][batch.sizes[0] :].tolist()
        if step < DIES_AT:
            before |= set(drawn)
        elif noticed is None:
            if kept.messages:
                noticed = step
            assert time.monotonic() < dead_since + PATIENCE_S, "the death goes unnoticed"
            step = min(step, LAST - 2)
        elif step > noticed + 2:
            after |= set(drawn)
            sizes.add(len(drawn))
        step += 1
        time.sleep(PACE_S)
    report = {
        "errors": kept.messages,
        "ranks_before": sorted(before),
        "ranks_after": sorted(after),
        "draw_sizes_after": sorted(sizes),
    }
    # In one step: the launcher may end this process at any moment.
    with atomic_write(folder / f"rank-{comm.rank}.json") as stream:
        json.dump(report, stream)
    buffer.close()
    buffer.close()
    comm.abort(3)  # there is no orderly end without the dead rank


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5] == "True")
