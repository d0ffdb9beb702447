#!/usr/bin/env bash
# The networks' studies on one GPU, several at a time.
#   tools/gpu_networks.sh trials FOLDER OUT [SECONDS]    SASRec on Beauty: fourteen settings at once
#   tools/gpu_networks.sh cpft FOLDER OUT [JOBS]         then CPFT from the best of them, three seeds,
#                                                        and CPFT on MovieLens-100K
# FOLDER holds interactions.parquet and items.parquet of Beauty (see recipes/sasrec_beauty.yaml); runs
# and pages go below OUT. PYTHON: the interpreter; MORE: further overrides, for a rehearsal;
# LLMREC_CACHE: where networks and ml-100k are kept.
set -uo pipefail
python=${PYTHON:-python3} what=$1 data=$(realpath "$2") out=$3
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
mkdir -p "$out"
read -ra more <<<"${MORE:-}"
beauty=(data.source="$data/interactions.parquet" data.items="$data/items.parquet")

case $what in
trials)
    timeout -s TERM "${4:-400}" "$python" -m llmrec run sasrec_beauty "${beauty[@]}" \
        output_dir="$out" "${more[@]}" --json 2>"$out/trials.log"
    echo "rc $?"
    ;;
cpft)
    manifest=$out/sasrec_beauty/network/base/manifest.json
    mapfile -t chosen < <("$python" - "$manifest" <<'END'
import json, sys
sizes = json.load(open(sys.argv[1]))["sizes"]
for key in ("hidden", "layers", "heads", "dropout", "learning_rate", "weight_decay", "batch_size"):
    print(f"network.{key}={sizes[key]}")
END
    )
    echo "base: ${chosen[*]}"
    half=$((${4:-16} / 2))
    "$python" -m llmrec study cpft --jobs "$half" study.output_dir="$out" "${more[@]}" 2>"$out/cpft.log" >"$out/cpft.txt" &
    "$python" -m llmrec study cpft --jobs "$half" study.name=cpft_beauty study.output_dir="$out" \
        'study.sweep={network.kind: [sasrec]}' "${beauty[@]}" data.format=parquet \
        data.columns.timestamp=order data.columns.rating= network.trials=1 "${chosen[@]}" \
        network.max_epochs=150 network.patience=10 evaluate.calibration.listed=300 "${more[@]}" \
        --only both-kind-sasrec --only light-kind-sasrec --only size-kind-sasrec-beta-1 \
        --only size-kind-sasrec-beta-10 --only distance-kind-sasrec --only extended-kind-sasrec \
        2>"$out/cpft_beauty.log" >"$out/cpft_beauty.txt" &
    wait
    cat "$out/cpft.txt" "$out/cpft_beauty.txt"
    ;;
esac
