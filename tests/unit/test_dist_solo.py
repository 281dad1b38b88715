"""runtime/dist in one process: detection of launchers, choice of the engine, the watchdog, the solo communicator."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest
import torch

from reprise.runtime import dist
from reprise.runtime.dist import launcher, peers, wire
from reprise.runtime.dist.launcher import Launch, detect
from reprise.runtime.dist.watchdog import Watchdog
from reprise.runtime.errors import SharedUserError, UserError

MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}
MPI_LOCAL = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
JOB = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
STEP = {**JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
HOROVOD = {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
TORCH = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "1"}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No launcher's variables, and no communicator left from or for other tests."""
    for name in [*MPI, *MPI_LOCAL, *STEP, *HOROVOD, *TORCH, "TORCHELASTIC_RUN_ID", "PMI_RANK", "PMI_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("REPRISE_DIST", raising=False)
    monkeypatch.delenv("REPRISE_TIMEOUT", raising=False)
    monkeypatch.setattr(dist, "_current", None)
    yield monkeypatch
    if dist.is_initialized():
        dist.current().shutdown()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch("python", 0, 1, 0, 1)),
        (HOROVOD, Launch("horovodrun", 1, 2, 1, 2)),
        ({**MPI, **MPI_LOCAL}, Launch("mpirun", 3, 8, 1, 2)),
        (MPI, Launch("mpirun", 3, 8)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}, Launch("mpirun", 1, 2, 1)),
        (STEP, Launch("srun", 1, 4, 1)),
        ({**STEP, "PMI_RANK": "1", "PMI_SIZE": "4"}, Launch("srun", 1, 4, 1)),  # srun --mpi=pmi2
        ({**STEP, "PMI_RANK": "5", "PMI_SIZE": "8"}, Launch("mpirun", 5, 8)),  # mpirun that srun started
        ({**STEP, **MPI}, Launch("mpirun", 3, 8)),
        ({**STEP, **TORCH, "TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0"}, Launch("torchrun", 2, 4, 0)),
        (TORCH, Launch("torchrun", 2, 4)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Launch("python", 0, 1, 0, 1)),  # some shell's variables
    ],
)
def test_launcher_is_recognised(environment: dict[str, str], expected: Launch) -> None:
    assert detect(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        JOB,  # an sbatch script: the job has 4 tasks, this process is alone
        {**JOB, "SLURM_STEP_ID": str(0xFFFFFFFA)},  # the shell of salloc
        {**JOB, "SLURM_STEP_ID": str(0xFFFFFFFB)},  # the batch step
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun -n1 --pty bash
    ],
)
def test_a_script_inside_a_slurm_job_is_alone(environment: dict[str, str]) -> None:
    assert detect(environment).launcher == "python"


def test_a_bad_number_from_the_environment_is_named() -> None:
    with pytest.raises(UserError, match="RANK='two'"):
        detect({**TORCH, "RANK": "two"})


def test_detection_needs_no_library() -> None:
    """main.py asks for the rank before torch or Horovod may be loaded by the parsing of options."""
    assert launcher.detect is detect
    assert "torch" not in launcher.__dict__


def test_init_is_idempotent_until_shutdown(alone: pytest.MonkeyPatch) -> None:
    assert not dist.is_initialized()
    comm = dist.current()
    assert dist.init() is dist.current() is comm
    assert (comm.rank, comm.size, comm.local_rank, comm.local_size) == (0, 1, 0, 1)
    assert (comm.name, comm.launcher, comm.backend) == ("solo", "python", "none")
    comm.shutdown()
    comm.shutdown()
    assert not dist.is_initialized()
    with dist.init() as second:
        assert second is not comm
        assert second.allreduce(torch.tensor([2.0])).tolist() == [2.0]
    assert not dist.is_initialized()


def test_deterministic_cannot_be_asked_for_too_late(alone: pytest.MonkeyPatch) -> None:
    dist.init()
    with pytest.raises(AssertionError, match="first init"):
        dist.init(deterministic=True)


@pytest.mark.parametrize("value", ["Horovod", "mpi", ""])
def test_an_unknown_engine_is_refused_with_the_list(alone: pytest.MonkeyPatch, value: str) -> None:
    alone.setenv("REPRISE_DIST", value)
    with pytest.raises(UserError, match=f"REPRISE_DIST='{value}'.*horovod, torch, solo"):
        dist.init()


def test_solo_can_be_forced_under_a_launcher(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("REPRISE_DIST", "solo")
    for name, value in MPI.items():
        alone.setenv(name, value)
    comm = dist.init()
    assert (comm.name, comm.launcher, comm.rank, comm.size) == ("solo", "mpirun", 0, 1)


@pytest.mark.parametrize(("environment", "name"), [(HOROVOD, "horovodrun"), (MPI, "mpirun"), (STEP, "srun")])
def test_without_horovod_several_processes_never_run_separately(
    alone: pytest.MonkeyPatch, environment: dict[str, str], name: str
) -> None:
    for variable, value in environment.items():
        alone.setenv(variable, value)
    alone.setitem(sys.modules, "horovod", None)
    alone.setitem(sys.modules, "horovod.torch", None)
    with pytest.raises(UserError, match=rf"^{name} started \d .*import of horovod.*use torchrun or install Horovod"):
        dist.init()
    assert not dist.is_initialized()


def test_torch_without_a_meeting_point_says_what_to_set(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("REPRISE_DIST", "torch")
    for variable, value in MPI.items():
        alone.setenv(variable, value)
    with pytest.raises(UserError, match="needs MASTER_ADDR"):
        dist.init()


def test_torch_alone_needs_no_meeting_point(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("REPRISE_DIST", "torch")
    with dist.init() as comm:
        assert (comm.name, comm.size, comm.backend) == ("torch", 1, "nccl" if torch.cuda.is_available() else "gloo")
        assert comm.allgather_object("x") == ["x"]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_bad_time_limit_is_refused(alone: pytest.MonkeyPatch, value: str) -> None:
    alone.setenv("REPRISE_TIMEOUT", value)
    with pytest.raises(UserError, match=f"REPRISE_TIMEOUT='{value}'"):
        dist.init()


def test_argument_beats_environment_for_the_time_limit(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("REPRISE_TIMEOUT", "soon")
    assert dist.init(timeout=5.0)._watchdog.limit_s == 5.0
    with pytest.raises(UserError, match=r"timeout='0\.0'"):
        dist._limit_s(0.0)


def test_agree_passes_results_and_shares_mistakes(alone: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UserError("no such file 'x'")

    comm = dist.init()
    assert comm.agree(lambda: 7) == 7
    with pytest.raises(SharedUserError, match=r"^no such file 'x'$"):
        comm.agree(fail)


def test_a_raised_error_that_is_not_a_lost_peer_passes_a_guard_unchanged(alone: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"^mine$"), dist.init().guard("backward"):
        raise RuntimeError("mine")


def test_the_watchdog_ends_a_process_that_waits_too_long() -> None:
    script = textwrap.dedent("""
        import time
        from reprise.runtime.dist.watchdog import Watchdog
        watchdog = Watchdog(0.5, "rank 1 of 4 on here")
        for _ in range(3):
            watchdog.disarm(watchdog.arm("short"))
        time.sleep(0.8)  # the thread finds nothing to watch and parks
        watchdog.arm("allgather 'rows'")
        time.sleep(60)
    """)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 75
    assert len(ended.stderr.splitlines()) == 1
    assert "rank 1 of 4 on here: allgather 'rows' has waited" in ended.stderr


def test_the_watchdog_leaves_nested_and_finished_entries_alone() -> None:
    watchdog = Watchdog(0.3, "here")
    for _ in range(6):
        outer = watchdog.arm("outer")
        inner = watchdog.arm("inner")
        time.sleep(0.1)
        watchdog.disarm(outer)
        watchdog.disarm(inner)
    assert watchdog._entries == {}  # and this process still runs


def test_cores_are_shared_only_by_ranks_that_may_run_on_them() -> None:
    def peer(rank: int, host: str, cores: set[int]) -> peers.Peer:
        return peers.Peer(rank, host, 1, frozenset(cores))

    free = [peer(rank, "a", set(range(8))) for rank in range(4)]
    assert peers.fair_share_of_cores(free[0], free) == 2
    bound = [peer(rank, "a", {2 * rank, 2 * rank + 1}) for rank in range(4)]
    assert peers.fair_share_of_cores(bound[0], bound) == 2
    apart = [peer(rank, f"host{rank}", set(range(8))) for rank in range(4)]
    assert peers.fair_share_of_cores(apart[0], apart) == 8
    crowded = [peer(rank, "a", {0, 1}) for rank in range(5)]
    assert peers.fair_share_of_cores(crowded[0], crowded) == 1


def test_ended_processes_are_found_also_before_they_are_collected() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    here = peers.Peer.own(0)
    ended = peers.Peer(1, here.host, child.pid, here.cores)
    assert peers.gone([here, ended], patience_s=20.0) == [ended]  # a zombie: nobody has waited for it
    child.wait()
    assert peers.gone([here, ended]) == [ended]
    assert peers.gone([here], patience_s=0.0) == []
    assert str(here) == f"rank 0 ({here.host}:{os.getpid()})"


@pytest.mark.parametrize("dtype", [torch.bool, torch.int16, torch.uint16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(4,), (0,), (3, 2), (0, 2, 5)])
def test_rows_survive_the_wire(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.arange(torch.Size(shape).numel()) % 2).to(dtype).reshape(shape)
    rows = wire.as_rows(tensor)
    assert rows.shape == (shape[0], tensor.element_size() * torch.Size(shape[1:]).numel())
    restored = wire.from_rows(rows, tensor)
    assert restored.dtype == dtype
    assert torch.equal(restored, tensor)


def test_buckets_are_bounded_and_keep_the_order() -> None:
    tensors = [torch.empty(size, dtype=torch.uint8) for size in (40 << 20, 30 << 20, 10, 100 << 20, 5)]
    groups = list(wire.buckets(tensors))
    assert [[tensor.nbytes for tensor in group] for group in groups] == [
        [40 << 20],
        [30 << 20, 10],
        [100 << 20],
        [5],
    ]
    assert list(wire.buckets([])) == []
