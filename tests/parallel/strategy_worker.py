"""One rank of test_strategies.py: every strategy trains for 20 steps on this rank's own samples, and says what it saw.

`strategy_worker.py FOLDER WAY...`: rank_<k>.pt holds, by way of averaging gradients and by strategy, weights before and
after and every step's rows and loss.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from reprise.buffer import Field, RehearsalBuffer
from reprise.cl_models import STRATEGIES, Parts
from reprise.runtime import dist
from reprise.runtime.seeds import torch_generator
from reprise.train.stepper import Stepper

STEPS, BATCH, REPRESENTATIVES, FEATURES, CLASSES, LR = 20, 4, 5, 6, 3, 0.05
OVERFLOW_AT = 7
WAYS = {
    "plain": {},
    "predivided": {"gradient_predivide_factor": 2.0},
    "fp16": {"compression": "fp16"},
    "passes": {"backward_passes_per_step": 2},
    "adasum": {"op": "adasum"},
    "overflow": {},
    "inserted": {},
}
OPTIONS = {"alpha": 0.7, "beta": 0.4, "joint_mean": False, "reset_state_dict": False}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def copied(columns) -> dict[str, torch.Tensor]:
    return {name: columns[name].clone() for name in columns}


def train(name: str, comm, way: str = "plain") -> dict:
    """Weights before and after, and of each step the new samples, every draw, the loss and the weights it left."""
    kind = STRATEGIES.get(name)
    bare = network()
    before = copied(bare.state_dict())
    model, optimizer = comm.data_parallel(bare, torch.optim.SGD(bare.parameters(), lr=LR), **WAYS[way])
    fields = {"x": Field((FEATURES,), torch.float32)}
    if kind.stores_outputs:
        fields["logits"] = Field((CLASSES,), torch.float32)
    draws = (REPRESENTATIVES,) * len(kind.draws)
    buffer = RehearsalBuffer(fields, 64 * comm.size, draws=draws, deterministic=True) if draws else None
    drawn: list[list[dict[str, torch.Tensor]]] = []
    if buffer is not None:
        wait, augment = buffer.wait, buffer.augment

        def waiting():
            found = wait()
            drawn.append([copied(draw) for draw in found])
            return found

        def augmenting(**batch):
            joined = augment(**batch)
            drawn.append([{column: joined[column][BATCH:].clone() for column in joined}])
            return joined

        buffer.wait, buffer.augment = waiting, augmenting  # type: ignore[method-assign]
    strategy = kind(
        Parts(
            device=torch.device("cpu"),
            network=bare,
            stepper=Stepper(
                model,
                optimizer,
                comm,
                device=torch.device("cpu"),
                span=lambda _: nullcontext(),
                passes=WAYS[way].get("backward_passes_per_step", 1),
                half=torch.float16 if way == "overflow" else None,
            ),
            loss=nn.CrossEntropyLoss(reduction="none"),
            augment=lambda x, _: x,
            view=lambda x: x,
            normalise=lambda x: x,
            augment_rng=torch_generator(1, "augment", comm.rank),
            buffer=buffer,
            options=OPTIONS,
            span=lambda _: nullcontext(),
            stored="views" if kind.stores_outputs else "raw",
            insertion="task" if way == "inserted" else "step",
        )
    )
    random = torch_generator(2, "samples", comm.rank)
    new, losses, steps, projected = [], [], [], 0.0
    for step in range(STEPS):
        # Two tasks that want opposite things, so that gradients conflict.
        x = torch.randn((BATCH, FEATURES), generator=random)
        y = (x[:, 0] > 0).long() if step < STEPS // 2 else (x[:, 0] < 0).long()
        if way == "overflow" and step == OVERFLOW_AT and comm.rank == 1:
            x = x * 1e30
        if way == "inserted" and step == STEPS // 2:
            for batch in new:
                strategy.memorise(batch["x"], batch["y"], 0)
            del drawn[step:]
        new.append({"x": x, "y": y})
        metrics = strategy.observe(x, y, step // (STEPS // 2) if way == "inserted" else 0)
        losses.append(float(metrics["loss"]))
        steps.append(copied(bare.state_dict()))
        projected += float(metrics.get("projected", 0.0))
    if buffer is not None:
        buffer.close()
    return {
        "before": before,
        "after": steps[-1],
        "steps": steps,
        "losses": losses,
        "new": new,
        "drawn": drawn,
        "projected": projected,
    }


def strategies(way: str) -> list[str]:
    """Those that can train this way."""
    if way == "overflow":
        return ["Vanilla"]  # a memory would hold the samples that overflow
    if way == "inserted":
        return [name for name in whole_networks() if STRATEGIES.get(name).draws]
    return [name for name in whole_networks() if way != "adasum" or not STRATEGIES.get(name).changes_gradients]


def whole_networks():
    """Strategies that train a whole network; those that tune modules of one are in test_peft.py."""
    return [name for name in STRATEGIES.names() if not STRATEGIES.get(name).tunes]


def main(folder: Path, ways: list[str]) -> None:
    comm = dist.init(deterministic=True)
    results = {way: {name: train(name, comm, way) for name in strategies(way)} for way in ways}
    torch.save(results, folder / f"rank_{comm.rank}.pt")
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
