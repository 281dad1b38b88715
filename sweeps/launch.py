"""The command line that starts a program on several ranks, for each launcher. Lists of arguments, never shell text.

Not for finding out how this process was started: that is runtime/dist/launcher.py.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reprise.runtime.dist.launcher import LAUNCHERS
from reprise.runtime.errors import UserError

HOSTS_VARIABLE = "REPRISE_HOSTS"
# Open MPI hands remote ranks none of the environment but what it is told to.
_EXPORTED = ("WANDB_", "REPRISE_", "OMP_NUM_THREADS", "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "UCX_", "NCCL_")


@dataclass(frozen=True)
class Launcher:
    """How ranks are started. name: one of LAUNCHERS. hosts: "a:4,b:4", slots after the colon; "" for this machine.

    Making it raises UserError where the parts do not go together, or the launcher is not installed.
    """

    name: str
    ranks: int
    hosts: str = ""

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise UserError(f"--np {self.ranks}: expected a whole number from 1")
        if self.name == "python" and (self.ranks > 1 or self.hosts):
            raise UserError("--launcher python starts one rank, here; leave out --np and --hosts, or choose another")
        if self.name == "torchrun" and self.hosts:
            raise UserError(
                "--hosts: torchrun is started on every host by hand; choose --launcher horovodrun or mpirun"
            )
        if self.name != "python":
            _find(self.name)

    def command(self, program: Sequence[str]) -> list[str]:
        """Start `python *program` on every rank."""
        ranks, worker = str(self.ranks), [sys.executable, *program]
        if self.name == "python":
            return worker
        path = _find(self.name)
        if self.name == "horovodrun":
            return [path, "--gloo", "-np", ranks, *(["-H", self.hosts] if self.hosts else []), *worker]
        if self.name == "torchrun":
            return [path, "--standalone", "--nproc-per-node", ranks, *program]
        if self.name == "srun":
            names = ",".join(host.partition(":")[0] for host in self.hosts.split(",") if host)
            return [path, "--ntasks", ranks, *(["--nodelist", names] if names else []), *worker]
        if not _is_open_mpi(path):
            return [path, "-np", ranks, *(["-hosts", self.hosts] if self.hosts else []), *worker]
        options = ["--host", self.hosts] if self.hosts else ["--oversubscribe"]
        for name in os.environ:
            if self.hosts and name.startswith(_EXPORTED):
                options += ["-x", name]
        return [path, "-np", ranks, *options, *worker]

    def environment(self) -> dict[str, str]:
        """This process's, with the folder of this Python first on the PATH: launchers start helpers of their own."""
        return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def choose(name: str | None, ranks: int | None, hosts: str) -> Launcher:
    """The launcher that is named, else horovodrun where there is more than one rank. ranks: None for one per slot."""
    if ranks is None:
        ranks = sum(_slots(host) for host in hosts.split(",")) if hosts else 1
    if name is None:
        name = "horovodrun" if ranks > 1 or hosts else "python"
    assert name in LAUNCHERS, name
    return Launcher(name, ranks, hosts)


def _slots(host: str) -> int:
    name, colon, slots = host.partition(":")
    if not name or (colon and not (slots.isdigit() and int(slots))):
        raise UserError(f"--hosts: '{host}' is no host; write name:slots, like node-7.site:4,node-8.site:4")
    return int(slots or 1)


def _find(name: str) -> str:
    here = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([here, os.environ.get("PATH", "")]))
    if found is None:
        raise UserError(f"'{name}' is not on the PATH; install it, or choose another --launcher")
    return found


def _is_open_mpi(path: str) -> bool:
    """Open MPI, and not MPICH or Intel MPI, which hand the environment on and take any number of ranks."""
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60)
    return not any(other in version.stdout for other in ("HYDRA", "Intel"))
