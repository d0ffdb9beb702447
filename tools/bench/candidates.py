"""Ranking 20 candidates given a prompt side by side with reading each behind its own copy of it.

llmrec reads the prompt once and every candidate as a branch behind it. The peers read prompt and
completion as one text with Hugging Face's own forward pass, the head at the completion's positions
only: one candidate at a time, or all as one right-padded batch. Scores of the first repeat are
checked equal, over the whole vocabulary and over the tokens that continue a candidate; what a peer
reads serves both. One line of JSON for each figure on stdout, and with --out a Markdown page.

    python tools/bench/candidates.py --users 8 --repeats 5 --out candidates.md
    python tools/bench/candidates.py --users 1 --titles with-year
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from decode import MODEL, command
from figures import SEED, provenance, table

from llmrec.data.candidates import draw_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.decoding.candidates import candidate_scores
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.fetch.cache import model_path
from llmrec.model.loading import BaseModel, load_model, load_tokenizer
from llmrec.recipe import shipped
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate

YEAR = re.compile(r" \(\d{4}\)$")
SOFTMAXES = {False: "whole vocabulary", True: "candidates' tokens"}  # by `renormalise`


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--users", type=int, default=8)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--count", type=int, default=20, help="candidates of a user")
    options.add_argument("--prompt-tokens", type=int, default=300, help="at most, in a prompt")
    options.add_argument(
        "--titles",
        nargs="+",
        choices=("with-year", "without-year"),
        default=["with-year", "without-year"],
    )
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    catalog, test = movies()
    long_enough = test.take(np.flatnonzero(np.diff(test.offsets) >= 80)[: given.users])
    drawn = draw_candidates(long_enough, len(catalog.titles), given.count, SEED, 0)
    model = load_model(BaseModel(str(model_path(MODEL))), "cpu")
    figures = []
    for kind in given.titles:
        titles = catalog.titles
        if kind == "without-year":
            titles = [YEAR.sub("", title) for title in titles]
        encoder, prompts = encoded(titles, long_enough, given.prompt_tokens)
        for found in compared(model, prompts, encoder.completions, drawn, given.repeats):
            figures.append({"titles": kind.replace("-", " "), **found})
            print(json.dumps(figures[-1]), flush=True)
    if given.out:
        given.out.write_text(page(figures, given), "utf-8")


def movies() -> tuple[Catalog, Examples]:
    """The catalog of MovieLens-100K, titles with their year, and its test examples."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = load("sft_ml100k", [f"output_dir={scratch}"])
        folder = RunFolder.of(recipe)
        prepare.run(recipe, folder)
        return Catalog.read(folder.items), Examples.read(folder.examples("test"))


def encoded(titles, examples: Examples, tokens: int) -> tuple[PromptEncoder, list[np.ndarray]]:
    """The prompts of the examples with as many titles as make at most `tokens` tokens."""
    template = PromptTemplate(shipped.prompt_text("next_item/movie"), "next_item/movie")
    tokenizer = load_tokenizer(BaseModel(str(model_path(MODEL))))
    plain = PromptEncoder(template, tokenizer, titles)
    budget = tokens + max(map(len, plain.completions))  # the encoder keeps room for the longest
    encoder = PromptEncoder(template, tokenizer, titles, max_history=80, max_tokens=budget)
    return encoder, [encoder.prompt(examples.history(i)).ids for i in range(len(examples))]


def compared(model, prompts, completions, drawn, repeats: int) -> Iterator[dict]:
    """Users per second of ours and of both peers, one user at a time, after checking the scores."""
    texts = [[completions[c] for c in row] for row in drawn]
    peers = {"one_at_a_time": one_at_a_time, "batched": batched}
    ours(model, prompts[:1], completions, drawn[:1])  # warm
    mine = [ours(model, prompts, completions, drawn)]
    others = {name: [theirs(model, prompts, texts, read)] for name, read in peers.items()}
    apart = {False: {}, True: {}}
    for name, ((_, scores),) in others.items():
        for softmax in SOFTMAXES:
            expected, found = scores[softmax], mine[0][1][softmax]
            apart[softmax][name] = float(f"{np.abs(np.array(expected) - found).max():.1e}")
            if not np.allclose(found, expected, rtol=1e-5, atol=1e-4):
                sys.exit(
                    f"scores lie up to {apart[softmax][name]} nats from {name}; nothing is timed"
                )
    peer = min(others, key=lambda name: others[name][0][0][False])  # the other is not run again
    for _ in range(repeats - 1):  # alternating, so that a slow spell of the machine hits both
        mine.append(ours(model, prompts, completions, drawn))
        others[peer].append(theirs(model, prompts, texts, peers[peer]))
    length = float(np.mean([len(p) for p in prompts]))
    title = float(np.mean([len(ids) for answers in texts for ids in answers]))
    columns = float(np.mean([branches(answers) for answers in texts]))
    count = drawn.shape[1]
    for softmax, name in SOFTMAXES.items():
        seconds = {
            "llmrec": [s[softmax] for s, _ in mine],
            **{n: [s[softmax] for s, _ in runs] for n, runs in others.items()},
        }
        ratios = [t / o for o, t in zip(seconds["llmrec"], seconds[peer], strict=True)]
        yield {
            "figure": f"ranking {count} candidates given a prompt, users per second",
            "softmax": name,
            **{n: round(len(prompts) / statistics.median(s), 3) for n, s in seconds.items()},
            "peer": peer,
            "ratio": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "goal": 10.0,
            "limit": round(count * (length + title - 1) / (length + columns), 2),
            "apart": apart[softmax],
            "users": len(prompts),
            "repeats": repeats,
            "prompt_tokens": round(length, 1),
            "title_tokens": round(title, 1),
            "branch_tokens": round(columns, 1),
            **provenance(),
        }


def ours(model, prompts, completions, drawn) -> tuple[dict, dict]:
    """Seconds of all users under each softmax, and their scores."""
    seconds, scores = {}, {}
    for softmax in SOFTMAXES:
        begun = time.perf_counter()
        scores[softmax] = [
            candidate_scores(SharedPrompt(model, [prompt]), completions, row[None], softmax)[0]
            for prompt, row in zip(prompts, drawn, strict=True)
        ]
        seconds[softmax] = time.perf_counter() - begun
    return seconds, scores


def theirs(model, prompts, texts, read) -> tuple[dict, dict]:
    """The same of a peer, which reads once: both softmaxes are of the same logits."""
    seconds, scores = dict.fromkeys(SOFTMAXES, 0.0), {softmax: [] for softmax in SOFTMAXES}
    for prompt, answers in zip(prompts, texts, strict=True):
        begun = time.perf_counter()
        logits = read(model, prompt, answers)
        reading = time.perf_counter() - begun
        for softmax in SOFTMAXES:
            begun = time.perf_counter()
            scores[softmax].append(scored(logits, answers, softmax))
            seconds[softmax] += reading + time.perf_counter() - begun
    return seconds, scores


def one_at_a_time(model, prompt, answers) -> list[torch.Tensor]:
    """(L, V) logits before each answer's tokens, a forward pass for each answer."""
    found = []
    for answer in answers:
        ids = np.concatenate([prompt, answer[:-1]]).astype(np.int64)
        with torch.inference_mode():
            found.append(
                model(
                    torch.from_numpy(ids)[None], use_cache=False, logits_to_keep=len(answer)
                ).logits[0]
            )
    return found


def batched(model, prompt, answers) -> list[torch.Tensor]:
    """The same in one forward pass over as many copies of the prompt, right padded."""
    width = max(map(len, answers))
    ids = np.zeros((len(answers), len(prompt) + width - 1), np.int64)
    ids[:, : len(prompt)] = prompt
    seen = np.zeros_like(ids)
    for row, answer in enumerate(answers):
        end = len(prompt) + len(answer) - 1
        ids[row, len(prompt) : end], seen[row, :end] = answer[:-1], 1
    with torch.inference_mode():
        logits = model(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(seen),
            use_cache=False,
            logits_to_keep=width,
        ).logits
    return [logits[row, : len(answer)] for row, answer in enumerate(answers)]


def scored(logits: list[torch.Tensor], answers, renormalise: bool) -> list[float]:
    """Log-probability of each answer: over the vocabulary, or over what continues an answer."""
    following = defaultdict(set)
    for answer in answers:
        for place, token in enumerate(answer.tolist()):
            following[answer[:place].tobytes()].add(token)
    ending = [answer.tobytes() for answer in answers]
    scores = []
    for rows, answer, end in zip(logits, answers, ending, strict=True):
        own = rows.gather(1, torch.from_numpy(answer.astype(np.int64))[:, None])[:, 0]
        if renormalise:
            normaliser = torch.stack(
                [
                    rows[place, sorted(following[answer[:place].tobytes()])].logsumexp(0)
                    for place in range(len(answer))
                ]
            )
        else:
            normaliser = rows.logsumexp(-1)
        shared = np.log(ending.count(end)) if renormalise else 0.0
        scores.append(float((own - normaliser).double().sum()) - shared)
    return scores


def branches(answers) -> int:
    """Tokens of the answers' tree that have others behind them: what sharing must read at least."""
    return len({answer[:place].tobytes() for answer in answers for place in range(1, len(answer))})


def page(figures: list[dict], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    on = figures[0]
    lines = [
        f"# Ranking {given.count} candidates\n\n`{command()}`: {on['model']}, float32, "
        f"{on['threads']} CPU threads "
        f"({on['machine']}), torch {on['torch']}, transformers {on['transformers']}; "
        f"MovieLens-100K, {given.users} test users one at a time, {given.count} candidates each.\n",
        "Users per second. Peers: prompt and title read as one text, one candidate at a time or "
        "all as one right-padded batch, the head at the title's positions only; the ratio is to "
        f"the faster, the slower was run once. Rates are medians of {given.repeats} repeats that "
        "alternate both sides, ratios the medians of theirs. Scores equal to both peers' within "
        "1e-4 nats and 1e-5 of themselves. Limit: the ratio of tokens read when the prompt and "
        "equal beginnings are shared; over the candidates' tokens forced ones need no reading at "
        "all, so the ratio can pass it.\n",
    ]
    keys = "titles softmax prompt_tokens title_tokens branch_tokens one_at_a_time batched llmrec "
    return "\n".join(lines + table(figures, keys + "ratio goal limit"))


if __name__ == "__main__":
    main()
