"""What modules per task cost on a ViT: batches of many tasks against those of one, and a training step against peft's.

    python benchmarks/peft_step.py --check
    python benchmarks/peft_step.py --quick

A ViT-S/16 with random weights and images of 224 x 224, modules in blocks 0 to 4, batches of 24. Inference: a task per
sample, of 10, against one task for all, with each technique. Training: a step of Hide (HiDe-LoRA's second stage, rank 5
on k and v, contrastive term included, Adam) against forward, backward and Adam with peft's LoRA of rank 5 on qkv, which
has as many parameters, and a head of its own; where peft cannot be imported, against the same written by hand. Sides
take turns; the median over turns of the ratio within a turn is judged. Memory: what the process grows by with each task
of 20 classes, once freed memory has been given back, against the bytes of the task's LoRA, head and statistics. --check
exits with 1 where a batch of many tasks takes more than 1.3 times, a training step more than 1.1 times as long, or a
task more than 1 % beside what it is made of.
--quick: smaller images and batches, few turns; the same limits.
"""

import argparse
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import psutil
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reprise.benchmarks.show import console
from reprise.cl_models.base import Parts, TaskLike, Tuning
from reprise.cl_models.peft.adapter import Adapter
from reprise.cl_models.peft.bank import Technique, attach
from reprise.cl_models.peft.hide import Hide
from reprise.cl_models.peft.lora import LoRA
from reprise.cl_models.peft.prefix import Prefix
from reprise.cl_models.peft.prompt import Prompt
from reprise.runtime import dist
from reprise.runtime.vision import ensure_torchvision
from reprise.train.grouped_gradients import GroupedGradients
from reprise.train.peft_options import PeftConfig
from reprise.train.stepper import Stepper

MIXED, TRAINING, RESIDENT = 1.3, 1.1, 1.01
BLOCKS, TASKS, RANK, CLASSES = (0, 1, 2, 3, 4), 10, 5, 200
TECHNIQUES: tuple[Technique, ...] = (LoRA(RANK), Prefix(20), Prompt(20), Adapter(5))


WARM_UP = 5  # tasks
NEW_CLASSES, PER_CLASS = 20, 30  # of a task, as ImageNet-R in 10 tasks has them at least


@dataclass(frozen=True)
class Size:
    """Images per batch, their pixels per side, the ViT's width, the turns that count, and tasks that memory is of."""

    batch: int = 24
    pixels: int = 224
    width: int = 384
    turns: int = 15
    tasks: int = 100


QUICK = Size(batch=8, pixels=112, turns=5)


@dataclass(frozen=True)
class Measured:
    """Milliseconds of each turn, of what is judged and of what it is compared with."""

    text: str
    ms: list[float]
    other_ms: list[float]
    limit: float

    @property
    def ratio(self) -> float:
        return median(mine / other for mine, other in zip(self.ms, self.other_ms, strict=True))


def measure(size: Size) -> Iterator[Measured]:
    x = torch.randn(size.batch, 3, size.pixels, size.pixels)
    y = torch.randint(NEW_CLASSES, (size.batch,))
    for technique in TECHNIQUES:
        text = f"inference, {type(technique).__name__}: {TASKS} tasks / one"
        yield Measured(text, *in_turns(*inference(technique, x, size), size.turns), MIXED)
    name, peers = peer()
    yield Measured(
        f"training step: Hide / {name}", *in_turns(ours(x, y, size), peers(x, y, size), size.turns), TRAINING
    )


def memory(size: Size) -> tuple[float, float]:
    """Bytes that a task adds, after a step of it: to the process, and of its module, head and statistics."""
    tasks = range(size.tasks + WARM_UP)
    model = hide(size, num_classes=NEW_CLASSES * len(tasks))
    x = torch.randn(2, 3, size.pixels, size.pixels)

    def of_tasks() -> int:
        return sum(value.nbytes for value in (*model.bank.parameters(), *model.heads.parameters())) + (
            model.statistics.bytes
        )

    resident, own = 0, 0
    for task in tasks:
        if task == WARM_UP:
            resident, own = resident_bytes(), of_tasks()
        classes = tuple(range(NEW_CLASSES * task, NEW_CLASSES * (task + 1)))
        model.begin_task(cast(TaskLike, SimpleNamespace(index=task, classes=classes)))
        model.observe(x, torch.tensor(classes[:2]), task)
        labels = torch.tensor(classes).repeat(PER_CLASS)
        model.statistics.fit(torch.randn(len(labels), size.width), labels, classes)
    model.parts.stepper.train_only([])
    return (resident_bytes() - resident) / size.tasks, (of_tasks() - own) / size.tasks


def resident_bytes() -> int:
    gc.collect()
    # Only the C library knows which of its free memory it still holds.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(psutil.Process().memory_info().rss)


def in_turns(mine: Callable[[], None], other: Callable[[], None], turns: int) -> tuple[list[float], list[float]]:
    """Each goes first in every second turn; one turn more than asked for, which does not count, warms up."""
    times: dict[Callable[[], None], list[float]] = {mine: [], other: []}
    for turn in range(turns + 1):
        for side in (mine, other) if turn % 2 else (other, mine):
            start = perf_counter()
            side()
            if turn:
                times[side].append(1000 * (perf_counter() - start))
    return times[mine], times[other]


def inference(technique: Technique, x: Tensor, size: Size) -> tuple[Callable[[], None], Callable[[], None]]:
    """A batch with a task per sample, and with one for all."""
    vit = frozen_vit(size).eval()
    bank = attach(vit, technique, BLOCKS)
    for task in range(TASKS):
        bank.add(task)
    ids = torch.arange(len(x)) % TASKS
    ids = ids[torch.randperm(len(x))]

    def run(active: int | Tensor) -> None:
        bank.activate(active)
        with torch.no_grad():
            vit(x)

    return lambda: run(ids), lambda: run(0)


def ours(x: Tensor, y: Tensor, size: Size) -> Callable[[], None]:
    model = hide(size, num_classes=CLASSES)
    model.begin_task(cast(TaskLike, SimpleNamespace(index=0, classes=tuple(range(NEW_CLASSES)))))

    def step() -> None:
        model.observe(x, y, 0)

    return step


def hide(size: Size, num_classes: int) -> Hide:
    """HiDe-LoRA's second stage on random weights, with Adam, as a run of main.py has it."""
    comm, vit, device = dist.init(), frozen_vit(size), torch.device("cpu")
    options = {**PeftConfig(rank=RANK, blocks=list(BLOCKS)).model_dump(), "alpha": 1.0, "targets": ["k", "v"]}
    options["init"] = "kaiming"
    bank = {"options": options, "blocks": list(BLOCKS)}
    selector = {"backbone": "", "classes": [], "snapshots": [], "bank": bank}

    def span(_: str) -> AbstractContextManager[None]:
        return nullcontext()

    adam = torch.optim.Adam(vit.parameters(), lr=1e-3)
    stepper = Stepper(vit, adam, GroupedGradients(comm), device=device, span=span, passes=1, half=None)
    parts = Parts(
        device=device,
        network=vit,
        stepper=stepper,
        loss=nn.CrossEntropyLoss(reduction="none"),
        augment=lambda x, _: x,
        view=lambda x: x,
        normalise=lambda x: x,
        augment_rng=torch.Generator(),
        buffer=None,
        options={},
        span=span,
        tuning=Tuning(options, comm, num_classes, 0, "", selector),
    )
    vit.train()
    return Hide(parts)


def peer() -> tuple[str, Callable[[Tensor, Tensor, Size], Callable[[], None]]]:
    """What a step of ours is compared with, by name."""
    try:
        package: Any = import_module("peft")
    except ImportError:
        return "by hand (peft cannot be imported)", by_hand

    def peft(x: Tensor, y: Tensor, size: Size) -> Callable[[], None]:
        config = package.LoraConfig(
            r=RANK, target_modules=["qkv"], layers_to_transform=list(BLOCKS), layers_pattern="blocks", lora_dropout=0.0
        )
        vit = package.inject_adapter_in_model(config, with_new_head(size))
        return training_step(vit, [parameter for parameter in vit.parameters() if parameter.requires_grad], x, y)

    return "peft", peft


class FusedLoRA(nn.Module):
    """The textbook's LoRA of a Linear, all of whose outputs it changes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Linear(linear.in_features, RANK, bias=False)
        self.b = nn.Linear(RANK, linear.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.linear(x) + self.b(self.a(x)) / RANK
        return changed


def by_hand(x: Tensor, y: Tensor, size: Size) -> Callable[[], None]:
    vit = with_new_head(size)
    for number in BLOCKS:
        vit.blocks[number].attn.qkv = FusedLoRA(vit.blocks[number].attn.qkv)
    return training_step(vit, [parameter for parameter in vit.parameters() if parameter.requires_grad], x, y)


def with_new_head(size: Size) -> Any:
    vit = frozen_vit(size)
    vit.head = nn.Linear(size.width, NEW_CLASSES)
    return vit


def training_step(vit: nn.Module, parameters: list[nn.Parameter], x: Tensor, y: Tensor) -> Callable[[], None]:
    vit.train()
    adam = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> None:
        adam.zero_grad()
        cross_entropy(vit(x), y).backward()
        adam.step()

    return step


def frozen_vit(size: Size) -> Any:
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=size.pixels, embed_dim=size.width, num_heads=6, num_classes=CLASSES)
    return vit.requires_grad_(False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is not kept")
    parser.add_argument("--quick", action="store_true", help="a small size, for slow machines")
    chosen = parser.parse_args(argv)
    size = QUICK if chosen.quick else Size()
    table = Table(
        title=f"{size.batch} images of {size.pixels}x{size.pixels}, {torch.get_num_threads()} threads",
        title_justify="left",
        box=box.MARKDOWN,
    )
    for name in ("", "ms", "compared with, ms", "ratio", "limit", ""):
        table.add_column(name, justify="left" if not name else "right")
    grown, own = memory(size)
    kept = grown <= RESIDENT * own
    for row in measure(size):
        passed = row.ratio <= row.limit
        kept &= passed
        times = (f"{median(row.ms):.1f}", f"{median(row.other_ms):.1f}")
        table.add_row(row.text, *times, f"{row.ratio:.3f}", f"{row.limit:g}", "pass" if passed else "FAIL")
    console().print(table)
    console().print(
        f"A task adds {grown / 1e3:.0f} kB to the process; its module, head and statistics are {own / 1e3:.0f} kB: "
        f"{grown / own:.3f}, limit {RESIDENT:g}: {'pass' if grown <= RESIDENT * own else 'FAIL'}"
    )
    return 0 if kept or not chosen.check else 1


if __name__ == "__main__":
    sys.exit(main())
