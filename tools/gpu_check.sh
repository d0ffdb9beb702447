#!/usr/bin/env bash
# A short training run under each accelerate file this machine can use; SOFT's three steps, and
# AdaptRec with the live model selecting users, under those that keep the model whole: the validation likelihoods should agree to about two decimals.
#   tools/gpu_check.sh            after `make setup`; needs at least one CUDA GPU, uses all it sees
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
out=$(mktemp -d)
gpus=$($bin/python -c 'import torch; print(torch.cuda.device_count())')
[ "$gpus" -gt 0 ] || { echo "no CUDA GPU is visible to torch" >&2; exit 1; }
files="one_gpu"
[ "$gpus" -gt 1 ] && files="one_gpu ddp fsdp2 zero2 zero3"
for file in $files; do
    count=$gpus
    [ "$file" = one_gpu ] && count=1
    echo "== $file on $count GPU(s)"
    $bin/accelerate launch --config_file "recipes/accelerate/$file.yaml" --num_processes "$count" \
        -m llmrec train recipes/sft_ml100k.yaml name="$file" output_dir="$out" rows.count=256 \
        data.subset.valid=64 train.per_device_train_batch_size=$((16 / count)) \
        train.gradient_accumulation_steps=1 train.bf16=true --json
done
for file in $files; do
    case $file in fsdp2 | zero3) continue ;; esac
    count=$gpus
    [ "$file" = one_gpu ] && count=1
    echo "== SOFT, $file on $count GPU(s)"
    $bin/accelerate launch --config_file "recipes/accelerate/$file.yaml" --num_processes "$count" \
        -m llmrec train recipes/soft_ml100k.yaml name="soft-$file" output_dir="$out" \
        train.per_device_train_batch_size=$((8 / count)) train.bf16=true --json
    echo "== AdaptRec, $file on $count GPU(s)"
    $bin/accelerate launch --config_file "recipes/accelerate/$file.yaml" --num_processes "$count" \
        -m llmrec train recipes/adaptrec_ml100k.yaml name="adaptrec-$file" output_dir="$out" \
        train.per_device_train_batch_size=$((8 / count)) train.bf16=true --json
done
