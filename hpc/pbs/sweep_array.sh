#!/usr/bin/env bash
#PBS -q gpu -l walltime=08:00:00
#PBS -l select=1:ncpus=32:mpiprocs=4:ngpus=4
#PBS -J 0-15
#PBS -N reprise-sweep -j oe -S /bin/bash
#
# A sweep (PBS Professional, OpenPBS): every element of the job array is one trial on one node, numbered from 0. Run it
# in the checkout, which all nodes must see, with sweep.py's options behind its name; it submits itself:
#
#     bash hpc/pbs/sweep_array.sh --local sweep.yaml
#
# Trials that are done end at once: run the same line again for those that are not. Adapt three lines: the queue and the
# time, the ranks of a trial (mpiprocs) with their GPUs and cores (no ngpus where there are none), and -J, of which the
# last number is that of the last trial. Modules that the job needs come first, as not all of them bear what the line
# after them asks for.
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
python sweep.py --trial "$PBS_ARRAY_INDEX" --np "$ranks" --launcher horovodrun "$@"
