#!/usr/bin/env bash
# Usage: sweep_launcher.sh HOST[:SLOTS][,HOST[:SLOTS]...] [SWEEP_ID]
#
# Begins the search of sweep.yaml (SWEEP_FILE names another) on Weights & Biases, or joins the one named SWEEP_ID, and
# works on it from this machine, whose address is the first HOST: every trial runs on SLOTS ranks of each host.
# WANDB_API_KEY must be set. With WANDB_MODE=offline there is no service to ask: the search then runs from here, by
# `sweep.py --local`, and `wandb sync` uploads it later.
set -euo pipefail

if [[ $# -lt 1 || $# -gt 2 || "$1" == -* ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
export REPRISE_HOSTS=$1
sweep_id=${2:-}
file=${SWEEP_FILE:-sweep.yaml}
python=${PYTHON:-python}

cd "$(dirname "$0")"
if [[ ${WANDB_MODE:-} == offline ]]; then
    if [[ -n $sweep_id ]]; then
        echo "sweep_launcher.sh: WANDB_MODE=offline cannot join '$sweep_id': unset it, or leave the id out" >&2
        exit 2
    fi
    exec "$python" sweep.py --local "$file" --wandb-project "${WANDB_PROJECT:-reprise}"
fi
if [[ -z ${WANDB_API_KEY:-} ]]; then
    echo "sweep_launcher.sh: WANDB_API_KEY is not set: export it, or set WANDB_MODE=offline" >&2
    exit 2
fi
if [[ -z $sweep_id ]]; then
    # The service prints the command that joins the new sweep; its last word is the sweep's name.
    printed=$(wandb sweep --project "${WANDB_PROJECT:-reprise}" "$file" 2>&1) || { echo "$printed" >&2; exit 1; }
    echo "$printed"
    sweep_id=$(sed -n 's/.*wandb agent  *//p' <<<"$printed" | tail -n 1)
    if [[ -z $sweep_id ]]; then
        echo "sweep_launcher.sh: 'wandb sweep' named no sweep; its answer is above" >&2
        exit 1
    fi
fi
exec wandb agent "$sweep_id"
