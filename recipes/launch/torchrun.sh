#!/usr/bin/env bash
# Training under torchrun, on each of NODES machines: HOST=first NODES=2 bash torchrun.sh RECIPE
# A process that dies ends the others, and all begin again from the last checkpoint, up to 3 times.
# torchrun gives 30 seconds to save once it is told to stop, and exits with 1 whatever llmrec's code
# was; the message and the code of the process that failed first stand in what it prints.
set -euo pipefail
exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${GPUS:-8}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "${HOST:-localhost}:29500" --rdzv-id "${JOB:-llmrec}" \
    -m llmrec train "$@"
