#!/usr/bin/env bash
#PBS -q gpu -l walltime=08:00:00
#PBS -l select=2:ncpus=32:mpiprocs=4:ngpus=4 -l place=scatter
#PBS -N reprise -j oe -S /bin/bash
#
# One run on several nodes, a rank per GPU (PBS Professional, OpenPBS). Run it in the checkout, which all nodes must see,
# with main.py's options behind its name; it submits itself:
#
#     bash hpc/pbs/multi_node.sh --config mine --save-dir first
#
# Adapt three lines: the queue and the time, the nodes with their ranks (mpiprocs), GPUs and cores (no ngpus where there
# are none), and the modules that the job needs. They come first, as not all modules bear what the line after them asks
# for.
# module load cuda openmpi
set -euo pipefail

# mpirun: Open MPI, the one that Horovod was built with. horovodrun: Horovod over sockets, started by ssh, without MPI.
launcher=${REPRISE_LAUNCHER:-mpirun}

if [[ -z ${PBS_JOBID:-} ]]; then
    # qsub hands a script no arguments: they become a line of the one that it reads here.
    { sed -n '1p; /^#PBS/p' "$0" && echo "REPRISE_LAUNCHER=$launcher; set -- ${*@Q}" && cat "$0"; } | qsub
    exit
fi

cd "$PBS_O_WORKDIR"
export PATH=$PWD/.venv/bin:$PATH
ranks=$(wc -l <"$PBS_NODEFILE")

if [[ $launcher == horovodrun ]]; then
    hosts=$(sort "$PBS_NODEFILE" | uniq -c | awk '{ print $2 ":" $1 }' | paste -sd ,)
    # Nodes have 30 seconds to answer, if nothing is said; that is little for many of them.
    exec horovodrun --gloo --start-timeout 120 -np "$ranks" -H "$hosts" python main.py "$@"
fi

# Open MPI hands ranks on other nodes nothing of the environment but what it is told to.
exported=()
for name in $(compgen -e); do
    if [[ $name =~ ^(PATH$|LD_LIBRARY_PATH$|OMP_|UCX_|NCCL_|HOROVOD_|REPRISE_|WANDB_) ]]; then
        exported+=(-x "$name")
    fi
done
mpirun -np "$ranks" --hostfile "$PBS_NODEFILE" "${exported[@]}" python main.py "$@"
