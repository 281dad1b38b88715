"""One rank of test_torn.py: writes and draws at full speed until the ranks have read enough of each other.

`torn_worker.py FOLDER TRANSPORT WORDS READS`: samples of WORDS 64-bit words that all say which sample it is, so that a
sample that is not whole shows; at least READS of them, over all ranks, are drawn from another rank.
"""

import json
import sys
from pathlib import Path

import torch

from reprise.buffer import Field, RehearsalBuffer
from reprise.runtime import dist
from reprise.runtime.files import atomic_write

PER_RANK = 10**12
BATCH, DRAWN = 16, 24
BLOCK = 50  # steps between two looks at how much all ranks have read


def main(folder: Path, transport: str, words: int, reads: int) -> None:
    comm = dist.init()
    buffer = RehearsalBuffer(
        fields={"x": Field((words,), torch.int64)},
        capacity=2 * BATCH * comm.size,  # half of what can be drawn is being overwritten
        draws=(DRAWN,),
        policy="fifo",
        transport=transport,
    )
    assert buffer.implementation == "standard"
    batches = [torch.empty((BATCH, words), dtype=torch.int64) for _ in range(3)]
    total = {"remote": 0, "torn": 0, "steps": 0}
    while total["remote"] < reads:
        mine = torch.zeros(2, dtype=torch.int64)
        for step in range(total["steps"], total["steps"] + BLOCK):
            ids = torch.arange(BATCH) + (comm.rank * PER_RANK + step * BATCH)
            batch = batches[step % 3]
            batch.copy_(ids.view(-1, 1).expand(-1, words))
            buffer.submit(x=batch, y=ids % 7)
            (draw,) = buffer.wait()
            ids = draw["x"][:, 0]
            torn = (draw["x"] != ids.view(-1, 1)).any(dim=1)
            torn |= (draw["y"] != ids % 7) | (draw["rank"] != ids // PER_RANK)
            mine += torch.stack([(draw["rank"] != comm.rank).sum(), torn.sum()])
        mine = comm.allreduce(mine, op="sum")
        total["remote"] += int(mine[0])
        total["torn"] += int(mine[1])
        total["steps"] += BLOCK
    if comm.rank == 0:
        with atomic_write(folder / "total.json") as stream:
            json.dump(total, stream)
    buffer.close()
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
