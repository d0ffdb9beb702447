"""Reranking a retriever's candidates side by side with ranking random ones, users per second.

Both ask the language model about equally many candidates through the Engine, which reads a user's
prompt once and the candidates as branches behind it; reranking has its retriever propose them too.
The retriever is fitted beforehand. Before anything is timed, the scores of both are checked against
each candidate read alone. One line of JSON on stdout, and with --out a Markdown page.

    python tools/bench/rerank.py --users 16 --out rerank.md
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from decode import MODEL, command
from figures import SEED, provenance, table

from llmrec.data.candidates import draw_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.fetch.cache import model_path
from llmrec.inference.candidate_retriever import CandidateRetriever
from llmrec.inference.engine import Engine
from llmrec.inference.from_recipe import encoder_of
from llmrec.model.loading import BaseModel, load_model
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare

FIGURE = "reranking {} candidates of {}, users per second"


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--users", type=int, default=16)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--count", type=int, default=20, help="candidates of a user")
    options.add_argument("--retriever", default="markov")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        candidates = f"data.candidates={{from: {given.retriever}, count: {given.count}}}"
        recipe = load("rerank_ml100k", [f"output_dir={scratch}", candidates, "decode.batch_size=8"])
        folder = RunFolder.of(recipe)
        prepare.run(recipe, folder)
        retriever = CandidateRetriever.of(recipe, folder)
        catalog = Catalog.read(folder.items)
        encoder = encoder_of(recipe, catalog)
        test = Examples.read(folder.examples("test")).take(np.arange(given.users))
    engine = Engine(load_model(BaseModel(str(model_path(MODEL))), "cpu"), encoder, recipe.decode)
    prompts = [encoder.prompt(history).ids for history in test.histories()]
    drawn = draw_candidates(test, len(catalog), given.count, SEED, 0)
    figure = compared(engine, prompts, test, retriever, drawn, given)
    print(json.dumps(figure), flush=True)
    if given.out:
        given.out.write_text(page(figure, given), "utf-8")


def compared(engine, prompts, test, retriever, drawn, given) -> dict:
    """Users per second of both, alternating, and their ratio."""
    proposed, _ = retriever.propose(test.histories())
    for among in (drawn, proposed):
        check(engine, prompts, among)
    random, reranking = [], []
    for _ in range(given.repeats):
        begun = time.perf_counter()
        engine.choose(prompts, drawn)
        random.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        candidates, _ = retriever.propose(test.histories())
        engine.choose(prompts, candidates)
        reranking.append(time.perf_counter() - begun)
    ratios = [r / ours for r, ours in zip(random, reranking, strict=True)]
    return {
        "figure": FIGURE.format(given.count, given.retriever),
        "random": round(given.users / statistics.median(random), 3),
        "llmrec": round(given.users / statistics.median(reranking), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "goal": 1.0,
        "users": given.users,
        "repeats": given.repeats,
        "prompt_tokens": round(float(np.mean([len(p) for p in prompts])), 1),
        **provenance(),
    }


def check(engine, prompts, candidates) -> None:
    """Stop unless the first user's scores are those of each candidate read alone."""
    encoder, model = engine.encoder, engine.model
    [ranking] = engine.choose(prompts[:1], candidates[:1]).rankings
    for position, score in zip(ranking.positions[:5], ranking.scores[:5], strict=True):
        answer, total = encoder.completions[position], 0.0
        ids = np.concatenate([prompts[0], answer[:-1]]).astype(np.int64)
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids)[None], logits_to_keep=len(answer)).logits[0]
        for place, token in enumerate(answer):
            allowed = encoder.trie.allowed(answer[:place]).astype(np.int64)
            total += float(logits[place, token] - logits[place, allowed].logsumexp(0))
        if abs(total - score) > 1e-3:
            sys.exit(f"item {position} scores {score}, read alone {total}; nothing is timed")


def page(figure: dict, given: argparse.Namespace) -> str:
    """The figure as Markdown."""
    lines = [
        f"# Reranking {given.count} candidates\n\n`{command()}`: {figure['model']}, float32, "
        f"{figure['threads']} CPU threads ({figure['machine']}), torch {figure['torch']}, "
        f"transformers {figure['transformers']}; MovieLens-100K, {given.users} test users, 8 at a "
        "time.\n",
        "Users per second of reranking the retriever's candidates, proposing them included, and of "
        f"ranking as many random ones; medians of {given.repeats} repeats that alternate both, the "
        "ratio the median of theirs. Scores equal to reading each candidate alone.\n",
    ]
    return "\n".join(lines + table([figure], "prompt_tokens random llmrec ratio goal"))


if __name__ == "__main__":
    main()
