"""One rank of test_strategies.py: every strategy trains for 20 steps on this rank's own samples, and says what it saw.

`strategy_worker.py FOLDER`: rank_<k>.pt holds, by strategy, weights before and after and every step's rows.
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
OPTIONS = {"alpha": 0.7, "beta": 0.4, "joint_mean": False, "reset_state_dict": False}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def copied(columns) -> dict[str, torch.Tensor]:
    return {name: columns[name].clone() for name in columns}


def train(name: str, comm) -> dict:
    """Weights before and after, and of each step the new samples and every draw."""
    kind = STRATEGIES.get(name)
    bare = network()
    before = copied(bare.state_dict())
    model, optimizer = comm.data_parallel(bare, torch.optim.SGD(bare.parameters(), lr=LR))
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
            stepper=Stepper(model, optimizer, comm, device=torch.device("cpu"), span=lambda _: nullcontext()),
            loss=nn.CrossEntropyLoss(reduction="none"),
            augment=lambda x, _: x,
            view=lambda x: x,
            normalise=lambda x: x,
            augment_rng=torch_generator(1, "augment", comm.rank),
            buffer=buffer,
            options=OPTIONS,
            span=lambda _: nullcontext(),
            stored="views" if kind.stores_outputs else "raw",
        )
    )
    random = torch_generator(2, "samples", comm.rank)
    new, projected = [], 0.0
    for step in range(STEPS):
        # Two tasks that want opposite things, so that gradients conflict.
        x = torch.randn((BATCH, FEATURES), generator=random)
        y = (x[:, 0] > 0).long() if step < STEPS // 2 else (x[:, 0] < 0).long()
        new.append({"x": x, "y": y})
        metrics = strategy.observe(x, y, 0)
        projected += float(metrics.get("projected", 0.0))
    if buffer is not None:
        buffer.close()
    return {"before": before, "after": copied(bare.state_dict()), "new": new, "drawn": drawn, "projected": projected}


def main(folder: Path) -> None:
    comm = dist.init(deterministic=True)
    torch.save({name: train(name, comm) for name in STRATEGIES.names()}, folder / f"rank_{comm.rank}.pt")
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
