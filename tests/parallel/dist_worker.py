"""What one rank does in the tests of runtime/dist; started by test_dist.py under every launcher, never imported by it.

`dist_worker.py FOLDER checks` runs every check_* function and writes one result per rank; the other modes fail on
purpose, in the way their name says.
"""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reprise.runtime import dist
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import PeerLost, SharedUserError, UserError

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


def check_ranks(comm: Communicator) -> None:
    assert comm.allgather_object(comm.rank) == list(range(comm.size))
    assert comm.allgather_object(comm.local_rank) == list(range(comm.size))  # one node
    assert comm.local_size == comm.size
    assert comm is dist.current() is dist.init()


def check_threads_are_shared_out(comm: Communicator) -> None:
    cores = len(os.sched_getaffinity(0))
    assert torch.get_num_threads() <= cores
    if cores >= os.cpu_count() and comm.size > 1:  # the launcher has bound nobody, so cores are shared by all
        assert torch.get_num_threads() == max(1, cores // comm.size)


def check_allreduce(comm: Communicator) -> None:
    ranks = range(comm.size)
    for dtype in DTYPES:
        if dtype == torch.bool:
            continue
        mine = torch.tensor([[comm.rank + 1, 2, 3 * comm.rank]], dtype=dtype)
        before = mine.clone()
        for op, expected in {
            "sum": [sum(r + 1 for r in ranks), 2 * comm.size, sum(3 * r for r in ranks)],
            "min": [1, 2, 0],
            "max": [comm.size, 2, 3 * (comm.size - 1)],
        }.items():
            result = comm.allreduce(mine, op=op, name=f"test.{dtype}")
            assert (result.dtype, result.shape) == (dtype, (1, 3))
            assert result.double().tolist() == [expected], (dtype, op, result)
        assert torch.equal(mine, before)
        if dtype.is_floating_point:
            expected = sum(r + 1 for r in ranks) / comm.size
            assert comm.allreduce(mine).double()[0, 0].item() == expected
    assert comm.allreduce(torch.tensor([comm.rank == 0, True]), op="min").tolist() == [comm.size == 1, True]
    assert comm.allreduce(torch.tensor(float(comm.rank)), op="max").item() == comm.size - 1  # no dimensions
    assert comm.allreduce(torch.zeros(0)).shape == (0,)
    big = torch.arange(24.0).reshape(4, 6).t() * (comm.rank + 1)  # not contiguous
    assert torch.equal(comm.allreduce(big, op="sum"), torch.arange(24.0).reshape(4, 6).t() * sum(r + 1 for r in ranks))


def check_means_of_integers_are_refused(comm: Communicator) -> None:
    for dtype in (torch.int64, torch.bool):
        with pytest.raises(UserError, match=r"'x'.*op='sum'"):
            comm.allreduce(torch.ones(2, dtype=dtype), name="x")


def check_allgather(comm: Communicator) -> None:
    for dtype in DTYPES:
        mine = (torch.arange(6).reshape(2, 3) + comm.rank).to(dtype)
        expected = torch.stack([(torch.arange(6).reshape(2, 3) + rank).to(dtype) for rank in range(comm.size)])
        gathered = comm.allgather(mine)
        assert gathered.dtype == dtype
        assert torch.equal(gathered, expected), dtype
    assert comm.allgather(torch.tensor(comm.rank)).tolist() == list(range(comm.size))
    assert comm.allgather(torch.zeros(0, 3)).shape == (comm.size, 0, 3)


def check_objects(comm: Communicator) -> None:
    mine = {"rank": comm.rank, "text": "x" * (10 ** (comm.rank + 1))}
    gathered = comm.allgather_object(mine, name="objects")
    assert [entry["rank"] for entry in gathered] == list(range(comm.size))
    assert [len(entry["text"]) for entry in gathered] == [10 ** (rank + 1) for rank in range(comm.size)]
    for root in range(comm.size):
        assert comm.broadcast_object(mine if comm.rank == root else None, root=root)["rank"] == root


def check_broadcast_tensors(comm: Communicator) -> None:
    for root in {0, comm.size - 1}:
        scale = 1 if comm.rank == root else 0
        tensors = [(torch.arange(5) * scale).to(dtype) for dtype in DTYPES]
        tensors += [torch.tensor(3 * scale), torch.arange(6.0).reshape(2, 3).t() * scale, torch.zeros(0)]
        addresses = [tensor.data_ptr() for tensor in tensors]
        comm.broadcast_tensors(tensors, root=root)
        assert [tensor.data_ptr() for tensor in tensors] == addresses
        for dtype, tensor in zip(DTYPES, tensors, strict=False):
            assert torch.equal(tensor, torch.arange(5).to(dtype)), dtype
        assert tensors[-3].item() == 3
        assert torch.equal(tensors[-2], torch.arange(6.0).reshape(2, 3).t())


def _rows(count: int, sender: int, receiver: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    width = int(torch.Size(shape).numel())
    values = torch.arange(count * width) + 10 * sender + receiver
    return (values % 2 if dtype == torch.bool else values % 100).to(dtype).reshape(count, *shape)


def check_alltoall(comm: Communicator) -> None:
    """Every dtype, several row shapes, splits that change from step to step under the same name, also all zero."""
    patterns: list[Callable[[int, int], int]] = [
        lambda s, r: s + 2 * r,
        lambda s, r: 0 if s == 0 else 1,  # rank 0 sends nothing
        lambda s, r: 3 if r == 0 else 0,  # only rank 0 receives
        lambda s, r: 0,
        lambda s, r: 40 * (s + 1),
    ]
    for dtype, shape in zip(DTYPES, itertools.cycle([(), (3,), (2, 5)]), strict=False):
        for pattern in patterns:
            splits = [pattern(comm.rank, r) for r in range(comm.size)]
            mine = torch.cat([_rows(n, comm.rank, r, dtype, shape) for r, n in enumerate(splits)])
            received, counts = comm.alltoall(mine, splits, name="rows")
            expected = [_rows(pattern(s, comm.rank), s, comm.rank, dtype, shape) for s in range(comm.size)]
            assert (counts.dtype, received.dtype) == (torch.int64, dtype)
            assert counts.tolist() == [len(part) for part in expected]
            assert torch.equal(received, torch.cat(expected)), (dtype, shape, splits)


def check_agree(comm: Communicator) -> None:
    assert comm.agree(lambda: comm.rank * 2) == comm.rank * 2

    def only_the_last_fails() -> None:
        if comm.rank == comm.size - 1:
            raise UserError("disk is full")

    with pytest.raises(SharedUserError) as caught:
        comm.agree(only_the_last_fails)
    assert str(caught.value) == (f"rank {comm.size - 1}: " if comm.size > 1 else "") + "disk is full"


class Net(nn.Module):
    """Two heads of which a step may use one, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))
        self.norm = nn.BatchNorm1d(8, affine=False)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])
        self.norm.eval()

    def forward(self, x: Tensor, head: int = 0) -> Tensor:
        self.norm.eval()  # batch statistics differ between a rank's part and the joined batch
        return self.heads[head](self.norm(self.body(x)))


def _data(comm: Communicator, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(joined batch, its targets, indices of this rank's equal part)."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8 * comm.size, 6, generator=generator), torch.randint(3, (8 * comm.size,), generator=generator)
    return x, y, torch.arange(8) + 8 * comm.rank


def _reference(comm: Communicator, head: int = 0) -> tuple[Net, dict[str, Tensor]]:
    torch.manual_seed(1)
    net = Net()
    x, y, _ = _data(comm)
    nn.functional.cross_entropy(net(x, head), y).backward()
    return net, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def _wrapped(comm: Communicator, **options: object) -> tuple[Net, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1 + comm.rank)  # rank 0 has the reference's weights, the others must be given them
    net = Net()
    model, optimizer = comm.data_parallel(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), **options)
    return net, model, optimizer


def check_gradients_are_those_of_the_joined_batch(comm: Communicator) -> None:
    _, expected = _reference(comm)
    net, model, optimizer = _wrapped(comm)
    x, y, mine = _data(comm)
    for _ in range(2):  # the second time with the buckets and caches of the first
        optimizer.zero_grad(set_to_none=True)
        with comm.guard("backward"):
            nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
        with comm.averaged_gradients(optimizer):
            for name, p in net.named_parameters():
                if name in expected:
                    torch.testing.assert_close(p.grad, expected[name])
    before = net.heads[0].weight.detach().clone()
    with comm.averaged_gradients(optimizer):
        optimizer.step()
    torch.testing.assert_close(net.heads[0].weight, before - 0.1 * expected["heads.0.weight"])


def check_step_inside_does_not_average_again(comm: Communicator) -> None:
    """Clipping inside averaged_gradients must survive: gradients set by hand are the ones that are stepped with."""
    net, model, optimizer = _wrapped(comm)
    x, y, mine = _data(comm)
    nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with comm.averaged_gradients(optimizer):
        for p in net.parameters():
            p.grad = torch.full_like(p, comm.rank + 1.0)
        optimizer.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, before[name] - 0.1 * (comm.rank + 1.0))


def check_all_state_comes_from_rank_0(comm: Communicator) -> None:
    """Parameters, running statistics and optimiser state (rehearsal.md 6.1-13)."""
    torch.manual_seed(comm.rank)
    net = Net()
    net.norm.running_mean.fill_(comm.rank + 5.0)
    net.norm.num_batches_tracked.fill_(comm.rank + 7)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01 * (comm.rank + 1))
    if comm.rank == 0:  # as after reading a checkpoint on rank 0 alone
        net(torch.randn(4, 6)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    _, optimizer = comm.data_parallel(net, optimizer)
    assert net.norm.running_mean.tolist() == [5.0] * 8
    assert net.norm.num_batches_tracked.item() == 7
    assert optimizer.param_groups[0]["lr"] == 0.01
    state = optimizer.state[net.body[0].weight]
    assert state["step"].item() == 1
    digest = hashlib.sha256()
    for tensor in [*net.parameters(), *net.buffers(), state["exp_avg"], state["exp_avg_sq"]]:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    assert len(set(comm.allgather_object(digest.hexdigest()))) == 1


def check_passes_add_up(comm: Communicator) -> None:
    """Gradients of several passes are summed, not averaged, and go over the network once (rehearsal.md 6.1-17)."""
    _, expected = _reference(comm)
    net, model, optimizer = _wrapped(comm, backward_passes_per_step=2)
    x, y, mine = _data(comm)
    for _ in range(2):
        optimizer.zero_grad()
        with comm.accumulate(model):
            nn.functional.cross_entropy(model(x[mine[:4]]), y[mine[:4]]).backward()
        with comm.guard("backward"):
            nn.functional.cross_entropy(model(x[mine[4:]]), y[mine[4:]]).backward()
        with comm.averaged_gradients(optimizer):
            for name, p in net.named_parameters():
                if name in expected:
                    torch.testing.assert_close(p.grad, 2 * expected[name])


def check_unused_parameters(comm: Communicator) -> None:
    """A head that no rank, or only one rank, uses in a step: no hang, and a rank that used it gives its share."""
    _, expected = _reference(comm)
    net, model, optimizer = _wrapped(comm)
    x, y, mine = _data(comm)
    for step in range(3):
        head = step % 2 if comm.rank == 0 else 0  # in step 1 rank 0 alone uses head 1
        optimizer.zero_grad()
        with comm.guard("backward"):
            nn.functional.cross_entropy(model(x[mine], head), y[mine]).backward()
        with comm.averaged_gradients(optimizer):
            other = net.heads[1].weight.grad
            if step == 1:
                assert other is not None
                assert other.abs().sum() > 0
            else:
                assert other is None or other.abs().sum() == 0
                torch.testing.assert_close(net.heads[0].weight.grad, expected["heads.0.weight"])


def check_two_averages_in_one_step(comm: Communicator) -> None:
    """A-GEM: the gradient of the memory is averaged and kept, then that of the batch; only then a step."""
    _, expected = _reference(comm)
    net, model, optimizer = _wrapped(comm)
    x, y, mine = _data(comm)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
        with comm.averaged_gradients(optimizer):
            torch.testing.assert_close(net.body[0].weight.grad, expected["body.0.weight"])
    with comm.averaged_gradients(optimizer):
        optimizer.step()


def check_fp16_compression(comm: Communicator) -> None:
    _, expected = _reference(comm)
    net, model, optimizer = _wrapped(comm, compression="fp16")
    x, y, mine = _data(comm)
    nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
    with comm.averaged_gradients(optimizer):
        grad = net.body[0].weight.grad
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected["body.0.weight"], rtol=1e-2, atol=1e-3)
        if comm.size > 1:
            assert not torch.equal(grad, expected["body.0.weight"])  # it did go through 16 bits


def check_predivide(comm: Communicator) -> None:
    if comm.name == "torch":
        with pytest.raises(SharedUserError, match=r"gradient_predivide_factor=2\.0: only Horovod has this"):
            _wrapped(comm, gradient_predivide_factor=2.0)
        return
    net, model, optimizer = _wrapped(comm, gradient_predivide_factor=2.0)
    _, expected = _reference(comm)
    x, y, mine = _data(comm)
    nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
    with comm.averaged_gradients(optimizer):
        torch.testing.assert_close(net.body[0].weight.grad, expected["body.0.weight"])


def check_adasum(comm: Communicator) -> None:
    """Over MPI it trains and leaves equal weights everywhere; where there is none it is refused in one line, once."""
    if comm.backend == "gloo":
        with pytest.raises(SharedUserError, match=r"^use_adasum[^\n]*$"):
            _wrapped(comm, op="adasum")
        return
    net, model, optimizer = _wrapped(comm, op="adasum")
    before = net.body[0].weight.detach().clone()
    x, y, mine = _data(comm)
    for _ in range(2):
        optimizer.zero_grad()
        with comm.guard("backward"):
            nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
        with comm.averaged_gradients(optimizer):
            optimizer.step()
    assert not torch.equal(net.body[0].weight, before)
    gathered = comm.allgather(net.body[0].weight)
    assert all(torch.equal(one, gathered[0]) for one in gathered)


def check_wrapping_twice_is_refused(comm: Communicator) -> None:
    """Horovod never removes its hooks, so a second optimiser over the same parameters would average twice."""
    if comm.name != "horovod":
        return
    net, _, _ = _wrapped(comm)
    with pytest.raises(RuntimeError, match="twice"):
        comm.data_parallel(net, torch.optim.SGD(net.parameters(), lr=0.1))


def gradient_bits(comm: Communicator) -> str:
    """Digest of gradients averaged over several steps; equal from run to run in deterministic mode."""
    torch.manual_seed(5)
    net = nn.Sequential(*(nn.Linear(48, 48) for _ in range(12)))
    model, optimizer = comm.data_parallel(net, torch.optim.SGD(net.parameters(), lr=0.05))
    generator = torch.Generator().manual_seed(100 + comm.rank)
    digest = hashlib.sha256()
    for _ in range(12):
        x = torch.randn(16, 48, generator=generator)
        time.sleep(0.005 * torch.rand(1).item())  # timing differs between runs; the bits must not
        optimizer.zero_grad()
        model(x).square().mean().backward()
        with comm.averaged_gradients(optimizer):
            for p in net.parameters():
                digest.update(p.grad.numpy().tobytes())
            optimizer.step()
    return digest.hexdigest()


# ---- modes


def checks(comm: Communicator, folder: Path) -> None:
    results = {}
    for name, check in list(globals().items()):
        if not name.startswith("check_"):
            continue
        try:
            check(comm)
        except Exception:
            results[name] = traceback.format_exc()
            _write(comm, folder, results)
            comm.abort(1)  # the others may wait for this rank
        results[name] = "ok"
    results["launcher"], results["name"], results["backend"] = comm.launcher, comm.name, comm.backend
    results["bits"] = gradient_bits(comm)
    _write(comm, folder, results)
    comm.shutdown()
    comm.shutdown()


def _write(comm: Communicator, folder: Path, results: dict[str, str]) -> None:
    (folder / f"{comm.rank}.json").write_text(json.dumps(results))


def bits(comm: Communicator, folder: Path) -> None:
    """The digest alone, to compare with that of `checks`, which has had other collectives before it."""
    _write(comm, folder, {"bits": gradient_bits(comm)})


def dead(comm: Communicator, folder: Path) -> None:
    """The last rank dies while the others wait for it in a collective."""
    comm.barrier()
    if comm.rank == comm.size - 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        comm.allreduce(torch.ones(3), name="deadly")
    except PeerLost as error:
        (folder / f"{comm.rank}.txt").write_text(str(error))
        print(f"PeerLost: {error}", file=sys.stderr, flush=True)
        comm.shutdown()
        comm.abort(3)


def dead_backward(comm: Communicator, folder: Path) -> None:
    """The last rank dies before its backward pass."""
    _, model, optimizer = _wrapped(comm)
    x, y, mine = _data(comm)
    if comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with comm.guard("backward"):
            nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
        with comm.averaged_gradients(optimizer):
            optimizer.step()
    except PeerLost as error:
        (folder / f"{comm.rank}.txt").write_text(str(error))
        print(f"PeerLost: {error}", file=sys.stderr, flush=True)
        comm.abort(3)


def exits(comm: Communicator, folder: Path) -> None:
    """The last rank ends by an exception while the others wait; nobody may hang, also without abort()."""
    comm.barrier()
    if comm.rank == comm.size - 1:
        raise SystemExit(4)
    try:
        comm.allreduce(torch.ones(3), name="alone")
    except PeerLost as error:
        (folder / f"{comm.rank}.txt").write_text(str(error))
        raise SystemExit(3) from error


def stuck(comm: Communicator, folder: Path) -> None:
    """The last rank never joins a collective."""
    if comm.rank == comm.size - 1:
        time.sleep(60)
    comm.allreduce(torch.ones(3), name="never")


def frozen(comm: Communicator, folder: Path) -> None:
    """The last rank stands still as a whole for longer than Gloo waits by itself, then goes on."""
    if comm.rank == comm.size - 1:
        subprocess.Popen(["sh", "-c", f"kill -STOP {os.getpid()}; sleep 33; kill -CONT {os.getpid()}"])
    time.sleep(1)
    assert comm.allreduce(torch.ones(3), "sum", name="late").tolist() == [comm.size] * 3
    (folder / f"rank{comm.rank}.txt").write_text("went on")


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    try:
        comm = dist.init(deterministic=mode in ("checks", "bits"))
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    modes = {run.__name__: run for run in (checks, bits, dead, dead_backward, exits, stuck, frozen)}
    modes[mode](comm, folder)


if __name__ == "__main__":
    main()
