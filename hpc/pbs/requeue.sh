#!/usr/bin/env bash
#PBS -q gpu
#PBS -l select=2:ncpus=32:mpiprocs=4:ngpus=4 -l place=scatter
#PBS -N reprise -j oe -S /bin/bash -r y
#
# A run that takes longer than a job may (PBS Professional, OpenPBS): it saves before the time is over, and submits the
# job that goes on from there. Run it in the checkout, which all nodes must see, with main.py's options behind its name;
# --save-dir says which run it is:
#
#     bash hpc/pbs/requeue.sh --config mine --save-dir first
#
# Adapt three lines: the queue, the nodes with their ranks (mpiprocs), GPUs and cores (no ngpus where there are none),
# and the time of a job below. Modules that the job needs come first, as not all of them bear what the line after them
# asks for. MPI is Open MPI, the one that Horovod was built with: it passes on both the signal and the exit code.
#
# PBS lets nobody but its operators requeue a job, hence the new one; and it gives a job some seconds between SIGTERM and
# the end, hence the SIGUSR1 three minutes before. A job that PBS itself runs again (-r y) goes on from the last
# checkpoint that was due.
# module load cuda openmpi
set -euo pipefail

job_seconds=28800

if [[ -z ${PBS_JOBID:-} ]]; then
    # The text of the job stays here until the run is done, for its successors. It holds the arguments too, as qsub hands
    # a script none.
    job=$(mktemp "$PWD/reprise-XXXXXX.pbs")
    {
        sed -n '1p; /^#PBS/p' "$0"
        echo "#PBS -l walltime=$job_seconds"
        echo "job=${job@Q}; set -- ${*@Q}"
        cat "$0"
    } >"$job"
    exec qsub "$job"
fi

cd "$PBS_O_WORKDIR"
export PATH=$PWD/.venv/bin:$PATH
ranks=$(wc -l <"$PBS_NODEFILE")

# Open MPI hands ranks on other nodes nothing of the environment but what it is told to.
exported=()
for name in $(compgen -e); do
    if [[ $name =~ ^(PATH$|LD_LIBRARY_PATH$|OMP_|UCX_|NCCL_|HOROVOD_|REPRISE_|WANDB_) ]]; then
        exported+=(-x "$name")
    fi
done

# --resume begins where there is nothing saved.
code=0
timeout --preserve-status --signal=USR1 "$((job_seconds - 180))" \
    mpirun -np "$ranks" --hostfile "$PBS_NODEFILE" "${exported[@]}" python main.py --resume "$@" || code=$?

# 85: stopped by the signal, with everything saved. A rank that was lost, stuck or killed may be the node's fault; what
# ends so within ten minutes, before there is a first checkpoint, would do so for ever.
case $code in
    85) again=1 ;;
    3 | 75 | 13[4-9] | 143) again=$((SECONDS > 600)) ;;
    *) again=0 ;;
esac
if ((again)); then
    qsub "$job"
elif ((code == 0)); then
    rm "$job"
fi
exit "$code"
