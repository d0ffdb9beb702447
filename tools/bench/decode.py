"""Constrained beam search side by side with Hugging Face's `generate`, in one run.

Both search the same trie with the same model, prompts, beams and dtype, warm; what they return is
checked equal first. One line of JSON for each figure on stdout, and with --out a Markdown table.

    python tools/bench/decode.py --users 8 --repeats 5 --out results/decode.md
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from llmrec import shipped
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.model.loading import BaseModel, load_model, load_tokenizer
from llmrec.recipe_loading import load
from llmrec.stages import prepare
from llmrec.stages.fetch import model_path
from llmrec.stages.folder import RunFolder
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate

NOTHING = np.zeros(0, np.int32)
MODEL = "smollm2-135m-instruct"


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--users", type=int, default=8)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--beams", type=int, default=10)
    options.add_argument("--history", type=int, default=10, help="titles in a prompt")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    encoder, prompts = prompts_of(given.users, given.history)
    model = load_model(BaseModel(str(model_path(MODEL))), "cpu")
    figures = [
        figure(model, encoder, prompts, given.beams, given.repeats, renormalise)
        for renormalise in (False, True)
    ]
    for line in figures:
        print(json.dumps(line), flush=True)
    if given.out:
        given.out.write_text(page(figures, given), "utf-8")


def prompts_of(users: int, history: int) -> tuple[PromptEncoder, list[np.ndarray]]:
    """Prompts of the first test users of MovieLens-100K, titles with their year."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = load("sft_ml100k", [f"output_dir={scratch}"])
        folder = RunFolder.of(recipe)
        prepare.run(recipe, folder)
        catalog = Catalog.read(folder.items)
        test = Examples.read(folder.examples("test"))
    template = PromptTemplate.from_file(shipped.prompts() / "next_item" / "movie.jinja")
    tokenizer = load_tokenizer(BaseModel(str(model_path(MODEL))))
    encoder = PromptEncoder(template, tokenizer, catalog.titles, max_history=history)
    return encoder, [encoder.prompt(test.history(i)).ids for i in range(users)]


def figure(model, encoder, prompts, beams, repeats, renormalise) -> dict:
    """Users per second both ways, and their ratio, after checking that the answers are equal."""
    dict_trie = nested(encoder.completions)
    item_of = {tuple(ids.tolist()): i for i, ids in enumerate(encoder.completions)}

    def theirs():
        return [hugging_face(model, p, dict_trie, encoder, beams, renormalise) for p in prompts]

    def ours():
        open_items = OpenItems(encoder.trie, [NOTHING] * len(prompts))
        return beam_search(SharedPrompt(model, prompts), open_items, beams=beams, top_k=beams,
                           scoring=Scoring(renormalise))  # fmt: skip

    equal = 0
    for (sequences, scores), ranking in zip(theirs(), ours(), strict=True):
        same = [item_of.get(s) for s in sequences] == ranking.positions.tolist()
        equal += same and np.allclose(scores, ranking.scores, rtol=1e-5, atol=1e-4)
    if equal < len(prompts):
        sys.exit(f"only {equal} of {len(prompts)} users have equal lists; nothing is timed")
    seconds = {"hugging_face": [], "llmrec": []}
    for _ in range(repeats):  # alternating, so that a slow spell of the machine hits both
        for name, run in (("llmrec", ours), ("hugging_face", theirs)):
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    rate = {name: len(prompts) / statistics.median(s) for name, s in seconds.items()}
    ratios = [h / o for h, o in zip(seconds["hugging_face"], seconds["llmrec"], strict=True)]
    tokens = float(np.mean([len(c) for c in encoder.completions]))
    length = float(np.mean([len(p) for p in prompts]))
    return {
        "figure": "constrained beam search, users per second",
        "softmax": "allowed tokens" if renormalise else "whole vocabulary",
        "hugging_face": round(rate["hugging_face"], 3), "llmrec": round(rate["llmrec"], 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "sharing_limit": round(limit(length, tokens, beams), 2),
        "equal_users": equal, "users": len(prompts), "repeats": repeats, "beams": beams,
        "prompt_tokens": round(length, 1), "title_tokens": round(tokens, 1),
        "items": len(encoder.titles), "model": MODEL, "dtype": "float32",
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "transformers": transformers.__version__, "machine": platform.machine(),
    }  # fmt: skip


def limit(prompt: float, title: float, beams: int) -> float:
    """What sharing the prompt can gain at most: B*P + B*(T-1) tokens against P + B*(T-1)."""
    return beams * (prompt + title - 1) / (prompt + beams * (title - 1))


def nested(sequences) -> dict:
    """The trie as dicts of dicts, as recommender papers keep it."""
    root: dict = {}
    for sequence in sequences:
        node = root
        for token in sequence.tolist():
            node = node.setdefault(token, {})
    return root


def hugging_face(model, prompt, trie, encoder, beams, renormalise):
    """Token tuples and scores of the finished beams of one user."""
    end = encoder.tokenizer.eos_token_id

    def allowed(_, ids):
        node = trie
        for token in ids[len(prompt) :].tolist():
            node = node.get(token, {})
        return list(node) or [end]

    with torch.inference_mode():
        out = model.generate(
            torch.from_numpy(prompt.astype(np.int64))[None], do_sample=False, num_beams=beams,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long), length_penalty=0.0,
            num_return_sequences=beams, max_new_tokens=max(map(len, encoder.completions)),
            pad_token_id=end, eos_token_id=end, prefix_allowed_tokens_fn=allowed, use_cache=True,
            renormalize_logits=renormalise, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    sequences = []
    for ids in out.sequences[:, len(prompt) :].tolist():
        sequences.append(tuple(ids[: ids.index(end) + 1]) if end in ids else tuple(ids))
    return sequences, out.sequences_scores.numpy()


def page(figures: list[dict], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    first = figures[0]
    lines = [
        "# Constrained decoding against Hugging Face",
        "",
        f"`python tools/bench/decode.py --users {given.users} --repeats {given.repeats}`: "
        f"{first['model']}, float32, {first['threads']} CPU threads ({first['machine']}), torch "
        f"{first['torch']}, transformers {first['transformers']}; {first['items']} MovieLens-100K "
        f"titles of {first['title_tokens']} tokens, prompts of {first['prompt_tokens']}, "
        f"{first['beams']} beams. Peer: `generate(num_beams, prefix_allowed_tokens_fn, "
        "length_penalty=0)` over a nested-dict trie, one user at a time. Users per second, median "
        f"of {first['repeats']} alternating repeats; lists equal in items, order and scores for "
        f"all {first['users']} users in both modes.",
        "",
        "| softmax over | Hugging Face | llmrec | ratio (range) | limit of prompt sharing alone |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {f['softmax']} | {f['hugging_face']} | {f['llmrec']} | {f['ratio']} "
        f"({f['ratio_range'][0]} to {f['ratio_range'][1]}) | {f['sharing_limit']} |"
        for f in figures
    ]
    lines += ["", "Over the allowed tokens forced tokens need no forward pass, which is why the "
              "ratio can pass the limit of sharing alone.", ""]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
