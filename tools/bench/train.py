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
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from decode import MODEL, command, prompts_of
from soft import cost, provenance, table, tuned
from train_padding import padding_figures
from train_processes import process_figure
from train_trl import trl_step

from llmrec.fetch.cache import model_path
from llmrec.model.forward import head_at
from llmrec.model.loading import BaseModel, load_tokenizer
from llmrec.model.softmax import FullSoftmax, MaskedSoftmax, Softmax, branch_sums, log_probabilities
from llmrec.recipe import shipped
from llmrec.text.encoding import PromptEncoder
from llmrec.text.rows import all_targets, inline
from llmrec.text.templates import PromptTemplate
from llmrec.text.tree import Segment, TokenTree

SEED = 0
AT_ONCE = 8  # padded rows that are read together; one tree holds as many tokens
BETA = 0.1  # of the preference loss
PARTS = {
    "rows": "titles targets row_tokens title_tokens tree padded ratio goal limit repeats",
    "pairs": "peer pairs prompt_tokens title_tokens tree padded ratio goal limit repeats",
    "msl": "rows targets_per_row head_positions msl sft ratio goal repeats",
    "head": "rows row_tokens head_positions tokens vocabulary titles full ratio goal repeats",
    "sets": "rejected prompt_tokens title_tokens tree padded ratio goal limit repeats",
    "processes": "rows_a_step row_tokens one two share goal mb_reduced mb_gradients",
    "padding": "shape batch rows row_tokens waste waste_unordered most_tokens",
}
SECTIONS = {
    "rows": (
        "All targets of a user in one row",
        "Targets per second. Padded: a row for each "
        f"target with the history before it, {AT_ONCE} rows of like length at once, logits at "
        "the title's positions only.",
    ),
    "pairs": (
        "SOFT pairs",
        "Pairs per second. The peers read two rows for each pair, padded, with "
        "the head at completion positions only: TRL's own SFTTrainer on the doubled data, "
        "and the same step restated here.",
    ),
    "msl": (
        "The softmax over continuations",
        "Seconds of a step on the same rows; ratio: "
        "cross-entropy over msl. Head positions: of msl, of cross-entropy, in the first row.",
    ),
    "head": (
        "The head for the tokens of titles",
        "Seconds of a step of msl on the same inline rows; tokens: that occur in a title; ratio: "
        "the full head over these alone.",
    ),
    "sets": (
        "A chosen title and rejected ones",
        "Prompts per second. Padded: a row for each "
        "title; the loss is a logistic one of their log-probabilities.",
    ),
    "processes": (
        "Two processes on two cores",
        "Rows per second of the trainer with the same "
        "optimiser steps, one thread a process; share: of twice the speed. Megabytes: "
        "reduced over processes in a step, and held by the gradients of the adapter.",
    ),
    "padding": (
        "Padding",
        "Share of an epoch's tokens that are padding when rows of like length "
        "share a step, and in a drawn order; the most tokens of a micro-batch.",
    ),
}
Path_ = tuple[np.ndarray, np.ndarray]  # a prompt, and the completion to learn behind it


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


def tree(prompt: np.ndarray, completions: Sequence[np.ndarray]) -> TokenTree:
    """The prompt, and every completion behind it."""
    branches = (Segment(ids, 0, number) for number, ids in enumerate(completions))
    return TokenTree((Segment(prompt), *branches))


def mean_loss(values: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a target; for values (T,) of the targets' log-probabilities."""
    return -values.mean()


def ours(
    model, softmax: Softmax, rows: Sequence[TokenTree], loss_of: Callable = mean_loss
) -> float:
    """Forward and backward over one row a tree, laid out anew; the loss."""
    batch = softmax.prepare([row.flatten() for row in rows])
    loss = loss_of(softmax.branch_log_probabilities(model, batch))
    loss.backward()
    return float(loss.detach())


def theirs(model, paths: Sequence[Path_], loss_of: Callable = mean_loss) -> float:
    """Forward and backward over right-padded rows, all in one batch; the loss."""
    ids = np.zeros((len(paths), max(len(p) + len(c) for p, c in paths)), np.int64)
    seen, at, labels, owner = np.zeros_like(ids), [], [], []
    for row, (prompt, completion) in enumerate(paths):
        size = len(prompt) + len(completion)
        ids[row, :size], seen[row, :size] = np.concatenate([prompt, completion]), 1
        at.append(row * ids.shape[1] + np.arange(len(prompt) - 1, size - 1))
        labels.append(completion.astype(np.int64))
        owner.append(np.full(len(completion), row))
    at, labels, owner = (torch.from_numpy(np.concatenate(x)) for x in (at, labels, owner))
    with head_at(model, at):
        out = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(seen))
    values = branch_sums(log_probabilities(out.logits[0], labels), owner, len(paths))
    loss = loss_of(values)
    loss.backward()
    return float(loss.detach())


def theirs_by_length(model, paths: Sequence[Path_]) -> float:
    """The same in batches of rows of like length; the mean loss of all."""
    parts = batches(paths)
    return sum(theirs(model, some, lambda v: -v.sum() / len(paths)) for some in parts)


def batches(paths: Sequence[Path_]) -> list[list[Path_]]:
    """Rows of like length together, AT_ONCE of them."""
    ordered = sorted(paths, key=lambda path: -sum(map(len, path)))
    return [ordered[i : i + AT_ONCE] for i in range(0, len(ordered), AT_ONCE)]


def padded_tokens(parts: Sequence[Sequence[Path_]]) -> int:
    """How many tokens padded batches hold."""
    return sum(len(some) * max(sum(map(len, path)) for path in some) for some in parts)


def compared(
    model, mine: Callable, peer: Callable, repeats: int, close: float | None = 1e-5
) -> dict:
    """Seconds of both sides, and the median and range of their ratio, over alternating repeats.

    `close`: how near to each other loss and gradients of the first repeat must be; None: anyhow.
    """
    seconds, found = [], []
    for number in range(repeats):
        spent = []
        for run in (mine, peer):
            model.zero_grad()
            begun = time.perf_counter()
            loss = run()
            spent.append(time.perf_counter() - begun)
            if number == 0:
                grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
                found.append((loss, torch.cat(grads)))
        if number == 0 and close:
            (loss, gradient), (same, gradients) = found
            apart = abs(loss / same - 1)
            gradients_apart = float((gradient - gradients).abs().max() / gradients.abs().max())
            if not (apart <= close and gradients_apart <= close):
                sys.exit(
                    f"losses {loss} and {same}, gradients {gradients_apart:.1e} of the "
                    "largest apart; nothing is timed"
                )
        seconds.append(spent)
    ratios = [t / o for o, t in seconds]
    told = (
        {"loss_apart": float(f"{apart:.1e}"), "gradients_apart": float(f"{gradients_apart:.1e}")}
        if close
        else {}
    )
    return {
        "seconds": [round(statistics.median(s), 3) for s in zip(*seconds, strict=True)],
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "repeats": repeats,
        **told,
    }


def rates(found: dict, count: int) -> dict:
    """How many a second each side did."""
    mine, peer = found["seconds"]
    return {"tree": round(count / mine, 3), "padded": round(count / peer, 3)}


def limit_of(model, rows: Sequence[TokenTree], parts: Sequence[Sequence[Path_]]) -> float:
    """The ratio of multiplications by weights; attention is left out."""
    flats = [row.flatten() for row in rows]
    learned = sum(len(c) for some in parts for _, c in some)
    mine = len(flats) * max(len(flat.input_ids) for flat in flats)
    at = sum(len(flat.labels) for flat in flats)
    return round(cost(model, padded_tokens(parts), learned) / cost(model, mine, at), 2)


def paths_of(row: TokenTree) -> list[Path_]:
    """What each predicted segment of a tree reads, and itself."""
    found = []
    for segment in row.segments:
        if segment.target >= 0:
            before, at = [], segment.parent
            while at >= 0:
                before.insert(0, row.segments[at].ids)
                at = row.segments[at].parent
            found.append((np.concatenate(before), segment.ids))
    return found


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


def page(figures: list[dict]) -> str:
    """The figures as Markdown."""
    on = figures[0]
    lines = [
        "# Training steps that read a prompt once\n\n"
        f"`{command()}`: {on['model']}, float32, LoRA r 8 on all linear layers, "
        f"{on['threads']} CPU threads ({on['machine']}), torch {on['torch']}, transformers "
        f"{on['transformers']}, peft {on['peft']}; MovieLens-100K. Forward and backward. Rates are "
        "medians of repeats that alternate both sides, ratios the medians of theirs; limits are "
        "ratios of multiplications by weights in the shapes that ran, attention left out. Losses "
        "and gradients of both sides are equal within 1e-5, TRL's within 2e-4.\n"
    ]
    for part, (title, note) in SECTIONS.items():
        some = [f for f in figures if f["part"] == part]
        if some:
            ranged = [
                {"ratio_range": [f["ratio"], f["ratio"]], **f, "goal": f.get("goal") or "-"}
                for f in some
            ]
            lines += [f"## {title}\n\n{note}\n", *table(ranged, PARTS[part])]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
