"""Starts a script on several processes under a real launcher, for tests of what happens between processes.

A hang is a failure that prints stacks: on time-out every process of the job gets SIGABRT (Python then prints where each
thread is), then SIGKILL. Only processes started here are touched.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import psutil

LAUNCHERS = ("horovodrun", "mpirun", "torchrun", "python")

# A test run may itself be under a launcher; its variables must not reach ours.
_LAUNCHER_PREFIXES = ("HOROVOD_", "OMPI_", "PMI", "PRTE_", "SLURM_", "TORCHELASTIC_", "MPI_LOC", "MASTER_", "REPRISE_")
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")

_STACKS_S = 3.0  # to print the stacks


@dataclass(frozen=True)
class Finished:
    """What a job left: exit code of the launcher (or the first non-zero one of plain processes) and all its output."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class JobTimeoutError(AssertionError):
    """The job did not end in time; the message holds its output and the stacks of its processes."""


@cache
def available() -> tuple[str, ...]:
    """Launchers that can be used here."""
    usable = ["torchrun", "python"]
    if find_spec("horovod"):
        usable += [name for name in ("horovodrun", "mpirun") if shutil.which(name, path=_path())]
    return tuple(name for name in LAUNCHERS if name in usable)


def run(
    launcher: str,
    np: int,
    arguments: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> Finished:
    """Run `python *arguments` (a script with its arguments, or "-m", a module, ...) on `np` processes.

    launcher "python": alone for np=1, else processes that torch.distributed connects with no launcher above them, so
    that nobody ends the others when one dies. Raises JobTimeoutError after `timeout` seconds.
    """
    command = [sys.executable, *map(str, arguments)]
    if launcher != "python":
        return run_command([*_prefix(launcher, np), *_worker(launcher, command)], env, timeout)
    return _finish(lambda out, err: by_hand(np, command, worker_environment(env), out, err), f"{np} processes", timeout)


def run_command(command: list[str], env: Mapping[str, str] | None, timeout: float) -> Finished:
    """As `run`, with a launcher and options of the caller's."""
    return _finish(lambda out, err: [_start(command, worker_environment(env), out, err)], " ".join(command), timeout)


def _finish(start: Callable[[IO[str], IO[str]], "list[subprocess.Popen[str]]"], what: str, timeout: float) -> Finished:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        processes = start(out, err)
        deadline_hit = not _wait(processes, timeout)
        out.seek(0), err.seek(0)
        finished = Finished(_code(processes), out.read(), err.read())
    if deadline_hit:
        raise JobTimeoutError(f"{what} did not end in {timeout:g} s\n{finished.output}")
    return finished


def by_hand(
    np: int, command: list[str], environment: dict[str, str], out: IO[str], err: IO[str]
) -> list[subprocess.Popen[str]]:
    if np == 1:
        return [_start(command, environment, out, err)]
    port = str(free_port())
    shared = {"WORLD_SIZE": str(np), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(np)}
    return [
        _start(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment}, out, err)
        for rank in range(np)
    ]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _prefix(launcher: str, np: int) -> list[str]:
    if launcher == "horovodrun":
        return ["horovodrun", "--gloo", "-np", str(np)]
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(np)]
    assert launcher == "mpirun", f"unknown launcher {launcher}"
    return ["mpirun", *(["--oversubscribe"] if _is_open_mpi() else []), "-np", str(np)]


def _worker(launcher: str, command: list[str]) -> list[str]:
    return command[1:] if launcher == "torchrun" else command  # torchrun names the interpreter itself


@cache
def _is_open_mpi() -> bool:
    """Open MPI, and not MPICH, whose mpirun takes any number of ranks without being told."""
    version = subprocess.run(
        ["mpirun", "--version"], env=worker_environment(None), capture_output=True, text=True, timeout=30, check=False
    )
    return "HYDRA" not in version.stdout


def worker_environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHER_PREFIXES) and name not in _LAUNCHER_NAMES
    }
    ours = {"PATH": _path(), "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        ours |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return kept | ours | dict(extra or {})


def _path() -> str:
    """Scripts of this interpreter's environment first: horovodrun, and the mpirun of a wheel."""
    return str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)


def _start(command: list[str], environment: dict[str, str], out: IO[str], err: IO[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True, start_new_session=True
    )


def _wait(processes: "Sequence[subprocess.Popen[str]]", timeout: float) -> bool:
    """True when all have ended in time. Afterwards none of them, nor of their children, is left."""
    # Popen.wait and not psutil.wait_procs: whoever collects a child first gets its exit code, and Popen then reports 0.
    deadline = time.monotonic() + timeout
    try:
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _end_all([psutil.Process(process.pid) for process in processes if process.poll() is None])
        for process in processes:
            process.wait()
        return False
    except KeyboardInterrupt:  # which does not reach them in their sessions
        _end_all([psutil.Process(process.pid) for process in processes if process.poll() is None])
        raise
    return True


def _end_all(launchers: "list[psutil.Process]") -> None:
    # horovodrun and mpirun put workers into sessions of their own, so the process group does not hold them all.
    children = [child for launcher in launchers for child in launcher.children(recursive=True)]
    for process in children or launchers:
        _send(process, signal.SIGABRT)
    time.sleep(_STACKS_S)
    for process in [*children, *launchers]:
        _send(process, signal.SIGKILL)


def _send(process: "psutil.Process", sign: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):  # psutil checks that the process id still means the process we started
        process.send_signal(sign)


def _code(processes: "Sequence[subprocess.Popen[str]]") -> int:
    return next((process.returncode for process in processes if process.returncode), 0)
