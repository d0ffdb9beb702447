#!/usr/bin/env bash
# Training on two machines of 8 GPUs under SLURM: sbatch slurm.sh RECIPE [SECTION.KEY=VALUE]...
# One task for each GPU, started by srun itself, so that signals reach llmrec and its exit codes come
# back. Five minutes before the time is up SLURM sends SIGTERM; llmrec saves at the end of the step
# and exits with 75, and the job is put into the queue again to go on from there. output_dir, the
# cache (LLMREC_CACHE) and the recipe must lie in folders that all machines share.
#SBATCH --job-name=llmrec
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -uo pipefail
export MASTER_ADDR MASTER_PORT LLMREC_GRACE=240
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec llmrec train "$@"
' llmrec "$@"
code=$?
[ "$code" -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
