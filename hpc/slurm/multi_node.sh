#!/usr/bin/env bash
#SBATCH --partition=gpu --time=08:00:00
#SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
#SBATCH --job-name=reprise --output=%x-%j.log
#
# One run on several nodes, a rank per GPU. Submit it from the checkout, which all nodes must see, with main.py's options
# behind its name:
#
#     sbatch hpc/slurm/multi_node.sh --config mine --save-dir first
#
# Adapt three lines: the partition and the time, the nodes with their ranks, GPUs and cores (no --gpus-per-node where
# there are none), and `mpi`. Modules that are loaded when you submit are loaded in the job.
set -euo pipefail

# How Slurm starts the MPI that Horovod was built with: one of what `srun --mpi=list` lists. none: torch.distributed
# takes Horovod's place, and no MPI is needed. horovodrun: Horovod over sockets, started by ssh instead of Slurm.
mpi=${REPRISE_MPI:-pmix}

export PATH=$PWD/.venv/bin:$PATH
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

case $mpi in
    horovodrun)
        printf -v hosts '%s,' "${nodes[@]/%/:$SLURM_NTASKS_PER_NODE}"
        # Nodes have 30 seconds to answer, if nothing is said; that is little for many of them.
        exec horovodrun --gloo --start-timeout 120 -np "$SLURM_NTASKS" -H "${hosts%,}" python main.py "$@"
        ;;
    none)
        export REPRISE_DIST=torch MASTER_ADDR=${nodes[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
        ;;
esac

# srun takes every option of the job over, but for the cores of a rank.
srun --mpi="$mpi" --cpus-per-task="$SLURM_CPUS_PER_TASK" python main.py "$@"
