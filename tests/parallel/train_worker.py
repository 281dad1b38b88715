"""One rank of a training job for the tests: main.py with a fault or a check built in, chosen by the first argument.

train_worker.py plain ARGUMENTS...        main.py as it is
train_worker.py kill:RANK:STEP ...        rank RANK is killed (-9) before step STEP
train_worker.py kill-once:RANK:STEP ...   the same, unless the job was started anew by its launcher
train_worker.py die:RANK:SECONDS ...      rank RANK is killed (-9) so long after its first step began; -1: every rank
train_worker.py SIGTERM:RANK:STEP ...     rank RANK gets the signal before step STEP
train_worker.py all-SIGTERM:RANK:STEP ... it and all processes that it has started
train_worker.py refuse:RANK:NUMBER ...    rank RANK cannot write its part of the NUMBER-th checkpoint
train_worker.py labels ...                pixels say their label; every row trained on is checked
"""

import os
import signal
import sys
import threading

import psutil
import torch

from reprise.buffer import RehearsalBuffer
from reprise.main import main
from reprise.runtime import dist, tensor_file
from reprise.runtime.errors import UserError
from reprise.scenarios.task import ArrayDataset
from reprise.train.stepper import Stepper


def before_step(rank: int, step: int, action) -> None:
    minimise, steps = Stepper.minimise, iter(range(1_000_000))

    def acting(self, loss, *columns):
        if next(steps) == step and (rank < 0 or dist.current().rank == rank):
            action()
        return minimise(self, loss, *columns)

    Stepper.minimise = acting


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def send_to_all(number: int) -> None:
    for process in [*psutil.Process().children(recursive=True), psutil.Process()]:
        process.send_signal(number)


def die_after(seconds: float) -> None:
    timer = threading.Timer(seconds, send, [signal.SIGKILL])
    timer.daemon = True
    timer.start()


def refuse(rank: int, number: int) -> None:
    save, begun = tensor_file.save, []

    def refusing(path, state):
        if path.name.startswith("rank_"):
            begun.append(path)
        if len(begun) == number and dist.current().rank == rank:
            raise UserError(f"cannot write '{path}': the test refuses it; free some space or choose another folder")
        return save(path, state)

    tensor_file.save = refusing


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
    kind, *numbers = fault.split(":")
    if kind == "kill" or (kind == "kill-once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"):
        before_step(int(numbers[0]), int(numbers[1]), lambda: send(signal.SIGKILL))
    elif kind == "die":
        before_step(int(numbers[0]), 0, lambda: die_after(float(numbers[1])))
    elif kind.startswith("all-"):
        before_step(int(numbers[0]), int(numbers[1]), lambda: send_to_all(signal.Signals[kind.removeprefix("all-")]))
    elif kind.startswith("SIG"):
        before_step(int(numbers[0]), int(numbers[1]), lambda: send(signal.Signals[kind]))
    elif kind == "refuse":
        refuse(*map(int, numbers))
    elif kind == "labels":
        check_labels()
    sys.exit(main(arguments))
