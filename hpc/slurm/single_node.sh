#!/usr/bin/env bash
#SBATCH --partition=gpu --time=08:00:00
#SBATCH --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
#SBATCH --job-name=reprise --output=%x-%j.log
#
# One run on one node, a rank per GPU. Submit it from the checkout, with main.py's options behind its name:
#
#     sbatch hpc/slurm/single_node.sh --config mine --save-dir first
#
# Adapt three lines: the partition and the time, the ranks with their GPUs and cores (no --gpus-per-node where there are
# none), and `mpi`. Modules that are loaded when you submit are loaded in the job.
set -euo pipefail

# How Slurm starts the MPI that Horovod was built with: one of what `srun --mpi=list` lists. none: torch.distributed
# takes Horovod's place, and no MPI is needed.
mpi=${REPRISE_MPI:-pmix}

export PATH=$PWD/.venv/bin:$PATH
if [[ $mpi == none ]]; then
    export REPRISE_DIST=torch MASTER_ADDR=localhost MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
fi

# srun takes every option of the job over, but for the cores of a rank.
srun --mpi="$mpi" --cpus-per-task="$SLURM_CPUS_PER_TASK" python main.py "$@"
