"""How the cost of constrained decoding grows: with the catalog, the beams and the prompt.

Beams and best-first search over drawn titles (`trie.py` says how they are drawn) and drawn prompts;
the model is real. All catalogs are in memory at once and answer in turns, every repeat another
batch of prompts. A step is a pass of the model and the choice of the next beams. What the
constraint costs in a step is all that is not the forward pass, over what an unconstrained beam
search does there at least: the normaliser and the best of beams x vocabulary.

Passes are filled with tokens that the beams are forced to take, so those of a large catalog, whose
titles part later, hold other tokens than those of a small one. The largest and the smallest are
therefore also searched without reading ahead: the steps compared have the same number, the same
beams and equally many columns. One line of JSON for each figure on stdout, and with --out a
Markdown page.

    python tools/bench/catalog.py --out results/catalog-bench.md
    python tools/bench/catalog.py --sizes 1e3 1e7              # 5 GiB and a minute more
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from decode import MODEL, NOTHING, command
from figures import provenance
from trie import catalog

from llmrec.decoding import beam
from llmrec.decoding.best_first import best_first
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.fetch.cache import model_path
from llmrec.model.loading import BaseModel, load_model
from llmrec.text.trie import TitleTrie

BEAMS, PROMPT, USERS = 10, 150, 4
LENGTH = 15  # mean tokens of a drawn title
FEW = 2  # repeats of best-first search, and of the points of beams and prompts
COLUMNS = (
    "swept items beams prompt_tokens beams_users_per_second step_ms passes columns column_ms "
    "constraint proven best_first_users_per_second best_first_columns repeats"
)


class TimedPrompt(SharedPrompt):
    """A SharedPrompt that notes for each pass its columns and what the step of it took.

    `steps`: (columns, seconds since the last pass or the prompt was read, seconds of the pass).
    """

    def __init__(self, model, prompts) -> None:
        super().__init__(model, prompts)
        self.steps: list[tuple[int, float, float]] = []
        self._end = time.perf_counter()

    def read(self, tokens, *arguments) -> torch.Tensor:
        """See `SharedPrompt.read`."""
        begun = time.perf_counter()
        logits = super().read(tokens, *arguments)
        last, self._end = self._end, time.perf_counter()
        self.steps.append((tokens.shape[1], self._end - last, self._end - begun))
        return logits


@dataclass(frozen=True)
class Search:
    """One beam search of USERS users. Seconds in all and behind the prompts; the steps; seconds of
    the passes and of what an unconstrained search does beside them; how many lists are proven."""

    seconds: float
    behind: float
    steps: Sequence[tuple[int, float, float]]
    forward: float
    free: float
    proven: int


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sizes", type=float, nargs="+", default=(1e3, 1e4, 1e5, 1e6))
    options.add_argument("--beams", type=int, nargs="*", default=(5, 20, 50))
    options.add_argument("--prompts", type=int, nargs="*", default=(75, 300, 600))
    options.add_argument(
        "--repeats",
        type=int,
        default=5,
        help=f"of the smallest and the largest size; {FEW} of others",
    )
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    model = load_model(BaseModel(str(model_path(MODEL))), "cpu")
    figures = []
    for figure in measured(model, given):
        figures.append({**figure, **provenance()})
        print(json.dumps(figures[-1]), flush=True)
    if given.out:
        given.out.write_text(page(figures), "utf-8")


def measured(model, given: argparse.Namespace):
    """The lines of all sweeps; the point that they share was measured once."""
    sizes = sorted(map(int, given.sizes))
    tries = {size: TitleTrie.from_flat(*catalog(size, LENGTH)) for size in sizes}
    ends = {size: tries[size] for size in (sizes[0], sizes[-1])}
    found = {size: ([], []) for size in sizes}
    even = {size: [] for size in ends}
    searched(model, tries[sizes[0]], drawn(0), 2)  # warm
    for number in range(given.repeats):
        prompts = drawn(number)
        turn = -1 if number % 2 else 1  # so that none is always the first
        for size in sizes[::turn]:
            if number < FEW or size in ends:
                found[size][0].append(searched(model, tries[size], prompts, BEAMS))
            if number < FEW:
                found[size][1].append(best_found(model, tries[size], prompts, BEAMS))
        with mock.patch.object(beam, "ROOM", 0):  # a pass holds what it must and no more
            for size in list(ends)[::turn]:
                even[size].append(searched(model, ends[size], prompts, BEAMS))
    for size in sizes:
        yield growth("items", size, BEAMS, PROMPT, *found[size])
    yield constraint(sizes[-1], found[sizes[-1]][0])
    if len(ends) == 2:
        yield against(sizes[0], sizes[-1], even[sizes[0]], even[sizes[-1]])
    shared = [search[:FEW] for search in found[sizes[0]]]
    for swept, base, points in (
        ("beams", BEAMS, given.beams),
        ("prompt tokens", PROMPT, given.prompts),
    ):
        for value in sorted({base, *points}) if points else ():
            beams, tokens = (value, PROMPT) if swept == "beams" else (BEAMS, value)
            both = shared if value == base else ([], [])
            for number in range(0 if value == base else min(FEW, given.repeats)):
                prompts = drawn(number, tokens)
                both[0].append(searched(model, tries[sizes[0]], prompts, beams))
                both[1].append(best_found(model, tries[sizes[0]], prompts, beams))
            yield growth(swept, sizes[0], beams, tokens, *both)


def drawn(number: int, tokens: int = PROMPT) -> list[np.ndarray]:
    """One batch of prompts; another for each `number`."""
    rng = np.random.default_rng(number)
    return [rng.integers(100, 40_000, tokens).astype(np.int32) for _ in range(USERS)]


def searched(model, trie: TitleTrie, prompts, beams: int) -> Search:
    """A beam search under the softmax over the vocabulary."""
    open_items = OpenItems(trie, [NOTHING] * USERS)
    begun = time.perf_counter()
    shared = TimedPrompt(model, prompts)
    read = time.perf_counter()
    rankings = beam.beam_search(
        shared, open_items, beams=beams, top_k=beams, scoring=beam.Scoring(renormalise=False)
    )
    done = time.perf_counter()
    return Search(
        done - begun,
        done - read,
        shared.steps,
        sum(step[2] for step in shared.steps),
        unconstrained(shared.logits, beams, len(shared.steps)),
        sum(ranking.certified for ranking in rankings),
    )


def best_found(model, trie: TitleTrie, prompts, top_k: int) -> tuple[float, float]:
    """Seconds of a best-first search over the allowed tokens, and the tokens it read a user."""
    open_items = OpenItems(trie, [NOTHING] * USERS)
    begun = time.perf_counter()
    found = best_first(
        SharedPrompt(model, prompts),
        open_items,
        top_k=top_k,
        scoring=beam.Scoring(renormalise=True),
    )
    return time.perf_counter() - begun, float(found.columns.mean())


def unconstrained(logits: torch.Tensor, beams: int, passes: int) -> float:
    """Seconds of the normaliser and of the best of beams x vocabulary, for as many passes."""
    rows = logits[:1].expand(len(logits) * beams, -1).contiguous()
    begun = time.perf_counter()
    for _ in range(passes):
        scores = torch.log_softmax(rows, dim=-1).view(len(logits), -1)
        scores.topk(2 * beams, dim=-1)
    return time.perf_counter() - begun


def growth(swept: str, items: int, beams: int, tokens: int, searches, best) -> dict:
    """Users per second of both searches, and what a step of the beams holds and takes."""
    passes = [len(search.steps) for search in searches]
    columns = [step[0] for search in searches for step in search.steps]
    step = statistics.median(1000 * s.behind / len(s.steps) for s in searches)
    return {
        "figure": "growth of decoding",
        "swept": swept,
        "items": items,
        "beams": beams,
        "prompt_tokens": tokens,
        "users": USERS,
        "beams_users_per_second": round(USERS / statistics.median(s.seconds for s in searches), 3),
        "step_ms": round(step, 1),
        "passes": round(float(np.mean(passes)), 1),
        "columns": round(float(np.mean(columns)), 1),
        "column_ms": round(step / float(np.mean(columns)), 2),
        "constraint": round(statistics.median(map(share, searches)), 3),
        "proven": f"{sum(s.proven for s in searches)} of {USERS * len(searches)}",
        "best_first_users_per_second": round(USERS / statistics.median(b[0] for b in best), 3),
        "best_first_columns": round(float(np.mean([b[1] for b in best])), 1),
        "repeats": len(searches),
    }


def share(search: Search) -> float:
    """The search behind the prompts over an unconstrained one of the same passes."""
    return search.behind / (search.forward + search.free)


def constraint(items: int, searches: Sequence[Search]) -> dict:
    """What the constraint costs in a step of the largest catalog."""
    return {
        "figure": "a step of the beams over an unconstrained one",
        "items": items,
        **middle([share(search) for search in searches]),
        "goal": 1.03,
    }


def against(few: int, many: int, small: Sequence[Search], large: Sequence[Search]) -> dict:
    """Steps of equal number, beams and columns with `many` items over those with `few`."""
    ratios, other, steps, unequal = [], [], 0, 0
    for mine, its in zip(small, large, strict=True):
        pairs = list(zip(mine.steps, its.steps, strict=False))
        same = [(a, b) for a, b in pairs if a[0] == b[0]]
        steps, unequal = steps + len(same), unequal + len(pairs) - len(same)
        ratios.append(sum(b[1] for _, b in same) / sum(a[1] for a, _ in same))
        other += [(a[1] - a[2], b[1] - b[2]) for a, b in same]
    return {
        "figure": f"a step with {many:,} items over one with {few:,}",
        "items": [few, many],
        **middle(ratios),
        "goal": 1.15,
        "beside_the_pass_ms": [
            round(1000 * statistics.mean(x), 2) for x in zip(*other, strict=True)
        ],
        "steps": steps,
        "steps_of_other_width": unequal,
        "beams": BEAMS,
        "users": USERS,
    }


def middle(ratios: list[float]) -> dict:
    """Median and range."""
    return {
        "ratio": round(statistics.median(ratios), 3),
        "repeats": len(ratios),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def page(figures: list[dict]) -> str:
    """The figures as Markdown."""
    on = figures[0]
    keys = COLUMNS.split()
    lines = [
        "# How the cost of decoding grows",
        "",
        f"`{command()}`: {on['model']}, float32, {on['threads']} CPU threads ({on['machine']}), "
        f"torch {on['torch']}; drawn titles and prompts, {on['users']} users a batch, medians over "
        f"as many batches as the last column says; all sizes are in memory and answer each batch "
        "in turns. Beams under the softmax over the vocabulary; best-first under that over the "
        "allowed tokens, as many items as beams. Constraint: a step of the beams over an "
        "unconstrained one whose pass is the same. Columns: tokens a user in a pass, filled with "
        "forced ones that later steps need.",
        "",
    ]
    cells = [[key.replace("_", " ") for key in keys], ["---"] * len(keys)]
    cells += [
        [f"{f[key]:,}" if key == "items" else str(f[key]) for key in keys]
        for f in figures
        if "swept" in f
    ]
    lines += [*(f"| {' | '.join(row)} |" for row in cells), ""]
    for f in (f for f in figures if "goal" in f):
        low, high = f["ratio_range"]
        lines += [
            f"- {f['figure']}: {f['ratio']} ({low} to {high}), goal {f['goal']} at most"
            + told(f)
            + "."
        ]
    return "\n".join([*lines, ""])


def told(figure: dict) -> str:
    """What a comparison of catalogs compared."""
    if "steps" not in figure:
        return f"; {figure['items']:,} items, passes as they are in use"
    few, many = figure["beside_the_pass_ms"]
    return (
        f"; the same users and {figure['beams']} beams, no reading ahead, {figure['steps']} pairs "
        f"of steps with the same number and columns ({figure['steps_of_other_width']} pairs of "
        f"other columns left out). Beside the pass of the model a step took {few} and {many} ms"
    )


if __name__ == "__main__":
    main()
