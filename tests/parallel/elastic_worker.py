"""One rank of an elastic job: main.py, with the samples in every rank's memory written down at each change of ranks.

elastic_worker.py FOLDER HOST STEP ARGUMENTS...   the worker on HOST is killed (-9) in its step STEP, once per FOLDER
FOLDER gets left.json (what the killed one had stored), kept-N-RANK.json and dealt-N-RANK.json of the N-th change.
"""

import json
import os
import signal
import sys
from pathlib import Path

import reprise.buffer
from reprise.buffer import RehearsalBuffer
from reprise.main import main
from reprise.runtime import dist
from reprise.train import regroup
from reprise.train.stepper import Stepper


def samples(columns) -> list[str]:
    """Each stored sample with all that belongs to it, as text."""
    rows = zip(columns["x"].flatten(1).tolist(), columns["y"].tolist(), columns["task"].tolist(), strict=True)
    return [json.dumps(row) for row in rows]


class Watch:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changes = 0
        self.buffer: RehearsalBuffer | None = None

    def write(self, name: str, texts: list[str]) -> None:
        (self.folder / name).write_text(json.dumps(texts))

    def stored(self) -> list[str]:
        assert self.buffer is not None
        return samples(self.buffer.state_dict()["engine"]["shard"]["columns"])

    def watch(self) -> None:
        augment, keep, take_up = RehearsalBuffer.augment, regroup.keep, reprise.buffer.take_up

        def augmenting(buffer, **batch):
            self.buffer = buffer
            return augment(buffer, **batch)

        def keeping(buffer):
            self.buffer = buffer
            self.changes += 1
            own = self.stored()
            kept = keep(buffer)
            self.write(f"kept-{self.changes}-{dist.current().rank}.json", own)
            return kept

        def taking_up(buffer, kept, comm):
            losses = take_up(buffer, kept, comm)
            self.buffer = buffer
            change = max(comm.allgather_object(self.changes))
            self.changes = change
            self.write(f"dealt-{change}-{comm.rank}.json", self.stored())
            comm.barrier()
            return losses

        RehearsalBuffer.augment = augmenting
        regroup.keep = keeping
        reprise.buffer.take_up = taking_up

    def die_in(self, step: int) -> None:
        minimise, steps = Stepper.minimise, iter(range(1_000_000))

        def dying(stepper, loss, *columns):
            if next(steps) == step and not (self.folder / "left.json").exists():
                self.write("left.json", self.stored())
                os.kill(os.getpid(), signal.SIGKILL)
            return minimise(stepper, loss, *columns)

        Stepper.minimise = dying


if __name__ == "__main__":
    folder, host, step, *arguments = sys.argv[1:]
    watch = Watch(Path(folder))
    watch.watch()
    if os.environ.get("HOROVOD_HOSTNAME") == host:
        watch.die_in(int(step))
    sys.exit(main(arguments))
