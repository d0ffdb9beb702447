#!/usr/bin/env bash
# A short training run under each accelerate file this machine can use, once more with FlexAttention;
# SOFT's three steps, and AdaptRec with the live model selecting users, under those that keep the
# model whole: the validation likelihoods of each should agree to about two decimals.
#   tools/gpu_check.sh            after `make setup`; needs at least one CUDA GPU, uses all it sees
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
bin=.venv/bin
out=$(mktemp -d)
gpus=$($bin/python -c 'import torch; print(torch.cuda.device_count())')
[ "${gpus:-0}" -gt 0 ] || { echo "no CUDA GPU is visible to torch" >&2; exit 1; }
files="one_gpu"
[ "$gpus" -gt 1 ] && files="one_gpu ddp fsdp2 zero2 zero3"
failed=""

# trained WHAT FILE BATCH RECIPE OVERRIDE...: one run, BATCH rows over all GPUs; others go on if it fails
trained() {
    local what=$1 file=$2 batch=$3 recipe=$4 count=$gpus
    [ "$file" = one_gpu ] && count=1
    echo "== $what, $file on $count GPU(s)"
    $bin/accelerate launch --config_file "recipes/accelerate/$file.yaml" --num_processes "$count" \
        -m llmrec train "recipes/$recipe.yaml" name="$what-$file" output_dir="$out" \
        train.per_device_train_batch_size=$((batch / count)) train.bf16=true --json "${@:5}" \
        || failed="$failed $what-$file"
}

for file in $files; do
    trained SFT "$file" 16 sft_ml100k rows.count=256 data.subset.valid=64 \
        train.gradient_accumulation_steps=1
done
trained flex one_gpu 16 sft_ml100k rows.count=256 data.subset.valid=64 \
    train.gradient_accumulation_steps=1 model.attn_implementation=flex_attention
for file in $files; do
    case $file in fsdp2 | zero3) continue ;; esac
    trained SOFT "$file" 8 soft_ml100k
    trained AdaptRec "$file" 8 adaptrec_ml100k
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
