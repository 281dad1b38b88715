"""What one rank does in test_peft_statistics.py: `peft_statistics_worker.py FOLDER` writes what it found, per rank."""

import sys
from pathlib import Path

import torch

from reprise.cl_models.peft.alignment import Alignment, align
from reprise.cl_models.peft.statistics import ClassStatistics
from reprise.runtime import dist
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import UserError
from reprise.runtime.seeds import torch_generator

METHODS = ("covariance", "variance", "multi-centroid", "low-rank", "features")
CLASSES, D = (0, 1, 2, 3, 4), 6
SETTINGS = Alignment(epochs=3, lr=0.2, weight_decay=0.01, batch=8, steps_per_epoch=2)


def pooled() -> tuple[torch.Tensor, torch.Tensor]:
    """All samples, of classes of unequal sizes, the mean far from 0; class 4 has one."""
    random = torch_generator(0, "data")
    labels = torch.tensor([0] * 80 + [1] * 40 + [2] * 25 + [3] * 7 + [4])
    features = 1000 + 5 * labels[:, None] + torch.randn((len(labels), D), generator=random)
    order = torch.randperm(len(labels), generator=random)
    return features[order], labels[order]


def dealt(comm: Communicator) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's: the last of four has none, and of class 1 only rank 0 has any."""
    x, y = pooled()
    holders = min(comm.size, 3)
    own = torch.arange(len(y)) % holders == comm.rank
    own = torch.where(y == 1, torch.tensor(comm.rank == 0), own)
    return x[own], y[own]


def statistics(comm: Communicator) -> dict:
    found = {}
    for method in METHODS:
        stats = ClassStatistics(method, comm=comm, seed=5, centroids=4)
        x, y = dealt(comm)
        stats.fit(x, y, CLASSES)
        stats.fit(x - 7, y, CLASSES[:2], expert=3)
        state = stats.state_dict()
        state.pop("method")
        found[method] = {**state, "drawn": stats.sample(CLASSES, 10, torch_generator(1))[0]}
    return found


def refused(comm: Communicator) -> dict[str, str]:
    """What a mistake of the last rank alone raises here; afterwards collectives still match."""
    x, y = dealt(comm)
    last = comm.rank == comm.size - 1
    stats = ClassStatistics("variance", comm=comm, seed=5)
    said = {}
    try:
        bad = torch.full((1, D), float("nan") if last else 0.0)
        stats.fit(torch.cat([x, bad]), torch.cat([y, torch.tensor([2])]), CLASSES)
    except UserError as error:
        said["not finite"] = str(error)
    try:
        stats.fit(x, y, CLASSES, expert=int(last))
    except RuntimeError as error:
        said["another expert"] = str(error)
    stats.fit(x, y, CLASSES)
    return said


def alignment(comm: Communicator) -> dict:
    """A head before and after, and what it got in each step. The first feature of class c is always c + 1."""
    labels = torch.arange(5).repeat_interleave(20)
    features = torch.randn((100, D), generator=torch_generator(2))
    features[:, 0] = labels + 1
    stats = ClassStatistics("variance", comm=comm, seed=5, ridge=1e-10)
    stats.fit(features[comm.rank :: comm.size], labels[comm.rank :: comm.size], CLASSES)
    torch.manual_seed(3)
    head = torch.nn.Linear(D, 7)
    before = [parameter.detach().clone() for parameter in head.parameters()]
    inputs: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach().clone()))
    real = 3 * comm.rank  # ranks have unequally much
    random = torch_generator(4, "align", comm.rank)
    loss = align(head, stats, CLASSES, SETTINGS, comm=comm, generator=random, extra=(features[:real], labels[:real]))
    return {"before": before, "after": [p.detach() for p in head.parameters()], "inputs": inputs, "loss": loss}


def main(folder: Path) -> None:
    comm = dist.init()
    found = {"statistics": statistics(comm), "alignment": alignment(comm), "refused": refused(comm)}
    torch.save(found, folder / f"rank_{comm.rank}.pt")
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
