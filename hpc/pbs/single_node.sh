#!/usr/bin/env bash
#PBS -q gpu -l walltime=08:00:00
#PBS -l select=1:ncpus=32:mpiprocs=4:ngpus=4
#PBS -N reprise -j oe -S /bin/bash
#
# One run on one node, a rank per GPU (PBS Professional, OpenPBS). Run it in the checkout, with main.py's options behind
# its name; it submits itself:
#
#     bash hpc/pbs/single_node.sh --config mine --save-dir first
#
# Adapt three lines: the queue and the time, the ranks (mpiprocs) with their GPUs and cores (no ngpus where there are
# none), and the modules that the job needs. They come first, as not all modules bear what the line after them asks for.
# module load cuda
set -euo pipefail

if [[ -z ${PBS_JOBID:-} ]]; then
    # qsub hands a script no arguments: they become a line of the one that it reads here.
    { sed -n '1p; /^#PBS/p' "$0" && echo "set -- ${*@Q}" && cat "$0"; } | qsub
    exit
fi

cd "$PBS_O_WORKDIR"
export PATH=$PWD/.venv/bin:$PATH
ranks=$(wc -l <"$PBS_NODEFILE")
horovodrun --gloo -np "$ranks" python main.py "$@"
