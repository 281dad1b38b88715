#!/usr/bin/env bash
#SBATCH --partition=gpu --time=08:00:00
#SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
#SBATCH --requeue --signal=USR1@180
#SBATCH --job-name=reprise --output=%x-%j.log --open-mode=append
#
# A run that may take longer than a job, or be preempted: it saves, goes back into the queue and goes on from there.
# Submit it from the checkout, which all nodes must see, with main.py's options behind its name; --save-dir says which
# run it is:
#
#     sbatch hpc/slurm/requeue.sh --config mine --save-dir first
#
# Adapt three lines: the partition and the time, the nodes with their ranks, GPUs and cores (no --gpus-per-node where
# there are none), and `mpi`. Modules that are loaded when you submit are loaded in the job.
#
# Three minutes before the time is over Slurm sends SIGUSR1 to the ranks, and SIGTERM when it preempts the job. The
# ranks finish their step, save, and end with exit code 85.
set -euo pipefail

# How Slurm starts the MPI that Horovod was built with: one of what `srun --mpi=list` lists. none: torch.distributed
# takes Horovod's place, and no MPI is needed.
mpi=${REPRISE_MPI:-pmix}

export PATH=$PWD/.venv/bin:$PATH
if [[ $mpi == none ]]; then
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export REPRISE_DIST=torch MASTER_ADDR=${nodes[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
fi

# srun takes every option of the job over, but for the cores of a rank. Ranks end together by themselves: to have the
# last ones killed for the first one's 85 would leave another exit code. --resume begins where there is nothing saved.
code=0
srun --mpi="$mpi" --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \
    python main.py --resume "$@" || code=$?

# A rank that was lost, stuck or killed may be the node's fault. What ends so within ten minutes, before there is a
# first checkpoint, would do so for ever.
case $code in
    85) again=1 ;;
    3 | 75 | 13[4-9] | 143) again=$((SECONDS > 600)) ;;
    *) again=0 ;;
esac
if ((again)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
