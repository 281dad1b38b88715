"""One rank of test_kills.py: draws from all ranks until FOLDER/stop appears, whoever is killed meanwhile.

`kill_worker.py FOLDER TRANSPORT DETERMINISTIC`. Appends to FOLDER/rank-K.lost what it reports, at once, as it may be
killed itself; leaves FOLDER/rank-K.ready after its first full draw and FOLDER/rank-K.json at the end.
"""

import json
import logging
import sys
from pathlib import Path

import torch

from reprise.buffer import Field, RehearsalBuffer
from reprise.runtime import dist
from reprise.runtime.files import atomic_write

WORDS = 1536  # 12 KiB per sample
BATCH = 8


class Appended(logging.Handler):
    """Every message of level ERROR, a line each in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        with open(self._path, "a") as stream:
            stream.write(record.getMessage() + "\n")


def pattern(ids: torch.Tensor) -> torch.Tensor:
    return ids.view(-1, 1) * 1_000_003 + torch.arange(WORDS)


def main(folder: Path, transport: str, deterministic: bool) -> None:
    comm = dist.init()
    logging.getLogger().addHandler(Appended(folder / f"rank-{comm.rank}.lost"))
    buffer = RehearsalBuffer(
        fields={"x": Field((WORDS,), torch.int64)},
        capacity=32 * comm.size,  # so small that records are overwritten all the time
        draws=(16,),
        policy="fifo",
        transport=transport,
        deterministic=deterministic,
    )
    assert buffer.implementation == "standard"
    steps = torn = 0
    ranks: set[int] = set()
    # In deterministic mode nobody may be left waiting for a step that another does not take: the last one ends it all.
    while not (folder / "stop").exists():
        ids = torch.arange(BATCH) + (comm.rank * 1_000_000_000 + steps * BATCH)
        buffer.submit(x=pattern(ids), y=ids % 5)
        (draw,) = buffer.wait()
        drawn = draw["x"][:, 0] // 1_000_003
        torn += int((draw["x"] != pattern(drawn)).any(dim=1).sum()) + int((draw["y"] != drawn % 5).sum())
        torn += int((draw["rank"] != drawn // 1_000_000_000).sum())
        ranks = set(draw["rank"].tolist())
        steps += 1
        if steps == 20:
            (folder / f"rank-{comm.rank}.ready").touch()
    with atomic_write(folder / f"rank-{comm.rank}.json") as stream:
        json.dump({"steps": steps, "torn": torn, "ranks": sorted(ranks)}, stream)
    buffer.close()
    comm.abort(0)  # there is no orderly end without the dead


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True")
