"""Training steps that read a prompt once, side by side with one padded row for each target.

Both sides run a LoRA step, forward and backward, on the same prompts and titles, with logits at the
positions of completions alone; loss and gradients are checked equal first. `rows`: all targets of a
user in one row, titles of MovieLens and long ones. `pairs`: a real and a self-distilled title.
`msl`: the softmax over the trie's continuations against cross-entropy, on the same rows; `head`:
the same softmax with the head for the titles' tokens alone, on inline rows. `sets`: a
chosen title and rejected ones. `processes`: two processes against one. `padding`: what grouping
rows by length leaves. One line of JSON for each figure on stdout, and with --out a Markdown page.

    python tools/bench/train.py --repeats 5 --users 2 --out train.md
    python tools/bench/train.py --only rows pairs --targets 5 20
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from decode import MODEL, prompts_of
from figures import SEED, provenance
from soft import tuned
from train_padding import padding_figures
from train_page import PARTS, page
from train_processes import process_figure
from train_sides import (
    AT_ONCE,
    batches,
    compared,
    limit_of,
    ours,
    padded_tokens,
    paths_of,
    rates,
    theirs,
    theirs_by_length,
    tree,
)
from train_trl import trl_step

from llmrec.fetch.cache import model_path
from llmrec.model.forward import head_at
from llmrec.model.loading import BaseModel, load_tokenizer
from llmrec.model.softmax import FullSoftmax, MaskedSoftmax
from llmrec.recipe import shipped
from llmrec.text.encoding import PromptEncoder
from llmrec.text.rows import all_targets, inline
from llmrec.text.templates import PromptTemplate
from llmrec.text.tree import TokenTree

BETA = 0.1  # of the preference loss


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--long-repeats", type=int, default=2, help="of rows of long titles")
    options.add_argument("--users", type=int, default=1, help="rows, pairs and sets in a step")
    options.add_argument(
        "--targets",
        nargs="+",
        type=int,
        default=[1, 2, 5, 10, 20],
        help="titles in a row, each followed by a target",
    )
    options.add_argument("--history", type=int, default=10, help="titles before sets")
    options.add_argument("--pair-history", type=int, default=25, help="titles before pairs")
    options.add_argument("--rejected", nargs="+", type=int, default=[1, 3, 7])
    options.add_argument("--steps", type=int, default=4, help="of each number of processes")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    figures = []
    for figure in measured(given):
        figures.append({**figure, **provenance()})
        print(json.dumps(figures[-1]), flush=True)
    if given.out:
        given.out.write_text(page(figures), "utf-8")


def measured(given: argparse.Namespace) -> Iterator[dict]:
    """The figures of the parts asked for."""
    films, prompts = prompts_of(AT_ONCE, given.history)
    if set(given.only) & {"rows", "pairs", "msl", "head", "sets"}:
        model = tuned()
        ours(model, FullSoftmax(), [tree(prompts[0][:32], films.completions[:1])])  # warm
    if "rows" in given.only:
        for count in given.targets:  # the goal is one of many targets
            goal = 3.0 if count == max(given.targets) else None
            yield row_figure(model, films, "MovieLens", given.users, count, given.repeats, goal)
        yield row_figure(
            model,
            long_titles(films),
            "two or three of MovieLens joined",
            given.users,
            max(given.targets),
            given.long_repeats,
            5.0,
        )
    if "pairs" in given.only:
        paired = prompts_of(2 * given.users, given.pair_history)
        yield from pair_figures(model, *paired, given.repeats)
    if "msl" in given.only:
        yield msl_figure(model, films, 2 * given.users, min(10, max(given.targets)), given.repeats)
    if "head" in given.only:
        yield head_figure(model, films, 4 * given.users, max(given.targets), given.repeats)
    if "sets" in given.only:
        for rejected in given.rejected:
            yield set_figure(model, films, prompts[: given.users], rejected, given.repeats)
    if "processes" in given.only:
        yield process_figure(films, prompts, given.steps)
    if "padding" in given.only:
        yield from padding_figures()


def drawn_rows(encoder, users: int, count: int) -> list[TokenTree]:
    """Rows of `count` titles drawn from the catalog, a target after each."""
    rng = np.random.default_rng(SEED)
    encoder.max_history = count
    drawn = [rng.choice(len(encoder.titles), count + 1, replace=False) for _ in range(users)]
    return [all_targets(encoder, titles[:-1], int(titles[-1])) for titles in drawn]


def row_figure(model, encoder, titles, users, count, repeats, goal) -> dict:
    """All targets of a user in one row against a padded row for each."""
    rows = drawn_rows(encoder, users, count)
    paths = [path for row in rows for path in paths_of(row)]
    found = compared(
        model,
        lambda: ours(model, FullSoftmax(), rows),
        lambda: theirs_by_length(model, paths),
        repeats,
    )
    return {
        "part": "rows",
        "figure": "all targets of a user in one row, targets per second",
        "titles": titles,
        "targets": count,
        "history": count,
        "users": users,
        "row_tokens": round(float(np.mean([len(row) for row in rows])), 1),
        "tokens": [sum(map(len, rows)), padded_tokens(batches(paths))],
        "title_tokens": round(float(np.mean([len(c) for _, c in paths])), 1),
        **rates(found, len(paths)),
        **found,
        "goal": goal,
        "limit": limit_of(model, rows, batches(paths)),
    }


def long_titles(films: PromptEncoder) -> PromptEncoder:
    """Titles about as long as Amazon's: two or three of MovieLens joined by ": "."""
    rng = np.random.default_rng(SEED)
    titles = list(films.titles)
    more = [rng.choice(len(titles), 1 + n % 2, replace=False) for n in range(len(titles))]
    joined = [
        ": ".join([title, *(titles[i] for i in some)])
        for title, some in zip(titles, more, strict=True)
    ]
    template = PromptTemplate(shipped.prompt_text("next_item/movie"), "next_item/movie")
    tokenizer = load_tokenizer(BaseModel(str(model_path(MODEL))))
    return PromptEncoder(template, tokenizer, joined, max_history=20, max_tokens=4096)


def pair_figures(model, encoder, prompts, repeats) -> Iterator[dict]:
    """A prompt with two titles as one tree against the doubled data of trainers of single rows."""
    rng = np.random.default_rng(SEED)
    rows = [
        tree(p, [encoder.completions[i] for i in rng.choice(len(encoder.titles), 2, False)])
        for p in prompts
    ]
    paths = [path for row in rows for path in paths_of(row)]
    tokens = sum(len(completion) for _, completion in paths)
    found = {
        "padded rows": compared(
            model,
            lambda: ours(model, FullSoftmax(), rows),
            lambda: theirs_by_length(model, paths),
            repeats,
        )
    }
    other = tuned()  # TRL changes the model's forward
    if step := trl_step(other, encoder, paths):
        found[f"TRL {version('trl')}"] = compared(
            other,
            lambda: ours(other, FullSoftmax(), rows, lambda values: -values.sum() / tokens),
            step,
            repeats,
            close=2e-4,
        )
    else:
        print("no TRL, no figure against it: pip install 'llmrec[bench]'", file=sys.stderr)
    for peer, figure in found.items():
        yield {
            "part": "pairs",
            "figure": "SOFT pairs against the doubled data, pairs per second",
            "peer": peer,
            "pairs": len(rows),
            **lengths(rows),
            **rates(figure, len(rows)),
            **figure,
            "goal": 1.6,
            "limit": limit_of(model, rows, batches(paths)),
        }


def set_figure(model, encoder, prompts, rejected, repeats) -> dict:
    """A chosen title and `rejected` others behind a prompt: one tree against padded rows."""
    rng = np.random.default_rng(SEED)
    rows = [
        tree(
            p,
            [encoder.completions[i] for i in rng.choice(len(encoder.titles), rejected + 1, False)],
        )
        for p in prompts
    ]
    paths = [path for row in rows for path in paths_of(row)]

    def preference(values: torch.Tensor) -> torch.Tensor:
        each = values.view(-1, rejected + 1)
        others = torch.logsumexp(BETA * (each[:, 1:] - each[:, :1]), 1)
        return -torch.nn.functional.logsigmoid(-others).mean()

    found = compared(
        model,
        lambda: ours(model, FullSoftmax(), rows, preference),
        lambda: theirs(model, paths, preference),
        repeats,
    )
    return {
        "part": "sets",
        "figure": "a chosen title and rejected ones, prompts per second",
        "rejected": rejected,
        "prompts": len(rows),
        **lengths(rows),
        **rates(found, len(rows)),
        **found,
        "goal": "its limit",
        "limit": limit_of(model, rows, [paths]),
    }


def lengths(rows: Sequence[TokenTree]) -> dict:
    """Mean tokens of prompts and of titles."""
    titles = [len(s.ids) for row in rows for s in row.segments[1:]]
    return {
        "prompt_tokens": round(float(np.mean([len(r.segments[0].ids) for r in rows])), 1),
        "title_tokens": round(float(np.mean(titles)), 1),
    }


def msl_figure(model, encoder, users, count, repeats) -> dict:
    """Seconds of a step of msl and of sft on the same rows; the loss of msl checked by a loop."""
    rows = drawn_rows(encoder, users, count)
    with torch.no_grad():
        flat = rows[0].flatten()
        batch = FullSoftmax().prepare([flat])
        with head_at(model, batch["at"]):
            logits = (
                model(
                    input_ids=batch["input_ids"],
                    position_ids=batch["position_ids"],
                    attention_mask=torch.from_numpy(flat.mask)[None, None],
                )
                .logits[0]
                .numpy()
            )
        expected, token = 0.0, 0
        for _, completion in paths_of(rows[0]):
            for depth, label in enumerate(completion):
                allowed = logits[token, encoder.trie.allowed(completion[:depth])].astype(float)
                expected += np.log(np.exp(allowed - logits[token, label]).sum())
                token += 1
        masked = MaskedSoftmax(encoder.trie, encoder.completions)
        asked = masked.prepare([rows[0].flatten()])
        total = -float(masked.branch_log_probabilities(model, asked).sum())
    if abs(total / expected - 1) > 1e-5:
        sys.exit(f"msl is {total}, by a loop over the trie {expected}; nothing is timed")
    found = compared(
        model,
        lambda: ours(model, masked, rows),
        lambda: ours(model, FullSoftmax(), rows),
        repeats,
        close=None,
    )
    seconds = found["seconds"]
    return {
        "part": "msl",
        "figure": "seconds of a step: cross-entropy over msl, on the same rows",
        "rows": users,
        "targets_per_row": count,
        "msl": seconds[0],
        "sft": seconds[1],
        "head_positions": [len(asked["at"]), len(batch["at"])],
        **found,
        "goal": 1.0,
        "row_tokens": round(float(np.mean([len(row) for row in rows])), 1),
    }


def head_figure(model, encoder, users, count, repeats) -> dict:
    """Seconds of a step of msl on inline rows, with the head for the titles' tokens and whole."""
    rng = np.random.default_rng(SEED)
    encoder.max_history = count
    drawn = [rng.choice(len(encoder.titles), count + 1, replace=False) for _ in range(users)]
    rows = [inline(encoder, titles[:-1], int(titles[-1])) for titles in drawn]
    narrow = MaskedSoftmax(encoder.trie, encoder.completions, narrow=True)
    whole = MaskedSoftmax(encoder.trie, encoder.completions)
    batch = narrow.prepare([row.flatten() for row in rows])
    found = compared(
        model, lambda: ours(model, narrow, rows), lambda: ours(model, whole, rows), repeats
    )
    return {
        "part": "head",
        "figure": "seconds of a step of msl: the full head over that of the titles' tokens",
        "rows": users,
        "row_tokens": round(float(np.mean([len(row) for row in rows])), 1),
        "head_positions": len(batch["at"]),
        "tokens": len(batch["head"]),
        "vocabulary": model.config.vocab_size,
        "titles": found["seconds"][0],
        "full": found["seconds"][1],
        **found,
        "goal": 1.15,
    }


if __name__ == "__main__":
    main()
