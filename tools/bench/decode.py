"""Constrained beam search side by side with Hugging Face's `generate`, in one run.

Both search the same trie with the same model, prompts, beams and dtype, warmed by a short prompt;
what the first repeat of each returns is checked equal. The peer answers one user at a time, and
only the first --peer-users of those that llmrec answers in batches; rates are by user. Long titles
are three of the catalog joined by colons. One line of JSON for each figure on stdout, and with
--out a Markdown page.

    python tools/bench/decode.py --out results/decode.md
    python tools/bench/decode.py --shapes 10 20-long-allowed --peer-users 2
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
import transformers

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.fetch.cache import model_path
from llmrec.model.loading import BaseModel, load_model, load_tokenizer
from llmrec.recipe import shipped
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate

NOTHING = np.zeros(0, np.int32)
MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Shape:
    """One figure. `goal`: how many times the peer's rate is aimed at."""

    beams: int
    renormalise: bool
    long: bool
    goal: float


SHAPES = {
    "10": Shape(10, False, False, 6.0),
    "10-allowed": Shape(10, True, False, 6.0),
    "20": Shape(20, False, False, 9.0),
    "50": Shape(50, False, False, 14.0),
    "10-long": Shape(10, False, True, 4.0),
    "10-long-allowed": Shape(10, True, True, 7.0),
    "20-long": Shape(20, False, True, 5.0),
    "20-long-allowed": Shape(20, True, True, 11.0),
}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--users", type=int, default=8, help="users in a batch of llmrec's")
    options.add_argument("--peer-users", type=int, default=1, help="users that the peer answers")
    options.add_argument("--history", type=int, default=25, help="titles in a prompt")
    options.add_argument(
        "--shapes",
        nargs="+",
        choices=SHAPES,
        default=list(SHAPES),
        help="beams, long titles, softmax over the allowed tokens",
    )
    options.add_argument(
        "--repeats",
        type=int,
        nargs="+",
        default=[3],
        help="of each shape in turn, the last of the rest",
    )
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    model = load_model(BaseModel(str(model_path(MODEL))), "cpu")
    figures, texts = [], {}
    last = given.repeats[-1]
    for name, repeats in zip_longest(given.shapes, given.repeats[: len(given.shapes)]):
        shape = SHAPES[name]
        if shape.long not in texts:
            texts[shape.long] = prompts_of(given.users, given.history, shape.long)
        found = figure(model, *texts[shape.long], shape, given.peer_users, repeats or last)
        figures.append(found)
        print(json.dumps(found), flush=True)
    if given.out:
        given.out.write_text(page(figures), "utf-8")


def command() -> str:
    """How this script was called, without the page that it writes."""
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return " ".join([f"python tools/bench/{Path(sys.argv[0]).name}", *words])


def prompts_of(
    users: int, history: int, long: bool = False
) -> tuple[PromptEncoder, list[np.ndarray]]:
    """Prompts of the first test users of MovieLens-100K, titles with their year.

    `long`: an item's title is three of them, about 32 tokens, and a prompt holds a third as many.
    """
    with tempfile.TemporaryDirectory() as scratch:
        recipe = load("sft_ml100k", [f"output_dir={scratch}"])
        folder = RunFolder.of(recipe)
        prepare.run(recipe, folder)
        catalog = Catalog.read(folder.items)
        test = Examples.read(folder.examples("test"))
    template = PromptTemplate(shipped.prompt_text("next_item/movie"), "next_item/movie")
    tokenizer = load_tokenizer(BaseModel(str(model_path(MODEL))))
    titles, third = list(catalog.titles), len(catalog.titles) // 3
    if long:
        others = [titles[cut:] + titles[:cut] for cut in (third, 2 * third)]
        titles = [": ".join(three) for three in zip(titles, *others, strict=True)]
        history //= 3
    encoder = PromptEncoder(template, tokenizer, titles, max_history=history)
    lengthy = [i for i in range(len(test)) if len(test.history(i)) >= history][:users]
    return encoder, [encoder.prompt(test.history(i)).ids for i in lengthy]


def figure(model, encoder, prompts, shape: Shape, peers: int, repeats: int) -> dict:
    """Users per second both ways, and their ratio, after checking that the answers are equal."""
    dict_trie = nested(encoder.completions)
    item_of = {tuple(ids.tolist()): i for i, ids in enumerate(encoder.completions)}

    def theirs(asked, beams):
        return [hugging_face(model, p, dict_trie, encoder, beams, shape.renormalise) for p in asked]

    def ours(asked, beams):
        open_items = OpenItems(encoder.trie, [NOTHING] * len(asked))
        return beam_search(
            SharedPrompt(model, asked),
            open_items,
            beams=beams,
            top_k=beams,
            scoring=Scoring(shape.renormalise),
        )

    sides = {"llmrec": (ours, prompts), "hugging_face": (theirs, prompts[:peers])}
    for run, asked in sides.values():
        run([asked[0][:16]], 2)  # warm
    seconds = {name: [] for name in sides}
    for number in range(repeats):  # alternating, so that a slow spell of the machine hits both
        answers = {}
        for name, (run, asked) in sides.items():
            begun = time.perf_counter()
            answers[name] = run(asked, shape.beams)
            seconds[name].append((time.perf_counter() - begun) / len(asked))
        if number == 0:
            answered, equal = answers["llmrec"], 0
            for (sequences, scores), ranking in zip(
                answers["hugging_face"], answered, strict=False
            ):
                same = [item_of.get(s) for s in sequences] == ranking.positions.tolist()
                equal += same and np.allclose(scores, ranking.scores, rtol=1e-5, atol=1e-4)
            if equal < len(answers["hugging_face"]):
                sys.exit(f"only {equal} of {peers} users have equal lists; nothing is timed")
    rate = {name: 1 / statistics.median(s) for name, s in seconds.items()}
    ratios = [h / o for h, o in zip(seconds["hugging_face"], seconds["llmrec"], strict=True)]
    tokens = float(np.mean([len(c) for c in encoder.completions]))
    length = float(np.mean([len(p) for p in prompts]))
    return {
        "figure": "constrained beam search, users per second",
        "beams": shape.beams,
        "softmax": "allowed tokens" if shape.renormalise else "whole vocabulary",
        "prompt_tokens": round(length, 1),
        "title_tokens": round(tokens, 1),
        "hugging_face": round(rate["hugging_face"], 3),
        "llmrec": round(rate["llmrec"], 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "goal": shape.goal,
        "sharing_limit": round(limit(length, tokens, shape.beams), 2),
        "peer_users": equal,
        "users": len(prompts),
        "certified": sum(ranking.certified for ranking in answered),
        "repeats": repeats,
        "items": len(encoder.titles),
        "model": MODEL,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }


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
            torch.from_numpy(prompt.astype(np.int64))[None],
            do_sample=False,
            num_beams=beams,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            length_penalty=0.0,
            num_return_sequences=beams,
            max_new_tokens=max(map(len, encoder.completions)),
            pad_token_id=end,
            eos_token_id=end,
            prefix_allowed_tokens_fn=allowed,
            use_cache=True,
            renormalize_logits=renormalise,
            return_dict_in_generate=True,
            output_scores=True,
        )
    sequences = []
    for ids in out.sequences[:, len(prompt) :].tolist():
        sequences.append(tuple(ids[: ids.index(end) + 1]) if end in ids else tuple(ids))
    return sequences, out.sequences_scores.numpy()


def page(figures: list[dict]) -> str:
    """The figures as Markdown."""
    first = figures[0]
    lines = [
        "# Constrained decoding against Hugging Face",
        "",
        f"`{command()}`: {first['model']}, float32, {first['threads']} CPU threads "
        f"({first['machine']}), torch {first['torch']}, transformers {first['transformers']}; "
        f"{first['items']} MovieLens-100K titles, or three of them joined. Peer: "
        "`generate(num_beams, prefix_allowed_tokens_fn, length_penalty=0)` over a nested-dict "
        "trie, one user at a time. Users per second, medians of "
        "repeats that alternate both sides; lists equal in items, order and "
        "scores for all users of the peer. "
        "Proven: of llmrec's users, those whose list is certified to be the true best.",
        "",
        "| beams | softmax over | prompt | title | Hugging Face | llmrec | ratio (range) | goal | "
        "limit of prompt sharing | peer's users | proven | repeats |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {f['beams']} | {f['softmax']} | {f['prompt_tokens']} | {f['title_tokens']} | "
        f"{f['hugging_face']} | {f['llmrec']} | {f['ratio']} ({f['ratio_range'][0]} to "
        f"{f['ratio_range'][1]}) | {f['goal']} | {f['sharing_limit']} | {f['peer_users']} | "
        f"{f['certified']} of {f['users']} | {f['repeats']} |"
        for f in figures
    ]
    lines += [
        "",
        "Ratios can pass the limit of sharing alone: over the allowed tokens forced tokens need "
        "no forward pass, and over the vocabulary they are read several at once, users are read "
        "together, and no cache is reordered.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
