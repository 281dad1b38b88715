"""How was this process started, and by what? Answered from environment variables alone, before any library is loaded.

Not for talking to other processes (base.py), nor for choosing the engine (__init__.py). main.py asks for the rank here
when a mistake must be reported once, before communication is up.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from reprise.runtime.errors import UserError

LAUNCHERS = ("horovodrun", "mpirun", "srun", "torchrun", "python")

# Slurm numbers the steps that srun starts from 0; the batch script and interactive shells are steps too, numbered from
# the top. Those are one process, whatever the job's number of tasks says.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class Launch:
    """What the launcher says. local_rank and local_size are None where it does not say."""

    launcher: str
    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    local_size: int | None = None


def detect(environment: Mapping[str, str] | None = None) -> Launch:
    """How the process with this environment (default: this process) was started. Raises UserError for a bad number."""
    env = os.environ if environment is None else environment
    # The order matters: the innermost launcher wins. torchrun and mpirun themselves are often started by srun, whose
    # variables their workers inherit.
    return (
        _read("horovodrun", env, "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")
        or _torchrun(env)
        or _read(
            "mpirun",
            env,
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        )
        or _hydra(env)
        or _srun(env)
        or Launch("python", local_rank=0, local_size=1)
    )


def _torchrun(env: Mapping[str, str]) -> Launch | None:
    if "TORCHELASTIC_RUN_ID" in env or "MASTER_ADDR" in env:
        return _read("torchrun", env, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return None


def _hydra(env: Mapping[str, str]) -> Launch | None:
    """MPICH's and Intel MPI's mpirun. srun --mpi=pmi2 sets PMI_RANK too, then equal to Slurm's own numbers."""
    launch = _read("mpirun", env, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    slurm = _srun(env)
    if launch and slurm and (launch.rank, launch.size) == (slurm.rank, slurm.size):
        return slurm
    return launch


def _srun(env: Mapping[str, str]) -> Launch | None:
    """Tasks of a step that srun started. An sbatch script has SLURM_PROCID and SLURM_NTASKS too, but is one process."""
    step = env.get("SLURM_STEP_ID", "")
    if not step.isdigit() or int(step) >= _FIRST_SPECIAL_STEP:
        return None
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    launch = _read("srun", env, "SLURM_PROCID", size, "SLURM_LOCALID", None)
    return launch if launch and launch.size > 1 else None


def _read(
    launcher: str, env: Mapping[str, str], rank: str, size: str, local_rank: str, local_size: str | None
) -> Launch | None:
    if rank not in env or size not in env:
        return None
    return Launch(
        launcher,
        _number(env, rank),
        _number(env, size),
        _number(env, local_rank) if local_rank in env else None,
        _number(env, local_size) if local_size and local_size in env else None,
    )


def _number(env: Mapping[str, str], name: str) -> int:
    if not env[name].isdigit():
        raise UserError(f"environment variable {name}='{env[name]}' is not a number; unset it or start with a launcher")
    return int(env[name])
