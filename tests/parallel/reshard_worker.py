"""One rank of test_reshard.py: restores each policy's buffer (if saved), goes on with the stream, saves, reports.

`reshard_worker.py FOLDER FIRST LAST IMPLEMENTATION`: the samples FIRST .. LAST - 1 are dealt to the ranks in turn.
Sample i has label i // ranks % 3, so that every rank sees every class.
"""

import json
import sys
from pathlib import Path

import torch

from reprise.buffer import Field, RehearsalBuffer
from reprise.runtime import dist

CAPACITY = 48
BATCH = 12  # samples over all ranks; divisible by 1, 2, 3 and 4 ranks
FIELDS = {"id": Field((), torch.int64), "u16": Field((5,), torch.uint16), "bf16": Field((2, 3), torch.bfloat16)}


def columns_of(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "id": ids,
        "u16": (ids * 31 + torch.arange(5).view(5, *[1] * ids.ndim)).T.to(torch.uint16).contiguous(),
        "bf16": (ids % 250).to(torch.bfloat16).view(-1, 1, 1).expand(-1, 2, 3),
    }


def check(columns) -> list[int]:
    ids = columns["id"]
    for name, expected in columns_of(ids).items():
        assert columns[name].tolist() == expected.tolist(), name
    assert columns["task"].tolist() == (ids // 10).tolist()
    return ids.tolist()


def stored(buffer: RehearsalBuffer) -> list[int]:
    return check(buffer.state_dict()["engine"]["shard"]["columns"])


def main(folder: Path, first: int, last: int, implementation: str) -> None:
    comm = dist.init()
    report = {}
    for policy in ("class_balanced", "reservoir", "fifo"):
        arguments = {"fields": FIELDS, "capacity": CAPACITY, "draws": (1000,), "policy": policy}
        arguments |= {"implementation": implementation, "deterministic": True}
        mine = {}
        if first:
            buffer = RehearsalBuffer.restore(folder / policy, **arguments)
            mine |= {"restored": stored(buffer), "seen_at_start": buffer.seen}
            assert buffer.implementation == implementation
            (draw,) = buffer.wait()
            assert len(check(draw)) == buffer.global_size
        else:
            buffer = RehearsalBuffer(**arguments)
            buffer.wait()
        for start in range(first, last, BATCH):
            ids = torch.arange(start + comm.rank, start + BATCH, comm.size)
            buffer.submit(y=ids // comm.size % 3, task=ids // 10, **columns_of(ids))
            (draw,) = buffer.wait()
            assert abs(float(draw["weight"].mean()) - 1) < 1e-5
        mine |= {"stored": stored(buffer), "seen": buffer.seen, "drawn_everything": sorted(check(draw))}
        mine["class_counts"] = list(buffer.class_counts().values())
        buffer.save(folder / policy)
        buffer.close()
        everyone = comm.allgather_object(mine)
        report[policy] = {key: [entry[key] for entry in everyone] for key in mine}
    if comm.rank == 0:
        (folder / "report.json").write_text(json.dumps(report))
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
