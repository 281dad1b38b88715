"""What checkpoints cost: incremental ones written in the background, beside a full one that training waits for.

    python benchmarks/checkpoint_cost.py --check --json checkpoints.json

resnet18 on 16 + 8 images of 32x32 with a full buffer of --gib per rank, samples of several sizes. Before a checkpoint
the buffer gets what 500 steps would have brought it. "filling": every candidate is stored, as in a buffer's first
steps; "steady": the buffer has seen ten times what it holds, so that one candidate in ten is. Blocks of training steps
take turns: alone, with a checkpoint begun at their start, with a full save there. What a block takes beyond the block
alone of the same turn, with what is left to write after it, is the cost; it is shown as a share of 500 steps, beside
how much of the buffer the newest file has.
All sizes take half an hour on 2 cores; --sizes chooses among them.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import torch
from rich.progress import Progress as Bar

from reprise import backbone
from reprise.benchmarks.buffer import environment
from reprise.benchmarks.job import positive
from reprise.benchmarks.show import console, table
from reprise.buffer import Field, RehearsalBuffer, snapshot
from reprise.cl_models.base import ContinualModel
from reprise.runtime import dist, tensor_file
from reprise.runtime.files import atomic_write
from reprise.runtime.stop import StopRequest
from reprise.train import checkpoint
from reprise.train.checkpoint import Progress
from reprise.train.checkpointer import Checkpointer, Every

BACKBONE = "resnet18"
LIMIT = 0.01
INTERVAL = 500  # steps
CANDIDATES = 8
SIZES = {"3 KiB": 3 << 10, "12 KiB": 12 << 10, "588 KiB": 588 << 10}  # CIFAR, 64x64 images, ImageNet in float32
PHASES = ("filling", "steady")
BATCH, REPLAYED = 16, 8


class Training:
    """A network, its optimiser and a rehearsal buffer, stepping."""

    def __init__(self, sample_bytes: int, gib: float) -> None:
        self.network = backbone.build(BACKBONE, num_classes=10, sample_shape=(3, 32, 32), config={})
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)
        self.parts = SimpleNamespace(augment_rng=torch.Generator())
        self.bytes = sample_bytes
        self.capacity = int(gib * 2**30) // sample_bytes
        self.buffer = RehearsalBuffer(
            {"x": Field((sample_bytes,), torch.uint8)},
            self.capacity,
            draws=(REPLAYED,),
            policy="fifo",
            candidates=CANDIDATES,
            dist=dist.init(),
        )
        self.x = torch.randn(BATCH + REPLAYED, 3, 32, 32)
        self.y = torch.arange(BATCH + REPLAYED) % 10
        self.steps = 0
        self.offer(self.capacity)

    def offer(self, samples: int) -> None:
        """Have so many samples stored."""
        for first in range(0, samples, CANDIDATES):
            rows = min(CANDIDATES, samples - first)
            self.buffer.submit(
                x=torch.full((rows, self.bytes), first % 251, dtype=torch.uint8), y=torch.zeros(rows).long()
            )
            self.buffer.wait()
        self.buffer.drain()

    def step(self) -> None:
        self.steps += 1
        self.buffer.wait()
        self.buffer.submit(x=torch.empty((0, self.bytes), dtype=torch.uint8), y=torch.empty(0, dtype=torch.int64))
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.network(self.x), self.y).backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}


def block(training: Training, checkpointer: Checkpointer, steps: int, *, begins: bool) -> float:
    """Seconds of so many steps, with a checkpoint begun after the first one or none, and of finishing it."""
    started = time.perf_counter()
    for step in range(steps):
        training.step()
        # The checkpointer is told of two kinds of steps: one at which a checkpoint is due, and others.
        checkpointer.after_step(
            INTERVAL if begins and not step else 1, lambda: Progress({}, epoch=1, steps=training.steps), dict
        )
    checkpointer.settle()
    return time.perf_counter() - started


def full_save(training: Training, folder: Path, steps: int) -> float:
    """The same with everything written before training goes on."""
    started = time.perf_counter()
    training.buffer.save(folder / "buffer")
    tensor_file.save(folder / "model.pt", training.state_dict())
    for _ in range(steps):
        training.step()
    return time.perf_counter() - started


def measure(sample_bytes: int, gib: float, steps: int, turns: int, tick: Any) -> dict[str, Any]:
    """Per phase: medians over turns, as shares of the time of INTERVAL steps, and what is written."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=".") as name, StopRequest() as stop:
        folder = Path(name)
        training = Training(sample_bytes, gib)
        checkpointer = Checkpointer(
            folder / "checkpoints",
            cast(ContinualModel, training),  # as much of one as a checkpoint asks for
            training.buffer,
            dist.init(),
            every=Every(steps=INTERVAL),
            keep=2,
            stop=stop,
        )
        block(training, checkpointer, 2, begins=True)
        for phase in PHASES:
            changed = min(training.capacity, INTERVAL * CANDIDATES // (1 if phase == "filling" else 10))
            background, blocking, written = [], [], []
            for _ in range(turns):
                alone = block(training, checkpointer, steps, begins=False)
                training.offer(changed)
                interval = alone / steps * INTERVAL
                background.append((block(training, checkpointer, steps, begins=True) - alone) / interval)
                newest = snapshot.read_manifest(checkpoint.find(folder)[0] / checkpoint.BUFFER)
                written.append(newest["shards"][0][-1]["rows"] * sample_bytes / 2**20)
                blocking.append((full_save(training, folder / "full", steps) - alone) / interval)
                shutil.rmtree(folder / "full")
                tick()
            found[phase] = {
                "written_mib": median(written),
                "step_ms": 1e3 * alone / steps,
                "background": median(background),
                "full": median(blocking),
                "turns": {"background": background, "full": blocking, "written_mib": written},
            }
        checkpointer.close()
        training.buffer.close()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="of the buffer (1)")
    parser.add_argument("--steps", type=positive, default=60, help="of a block (60)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of a sample (all)")
    parser.add_argument("--turns", type=positive, default=3, help="(3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument(
        "--check", action="store_true", help=f"exit with 1 where a checkpoint costs {LIMIT:.0%}% or more"
    )
    chosen = parser.parse_args(argv)
    results = {}
    with Bar(transient=True) as bar:
        task = bar.add_task("checkpoints", total=len(chosen.sizes) * len(PHASES) * chosen.turns)
        for name in chosen.sizes:
            results[name] = measure(SIZES[name], chosen.gib, chosen.steps, chosen.turns, lambda: bar.advance(task))
    header = [
        "sample",
        "phase",
        "written\nMiB",
        "step\nms",
        "background\n% of 500 steps",
        "full, waited for\n%",
        f"< {LIMIT:.0%}",
    ]
    rows, good = [], True
    for name, phases in results.items():
        for phase, cost in phases.items():
            passed = cost["background"] < LIMIT
            good = good and passed
            shares = [f"{100 * cost[key]:.2f}" for key in ("background", "full")]
            rows.append(
                [
                    name,
                    phase,
                    f"{cost['written_mib']:.0f}",
                    f"{cost['step_ms']:.0f}",
                    *shares,
                    "pass" if passed else "FAIL",
                ]
            )
    table(f"Checkpoints every {INTERVAL} steps, {chosen.gib:g} GiB per rank", header, rows, console(), left=2)
    if chosen.json:
        with atomic_write(chosen.json) as stream:
            json.dump({"command": sys.argv, "environment": environment(), "sizes": results}, stream, indent=1)
    return 0 if good or not chosen.check else 1


if __name__ == "__main__":
    sys.exit(main())
