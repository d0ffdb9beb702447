"""Best-first search against beam search: what it costs, and what beams miss.

Both answer the same users in the same batches. The lists of best-first search are checked: their
scores are those of the titles computed apart, and no other open title scores above the last of
them (drawn ones, or with --check-all every one, which takes minutes a user). Time, tokens read
behind the prompts, the share of the true best items that beams miss, the share of lists that beams
can prove, and what it does to HR and NDCG. Without --run the untuned model answers; with the folder
of a trained run both answer. One line of JSON for each figure on stdout, and with --out a Markdown
page.

    python tools/bench/exact.py --users 16 --softmax allowed --out results/exact.md
    python tools/bench/exact.py --run runs/sft_ml100k --users 150 --out results/exact.md
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from decode import MODEL, command
from figures import provenance

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.best_first import best_first
from llmrec.decoding.candidates import candidate_scores
from llmrec.decoding.likelihood import path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.evaluation.intervals import mean_interval, paired_test
from llmrec.evaluation.metrics import hit_rate, ndcg
from llmrec.inference.from_recipe import adapter_of, base_of, encoder_of
from llmrec.model.loading import adapter_off, load_model, load_tuned
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare

DRAWN = 200  # other open titles that a list is compared with
AT_ONCE = 16  # of them are read at a time, each behind a copy of the prompt
SOFTMAXES = {"allowed": (True,), "vocabulary": (False,), "both": (True, False)}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--run", type=Path, help="a trained run's folder")
    options.add_argument("--users", type=int, default=16)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--top-k", type=int, default=10)
    options.add_argument("--beams", type=int, default=10)
    options.add_argument("--expand", type=int, default=16, help="places read on from at a time")
    options.add_argument(
        "--softmax",
        choices=SOFTMAXES,
        default="both",
        help="over the vocabulary an untuned model needs minutes",
    )
    options.add_argument("--checked", type=int, default=2, help="users whose lists are checked")
    options.add_argument("--check-all", action="store_true", help="against all open titles")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    figures = []
    for system, model, encoder, asked in systems(given):
        for renormalise in SOFTMAXES[given.softmax]:
            found = figure(model, encoder, asked, renormalise, given)
            figures.append({"figure": "best-first against beams", "system": system, **found})
            print(json.dumps(figures[-1]), flush=True)
    if given.out:
        given.out.write_text(page(figures, given), "utf-8")


def systems(given):
    """(name, model, its prompts, the users asked) of the untuned model, then of the run's own."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = load("sft_ml100k", [f"output_dir={scratch}", "prompt.max_history=25"])
        folder = RunFolder.of(recipe)
        if given.run:
            recipe, folder = load(given.run / "recipe.yaml", []), RunFolder(given.run)
        prepare.run(recipe, folder)
        test = Examples.read(folder.examples("test"))
        catalog = Catalog.read(folder.items)
    encoder = encoder_of(recipe, catalog)
    asked = test.take(np.arange(min(given.users, len(test))))
    if not given.run:
        yield f"{MODEL}, untuned", load_model(base_of(recipe), "cpu"), encoder, asked
        return
    model = load_tuned(base_of(recipe), adapter_of(recipe, folder))
    with adapter_off(model):
        yield f"{MODEL}, untuned", model, encoder, asked
    yield f"{MODEL}, tuned", model, encoder, asked


def figure(model, encoder, asked, renormalise, given) -> dict:
    """All that is measured of one model and scoring."""
    scoring, top_k = Scoring(renormalise), given.top_k
    prompts = [encoder.prompt(h).ids for h in asked.histories()]
    warm = SharedPrompt(model, [prompts[0][:16]])
    beam_search(
        warm, OpenItems(encoder.trie, [asked.history(0)]), beams=2, top_k=2, scoring=scoring
    )
    seconds, lists = {"beams": [], "best_first": []}, {"beams": [], "best_first": []}
    columns, passes = [], []
    for begin in range(0, len(prompts), given.batch):
        part = slice(begin, begin + given.batch)
        for name in ("beams", "best_first")[:: -1 if begin // given.batch % 2 else 1]:
            started = time.perf_counter()
            shared = SharedPrompt(model, prompts[part])
            open_items = OpenItems(encoder.trie, asked.histories()[part])
            if name == "beams":
                lists[name] += beam_search(
                    shared, open_items, beams=given.beams, top_k=top_k, scoring=scoring
                )
            else:
                found = best_first(
                    shared, open_items, top_k=top_k, scoring=scoring, expand=given.expand
                )
                lists[name] += found.rankings
                columns += found.columns.tolist()
                passes.append(found.passes)
            seconds[name].append((time.perf_counter() - started) / len(prompts[part]))
    for user in range(min(given.checked, len(prompts))):
        check(
            model,
            encoder,
            prompts[user],
            asked.history(user),
            renormalise,
            lists["best_first"][user],
            given.check_all,
        )
    true = [set(r.positions.tolist()) for r in lists["best_first"]]
    beam = [set(r.positions.tolist()) for r in lists["beams"]]
    missed = [len(t - b) / len(t) for t, b in zip(true, beam, strict=True)]
    users = np.arange(len(prompts))
    shown = {}
    for name, metric in ((f"HR@{top_k}", hit_rate), (f"NDCG@{top_k}", ndcg)):
        values = {
            n: metric([r.positions for r in of], asked.targets, top_k) for n, of in lists.items()
        }
        test = paired_test(values["best_first"], values["beams"], users)
        shown[name] = {n: round(float(v.mean()), 4) for n, v in values.items()} | {
            "difference": [round(x, 4) for x in (test.difference, test.low, test.high)],
            "p": round(test.p_value, 3),
        }
    lost = mean_interval(np.array(missed), users)
    return {
        "softmax": "allowed tokens" if renormalise else "whole vocabulary",
        "users": len(prompts),
        "items": len(encoder.titles),
        "top_k": top_k,
        "beams": given.beams,
        "expand": given.expand,
        "batch": given.batch,
        "prompt_tokens": round(float(np.mean([len(p) for p in prompts])), 1),
        "title_tokens": round(float(np.mean([len(c) for c in encoder.completions])), 1),
        "beams_users_per_second": round(1 / float(np.mean(seconds["beams"])), 3),
        "best_first_users_per_second": round(1 / float(np.mean(seconds["best_first"])), 3),
        "ratio": round(float(np.sum(seconds["best_first"]) / np.sum(seconds["beams"])), 2),
        "goal": 1.5,
        "repeats": 1,
        "proven": 1.0,
        "checked": min(given.checked, len(prompts)),
        "proven_by_beams": round(float(np.mean([r.certified for r in lists["beams"]])), 3),
        "missed_by_beams": [round(x, 3) for x in (lost.mean, lost.low, lost.high)],
        "columns": round(float(np.mean(columns)), 1),
        "passes": round(float(np.mean(passes)), 1),
        **shown,
        **provenance(),
    }


def check(model, encoder, prompt, history, renormalise, ranking, every: bool) -> None:
    """Stops unless a list has the scores of its titles, and nothing compared scores above them."""
    others = np.setdiff1d(np.arange(len(encoder.titles)), [*history, *ranking.positions])
    if not every:
        others = np.random.default_rng(0).choice(others, min(DRAWN, len(others)), replace=False)
    asked = np.concatenate([ranking.positions, others])
    score = over_children if renormalise else over_vocabulary
    scores = score(model, encoder, prompt, history, asked)
    found, rest = np.split(scores, [len(ranking.positions)])
    if not np.allclose(ranking.scores, found, rtol=1e-5, atol=1e-4):
        sys.exit(f"best-first gives {ranking.scores}, the titles' scores are {found}")
    last = ranking.scores[-1]
    if len(rest) and rest.max() > last + 1e-4 + 1e-5 * abs(last):
        sys.exit(f"an open title scores {rest.max()}, the last that best-first found {last}")


def over_vocabulary(model, encoder, prompt, _, asked) -> np.ndarray:
    """(C,) scores of titles under the whole vocabulary, all as branches behind one prompt."""
    return candidate_scores(
        SharedPrompt(model, [prompt]), encoder.completions, asked[None], renormalise=False
    )[0]


def over_children(model, encoder, prompt, history, asked) -> np.ndarray:
    """(C,) scores of titles under the tokens that lead to any open one, some titles at a time."""
    shared, scores = SharedPrompt(model, [prompt]), []
    for begin in range(0, len(asked), AT_ONCE):
        some = asked[begin : begin + AT_ONCE].tolist()
        open_items = OpenItems(encoder.trie, [history] * len(some))
        copies = shared.of(np.zeros(len(some), np.int64))
        found = path_scores(copies, encoder.completions, some, open_items)
        # Titles of the same tokens share a probability there; in a list each has all of it.
        scores.append(np.log(found.sharing) - found.nll())
    return np.concatenate(scores)


def page(figures: list[dict], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    first = figures[0]
    hit, gain = f"HR@{given.top_k}", f"NDCG@{given.top_k}"
    checked = (
        f"Of the first {first['checked']} users of each line the lists' scores equal those of "
        "their titles computed apart, and "
        + ("no" if given.check_all else f"none of {DRAWN} drawn")
        + " other open titles score above the last."
    )
    lines = [
        "# The true best items, and what beams miss",
        "",
        f"`{command()}`: {first['threads']} CPU threads, torch {first['torch']}, transformers "
        f"{first['transformers']}, float32; "
        f"{first['users']} users of MovieLens-100K in batches of {first['batch']}, prompts of "
        f"{first['prompt_tokens']} tokens, {first['items']} titles of {first['title_tokens']}; "
        f"{first['beams']} beams, {first['top_k']} items, {first['expand']} places read on from at "
        f"a time; every user is answered once by both. {checked} Intervals are over users.",
        "",
    ]
    header = [
        "model",
        "softmax",
        "beams, users/s",
        "best-first, users/s",
        "time (goal 1.5)",
        "true items that beams miss",
        "proven by beams",
        "tokens read",
        "passes",
        f"{hit}: beams, best-first",
        "difference",
        f"{gain}: beams, best-first",
        "difference",
    ]
    rows = [
        [
            f["system"],
            f["softmax"],
            f["beams_users_per_second"],
            f["best_first_users_per_second"],
            f["ratio"],
            _interval(f["missed_by_beams"]),
            f["proven_by_beams"],
            f["columns"],
            f["passes"],
            *(
                text
                for name in (hit, gain)
                for text in (
                    f"{f[name]['beams']}, {f[name]['best_first']}",
                    _interval(f[name]["difference"]),
                )
            ),
        ]
        for f in figures
    ]
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, line))} |" for line in cells), ""])


def _interval(values: list[float]) -> str:
    return f"{values[0]} [{values[1]}, {values[2]}]"


if __name__ == "__main__":
    main()
