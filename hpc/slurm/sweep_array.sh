#!/usr/bin/env bash
#SBATCH --partition=gpu --time=08:00:00
#SBATCH --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
#SBATCH --array=0-15%4
#SBATCH --job-name=reprise-sweep --output=%x-%A-%a.log
#
# A sweep: every element of the job array is one trial, numbered from 0, and at most four run at a time. Submit it from
# the checkout, which all nodes must see, with sweep.py's options behind its name and as many elements as trials:
#
#     sbatch --array=0-31%8 hpc/slurm/sweep_array.sh --local sweep.yaml
#
# Trials that are done end at once: submit the same line again for those that are not. Adapt three lines: the partition
# and the time, the ranks of a trial with their GPUs and cores (no --gpus-per-node where there are none), and `mpi`.
# Modules that are loaded when you submit are loaded in the job.
set -euo pipefail

# How Slurm starts the MPI that Horovod was built with: one of what `srun --mpi=list` lists. none: torch.distributed
# takes Horovod's place, and no MPI is needed.
mpi=${REPRISE_MPI:-pmix}

export PATH=$PWD/.venv/bin:$PATH
if [[ $mpi == none ]]; then
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export REPRISE_DIST=torch MASTER_ADDR=${nodes[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
fi

# sweep.py starts srun, which takes every option of the job over, but for these two.
export SLURM_MPI_TYPE=$mpi SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
python sweep.py --trial "$SLURM_ARRAY_TASK_ID" --np "$SLURM_NTASKS" --launcher srun "$@"
