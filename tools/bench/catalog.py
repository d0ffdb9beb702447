"""How the cost of constrained decoding grows: with the catalog, the beams and the prompt.

Beams and best-first search over drawn titles (`trie.py` says how they are drawn) and drawn prompts;
the model is real. What the constraint costs in a step is all that is not the forward pass, over
what an unconstrained beam search does there at least: the normaliser and the best of beams x
vocabulary. One line of JSON for each figure on stdout, and with --out a Markdown page.

    python tools/bench/catalog.py --out results/catalog.md
    python tools/bench/catalog.py --sizes 1000 10000000        # 5 GiB and some minutes more
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from decode import MODEL, NOTHING
from soft import provenance
from trie import catalog

from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.best_first import best_first
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.model.loading import BaseModel, load_model
from llmrec.stages.fetch import model_path
from llmrec.text.trie import TitleTrie

SIZES = (1_000, 100_000, 1_000_000)
BEAMS, PROMPT, USERS = 10, 150, 4
LENGTH = 15  # mean tokens of a drawn title


class TimedPrompt(SharedPrompt):
    """A SharedPrompt that adds up what reading behind the prompts takes."""

    def __init__(self, model, prompts) -> None:
        super().__init__(model, prompts)
        self.seconds, self.passes = 0.0, 0

    def read(self, *arguments) -> torch.Tensor:
        """See `SharedPrompt.read`."""
        begun = time.perf_counter()
        logits = super().read(*arguments)
        self.seconds += time.perf_counter() - begun
        self.passes += 1
        return logits


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options.add_argument("--beams", type=int, nargs="+", default=(5, 10, 20, 50))
    options.add_argument("--prompts", type=int, nargs="+", default=(75, 150, 300, 600))
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    model = load_model(BaseModel(str(model_path(MODEL))), "cpu")
    figures, tries = [], {}

    def measured(swept: str, size: int, beams: int, prompt: int) -> None:
        if size not in tries:
            tries.clear()  # one catalog in memory at a time
            tries[size] = TitleTrie.from_flat(*catalog(size, LENGTH))
        found = figure(model, tries[size], beams, prompt, given.repeats)
        figures.append({"figure": "growth of decoding", "swept": swept, **found})
        print(json.dumps(figures[-1]), flush=True)

    for size in given.sizes:
        measured("items", size, BEAMS, PROMPT)
    for beams in given.beams:
        measured("beams", given.sizes[0], beams, PROMPT)
    for prompt in given.prompts:
        measured("prompt tokens", given.sizes[0], BEAMS, prompt)
    if given.out:
        given.out.write_text(page(figures), "utf-8")


def figure(model, trie: TitleTrie, beams: int, prompt: int, repeats: int) -> dict:
    """Users per second of both searches, and what the constraint costs in a step of the beams."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(100, 40_000, prompt).astype(np.int32) for _ in range(USERS)]
    open_items = OpenItems(trie, [NOTHING] * USERS)
    rates, per_step, shares, certified, columns = [], [], [], 0, 0.0
    exact = []
    for _ in range(repeats + 1):  # the first is to get warm
        begun = time.perf_counter()
        shared = TimedPrompt(model, prompts)
        read = time.perf_counter()
        rankings = beam_search(shared, open_items, beams=beams, top_k=beams, scoring=Scoring(False))
        done = time.perf_counter()
        rates.append(USERS / (done - begun))
        free = unconstrained(shared.logits, beams, shared.passes)
        per_step.append((done - read) / max(1, shared.passes))
        shares.append((done - read) / (shared.seconds + free))
        certified = sum(r.certified for r in rankings)
        begun = time.perf_counter()
        found = best_first(SharedPrompt(model, prompts), open_items, top_k=beams,
                           scoring=Scoring(True))  # fmt: skip
        exact.append(USERS / (time.perf_counter() - begun))
        columns = float(found.columns.mean())
    return {
        "items": len(trie), "beams": beams, "prompt_tokens": prompt, "users": USERS,
        "beams_users_per_second": round(statistics.median(rates[1:]), 3),
        "step_ms": round(1000 * statistics.median(per_step[1:]), 1),
        "constraint": round(statistics.median(shares[1:]), 3), "goal": 1.03,
        "proven": f"{certified} of {USERS}",
        "best_first_users_per_second": round(statistics.median(exact[1:]), 3),
        "best_first_columns": columns, "repeats": repeats, **provenance(),
    }  # fmt: skip


def unconstrained(logits: torch.Tensor, beams: int, passes: int) -> float:
    """Seconds of the normaliser and of the best of beams x vocabulary, for as many passes."""
    rows = logits[:1].expand(len(logits) * beams, -1).contiguous()
    begun = time.perf_counter()
    for _ in range(passes):
        scores = torch.log_softmax(rows, dim=-1).view(len(logits), -1)
        scores.topk(2 * beams, dim=-1)
    return time.perf_counter() - begun


def page(figures: list[dict]) -> str:
    """The figures as Markdown."""
    on = figures[0]
    lines = [
        "# How the cost of decoding grows", "",
        f"`python tools/bench/catalog.py`: {on['model']}, float32, {on['threads']} CPU threads "
        f"({on['machine']}), torch {on['torch']}; drawn titles and prompts, {on['users']} users a "
        f"batch, medians of {on['repeats']}. Beams under the softmax over the vocabulary; "
        "best-first under that over the allowed tokens, as many items as beams. Constraint: a step "
        "of the beams over an unconstrained one, whose forward pass is the same (goal 1.03).", "",
        "| swept | items | beams | prompt | beams, users/s | ms a step | constraint | proven | "
        "best-first, users/s | tokens read |", "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {f['swept']} | {f['items']:,} | {f['beams']} | {f['prompt_tokens']} | "
        f"{f['beams_users_per_second']} | {f['step_ms']} | {f['constraint']} | {f['proven']} | "
        f"{f['best_first_users_per_second']} | {f['best_first_columns']:.0f} |"
        for f in figures
    ]
    swept = [f for f in figures if f["swept"] == "items"]
    ratio = swept[-1]["step_ms"] / swept[0]["step_ms"]
    lines += ["", f"A step with {swept[-1]['items']:,} items takes {ratio:.2f} times one with "
              f"{swept[0]['items']:,}; the goal is 1.15 at most.", ""]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
