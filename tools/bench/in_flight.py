"""Searching with batches that take turns against one after the other, on a GPU.

SmolLM2-135M's shape with random bfloat16 weights, titles and prompts as in training_graphs.py:
beams over the titles' tokens and best-first search. Users per second with 1, 2 and 3 batches in
flight, medians of repeats that alternate all; the lists are compared first. One line of JSON for
each search on stdout.

    PYTHONPATH=. python tools/bench/in_flight.py
    PYTHONPATH=. python tools/bench/in_flight.py --smoke             # tiny, on the CPU
"""

import argparse
import json
import statistics
import time
from types import SimpleNamespace

import numpy as np
import torch
from training_graphs import SHAPE, SMOKE, drawn
from transformers import LlamaConfig, LlamaForCausalLM

from llmrec.inference.engine import Engine
from llmrec.model.attention import with_tree_attention
from llmrec.recipe.decoding import Decode
from llmrec.text.trie import TitleTrie

COUNTS = (1, 2, 3)
PROMPT = 120


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--users", type=int, default=1024)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--smoke", action="store_true")
    given = options.parse_args()
    users, batch, repeats = (24, 4, 2) if given.smoke else (given.users, given.batch, given.repeats)
    device = "cuda" if torch.cuda.is_available() and not given.smoke else "cpu"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(SMOKE if given.smoke else SHAPE)))
    if device == "cuda":
        model = model.to(torch.bfloat16)
    model = with_tree_attention(model).to(device).eval()
    rng = np.random.default_rng(0)
    titles, _ = drawn(rng, 0)
    encoder = SimpleNamespace(
        trie=TitleTrie.from_sequences(titles), completions=titles, letters=False
    )
    prompts = [rng.integers(3, 3000, PROMPT).astype(np.int32) for _ in range(users)]
    closed = [np.zeros(0, np.int32)] * users
    for search in ("beam", "best_first"):
        beams = 10 if search == "beam" else None
        engines = {
            count: Engine(
                model,
                encoder,
                Decode(search=search, beams=beams, batch_size=batch, batches_in_flight=count),
            )
            for count in COUNTS
        }
        first = engines[1].rank(prompts, closed).rankings  # and warm
        for engine in engines.values():
            found = engine.rank(prompts, closed).rankings
            pairs = zip(first, found, strict=True)
            same = [a.positions.tolist() == b.positions.tolist() for a, b in pairs]
            if np.mean(same) < 0.99:  # rounding may order what is nearly equal otherwise
                raise SystemExit(f"the lists differ: {np.mean(same):.3f} are equal")
        rates = {count: [] for count in COUNTS}
        for _ in range(repeats):
            for count, engine in engines.items():
                begun = time.perf_counter()
                engine.rank(prompts, closed)
                rates[count].append(users / (time.perf_counter() - begun))
        line = {
            "search": search,
            "users": users,
            "batch": batch,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        }
        for count, found in rates.items():
            ratios = [mine / one for mine, one in zip(found, rates[1], strict=True)]
            line[f"users_per_s_{count}"] = round(statistics.median(found), 1)
            line[f"ratio_{count}"] = round(statistics.median(ratios), 2)
            line[f"range_{count}"] = [round(min(ratios), 2), round(max(ratios), 2)]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
