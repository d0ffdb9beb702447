"""Whole optimiser steps of a small model on a GPU, passes launched one by one and as CUDA graphs.

SmolLM2-135M's shape with random float32 weights and TF32 products, LoRA r 32 on all linear layers,
inline rows of 20 titles of 5 tokens under the softmax over 1,682 titles, through the trainer as it
is. Both ways read the same rows in the same order; the first losses of both are compared.

One line of JSON for each number of rows on stdout:

    PYTHONPATH=. python tools/bench/training_graphs.py --rows 8,32 --steps 60
    PYTHONPATH=. python tools/bench/training_graphs.py --smoke             # tiny, on the CPU
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from llmrec.model.attention import with_tree_attention
from llmrec.model.loading import Lora, with_new_lora
from llmrec.model.losses import Loss
from llmrec.model.softmax import MaskedSoftmax
from llmrec.model.trainer import TreeTrainer, Validated
from llmrec.text.tree import Segment, TokenTree
from llmrec.text.trie import TitleTrie

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
SMOKE = {**SHAPE, "hidden_size": 36, "intermediate_size": 64, "num_hidden_layers": 2}
TITLES, LENGTH, SHOWN = 1682, 5, 20
FIRST = 10  # losses that are compared; steps that are not timed


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", default="8,32", help="rows of a step, a list")
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--bf16", action="store_true", help="autocast")
    options.add_argument("--smoke", action="store_true")
    given = options.parse_args()
    device = "cuda" if torch.cuda.is_available() and not given.smoke else "cpu"
    steps = 12 if given.smoke else given.steps
    titles, every = drawn(np.random.default_rng(0), steps * max(map(int, given.rows.split(","))))
    for rows in map(int, given.rows.split(",")):
        found = {}
        for graphs in (False, True):
            torch.manual_seed(0)
            model = LlamaForCausalLM(LlamaConfig(**(SMOKE if given.smoke else SHAPE)))
            model = with_new_lora(with_tree_attention(model).to(device), Lora(32, 32), seed=0)
            trees = every[: rows * steps]
            found[graphs] = trained(model, titles, trees, rows, graphs, device, given.bf16)
        (plain, losses), (graphed, others) = found[False], found[True]
        tokens = float(np.mean([len(tree) for tree in every])) * rows
        line = {
            "rows": rows,
            "tokens_a_step": round(tokens),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "bf16": given.bf16,
            "plain_ms": round(1000 * plain, 1),
            "graphs_ms": round(1000 * graphed, 1),
            "ratio": round(plain / graphed, 2),
            "graphs_tokens_per_s": round(tokens / graphed),
            "losses_apart": float(np.abs(np.array(losses) - others).max()),
        }
        print(json.dumps(line), flush=True)


def drawn(rng: np.random.Generator, count: int) -> tuple[list[np.ndarray], list[TokenTree]]:
    """Titles that end in token 2, and `count` rows: an instruction and a chain of titles."""
    titles = [np.append(rng.integers(3, 3000, LENGTH), 2).astype(np.int32) for _ in range(TITLES)]
    begin = rng.integers(3, 3000, 30).astype(np.int32)
    rows = []
    for _ in range(count):
        segments = [Segment(begin)]
        for at, item in enumerate(rng.integers(0, TITLES, SHOWN)):
            parent = 0 if at == 0 else 2 * at
            segments.append(Segment(titles[item], parent, int(item)))  # learned
            segments.append(Segment(titles[item], parent))  # read on from
        rows.append(TokenTree(tuple(segments)))
    return titles, rows


def trained(model, titles, rows, size, graphs, device, bf16) -> tuple[float, list[float]]:
    """Seconds a step, behind the first ones, and the first losses."""
    loss = Loss(MaskedSoftmax(TitleTrie.from_sequences(titles), titles, narrow=True))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            seed=0,
            use_cpu=device == "cpu",
            num_train_epochs=1,
            per_device_train_batch_size=size,
            learning_rate=1e-3,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            save_strategy="no",
            eval_strategy="no",
            tf32=device == "cuda" or None,
            bf16=bf16,
        )
        log = Path(folder) / "log.jsonl"
        TreeTrainer(
            model, arguments, rows, loss, lambda _: Validated((0.0,), {}), log, cuda_graphs=graphs
        ).go(None)
        lines = [json.loads(x) for x in log.read_text("utf-8").splitlines()]
    lines = [x for x in lines if "loss" in x]
    seconds = (lines[-1]["seconds"] - lines[FIRST - 1]["seconds"]) / (len(lines) - FIRST)
    return seconds, [x["loss"] for x in lines[:FIRST]]


if __name__ == "__main__":
    main()
