"""One rank of a training job for the tests: main.py with a fault or a check built in, chosen by the first argument.

train_worker.py plain ARGUMENTS...        main.py as it is
train_worker.py kill:RANK:STEP ...        rank RANK is killed (-9) before step STEP
train_worker.py labels ...                pixels say their label; every row trained on is checked
"""

import os
import signal
import sys

import torch

from reprise.buffer import RehearsalBuffer
from reprise.main import main
from reprise.runtime import dist
from reprise.scenarios.task import ArrayDataset
from reprise.train.stepper import Stepper


def kill_at(rank: int, step: int) -> None:
    minimise, steps = Stepper.minimise, iter(range(1_000_000))

    def dying(self, loss, *columns):
        if next(steps) == step and dist.current().rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return minimise(self, loss, *columns)

    Stepper.minimise = dying


def check_labels() -> None:
    gather, augment = ArrayDataset.gather, RehearsalBuffer.augment

    def labelled(self, *arguments):
        x, y = gather(self, *arguments)
        return x.copy_((y.view(-1, 1, 1, 1) + 100).to(torch.uint8).expand_as(x)), y

    def checked(self, **batch):
        out = augment(self, **batch)
        assert torch.equal(out["x"].flatten(1).long(), (out["y"] + 100).view(-1, 1).expand(-1, 64))
        assert torch.equal(out["task"], out["y"] // 2)
        remote = out["rank"][out.sizes[0] :] != dist.current().rank
        print(f"checked {len(out)} rows, {int(remote.sum())} from other ranks", flush=True)
        return out

    ArrayDataset.gather = labelled
    RehearsalBuffer.augment = checked


if __name__ == "__main__":
    fault, *arguments = sys.argv[1:]
    if fault.startswith("kill:"):
        kill_at(*map(int, fault.split(":")[1:]))
    elif fault == "labels":
        check_labels()
    sys.exit(main(arguments))
