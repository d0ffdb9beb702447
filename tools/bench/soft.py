"""SOFT's two costs side by side with Hugging Face, in one run: training on pairs, and own answers.

Pairs: forward and backward of a LoRA step over prompts with a real and a self-distilled title. The
peer reads two padded batches, one for each title, with logits at every position; llmrec reads one
tree a pair. Own answers: 4 beams behind each prompt, constrained to the catalog or free. The peer
is `generate`, one prompt at a time or left padded in batches, whichever is faster. Losses,
gradients and answers of the first repeat are checked equal. One line of JSON for each figure on
stdout, and with --out a Markdown page. `--pairs 0` or `--users 0` leaves that half out.

    python tools/bench/soft.py --pairs 4 --users 8 --repeats 5 --out soft.md
    python tools/bench/soft.py --pairs 2 --history 25 --users 4 --peers batched
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from decode import MODEL, NOTHING, command, limit, nested, prompts_of
from figures import SEED, provenance, table

from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.free import free_beam_search
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.fetch.cache import model_path
from llmrec.model.loading import BaseModel, Lora, load_model, with_new_lora
from llmrec.model.softmax import FullSoftmax
from llmrec.text.rows import with_own_answers
from llmrec.text.tree import FlatTree, Segment, TokenTree

BATCH = 8  # prompts that are searched together, on both sides
BEAMS = 4
NEW_TOKENS = 16  # of a free answer
PEERS = {"one_at_a_time": 1, "batched": BATCH}  # how many prompts `generate` is given
KINDS = torch.tensor([0.5, 0.5])  # what a real and an own title weigh

Answers = tuple[list[tuple[int, ...]], Sequence[float]]  # without end tokens; their scores


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pairs", type=int, default=4, help="pairs in a step; 0: none")
    options.add_argument("--users", type=int, default=8, help="prompts answered; 0: none")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument(
        "--history", type=int, nargs="+", default=(10, 25), help="titles in the prompts of pairs"
    )
    options.add_argument("--asked-history", type=int, default=10, help="in prompts answered")
    options.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=list(PEERS),
        help="of the answers; they must equal those of the first",
    )
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    pairs = (pair_figure(given.pairs, history, given.repeats) for history in given.history)
    answers = answer_figures(given.users, given.asked_history, given.peers, given.repeats)
    figures = []
    for figure in chain(pairs if given.pairs else (), answers if given.users else ()):
        figures.append(figure)
        print(json.dumps(figure), flush=True)
    if given.out:
        given.out.write_text(page(figures, given), "utf-8")


def pair_figure(pairs: int, history: int, repeats: int) -> dict:
    """Pairs per second both ways, and their ratio, after checking loss and gradients equal."""
    encoder, prompts = prompts_of(pairs, history)
    model = tuned()
    rng = np.random.default_rng(SEED)
    drawn = [rng.choice(len(encoder.titles), 2, replace=False).tolist() for _ in prompts]
    paths = [
        [
            np.concatenate([prompt, encoder.completions[pair[kind]]])
            for prompt, pair in zip(prompts, drawn, strict=True)
        ]
        for kind in (0, 1)
    ]
    runs = (
        lambda: one_pass(model, encoder, pair_rows(encoder, prompts, drawn)),
        lambda: two_passes(model, prompts, paths),
    )
    one_pass(model, encoder, pair_rows(encoder, [prompts[0][:16]], drawn[:1]))  # both warm
    two_passes(model, [prompts[0][:16]], [[prompts[0][:32]]])
    losses, gradients, seconds = [], [], []
    for run in runs:
        took, loss = timed(run)
        losses.append(loss)
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        )
        seconds.append(took)
    apart = abs(losses[0] / losses[1] - 1)
    gradients_apart = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
    if not (apart <= 1e-5 and gradients_apart <= 1e-5):
        sys.exit(
            f"losses {losses} differ by {apart:.1e} of one, gradients by "
            f"{gradients_apart:.1e} of the largest; nothing is timed"
        )
    mine, peers, ratio = side_by_side(*runs, repeats, tuple(seconds))
    rows = pair_rows(encoder, prompts, drawn)
    theirs = sum(pairs * max(map(len, one)) for one in paths)
    ours = pairs * max(len(row.input_ids) for row in rows)
    learned = sum(len(row.labels) for row in rows)
    return {
        "figure": "training on SOFT pairs, forward and backward, pairs per second",
        "hugging_face": round(pairs / peers, 3),
        "llmrec": round(pairs / mine, 3),
        **ratio,
        "goal": 2.0,
        "limit": round(cost(model, theirs, theirs) / cost(model, ours, learned), 2),
        "tokens_ratio": round(theirs / ours, 2),
        "body_tokens": [theirs, ours],
        "head_positions": [theirs, learned],
        "loss": round(losses[0], 6),
        "loss_apart": float(f"{apart:.1e}"),
        "gradients_apart": float(f"{gradients_apart:.1e}"),
        "pairs": pairs,
        "repeats": repeats,
        "history": history,
        "prompt_tokens": round(float(np.mean([len(p) for p in prompts])), 1),
        "title_tokens": round(learned / pairs / 2, 1),
        "lora": "r 8, all-linear",
        **provenance(),
    }


def tuned():
    """The model under LoRA whose second matrices are not zero, so that all gradients are alive."""
    base = load_model(BaseModel(str(model_path(MODEL))), "cpu")
    model = with_new_lora(base, Lora(r=8, dropout=0.0, target_modules="all-linear"), SEED)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model.train()


def pair_rows(encoder, prompts, drawn) -> list[FlatTree]:
    """One tree a pair: the prompt, and behind it the real title and the own one."""
    rows = []
    for prompt, (real, own) in zip(prompts, drawn, strict=True):
        row = TokenTree((Segment(prompt), Segment(encoder.completions[real], 0, real)))
        rows.append(with_own_answers(row, [own], encoder.completions).flatten())
    return rows


def one_pass(model, encoder, rows: list[FlatTree]) -> float:
    """Forward and backward over one tree a pair; the loss."""
    softmax = FullSoftmax()
    model.zero_grad()
    batch = softmax.prepare(rows)
    weights = KINDS[batch["kinds"]]
    values = softmax.branch_log_probabilities(model, batch)
    loss = -(values * weights).sum() / weights.sum()
    loss.backward()
    return float(loss.detach())


def two_passes(model, prompts, paths) -> float:
    """Forward and backward over prompts with real titles, then with own ones; the summed loss."""
    model.zero_grad()
    total = 0.0
    for some in paths:
        ids = np.zeros((len(some), max(map(len, some))), np.int64)
        seen, labels = np.zeros_like(ids), np.full_like(ids, -100)
        for row, (prompt, path) in enumerate(zip(prompts, some, strict=True)):
            ids[row, : len(path)], seen[row, : len(path)] = path, 1
            labels[row, len(prompt) : len(path)] = path[len(prompt) :]
        tensors = {"input_ids": ids, "attention_mask": seen, "labels": labels}
        # Hugging Face's own loss; it divides by the number of titles, as llmrec's does.
        loss = model(
            **{name: torch.from_numpy(array) for name, array in tensors.items()},
            num_items_in_batch=2 * len(prompts),
        ).loss
        loss.backward()
        total += float(loss.detach())
    return total


def cost(model, tokens: int, positions: int) -> float:
    """Multiplications by weights in a forward pass: `tokens` in the body, `positions` in the head.

    Backward repeats both alike, since frozen weights get no gradient; attention is left out.
    """
    head = model.get_output_embeddings().weight.numel()  # shared with the embedding
    body = sum(p.numel() for p in model.parameters()) - head
    return tokens * body + positions * head


def answer_figures(users: int, history: int, peers: list[str], repeats: int) -> Iterator[dict]:
    """Prompts per second: constrained under both softmaxes, and free."""
    encoder, prompts = prompts_of(users, history)
    model = load_model(BaseModel(str(model_path(MODEL))), "cpu")
    end, completions = encoder.tokenizer.eos_token_id, encoder.completions
    dict_trie, longest = nested(completions), max(map(len, completions))
    length, title = (float(np.mean([len(x) for x in xs])) for xs in (prompts, completions))

    def constrained(some, renormalise):
        open_items = OpenItems(encoder.trie, [NOTHING] * len(some))
        found = beam_search(
            SharedPrompt(model, some),
            open_items,
            beams=BEAMS,
            top_k=BEAMS,
            scoring=Scoring(renormalise),
        )
        return [
            ([tuple(completions[p][:-1].tolist()) for p in r.positions], r.scores) for r in found
        ]

    def free(some, _):
        found = free_beam_search(
            SharedPrompt(model, some), beams=BEAMS, end=end, max_new_tokens=NEW_TOKENS
        )
        return [([tuple(w.tokens.tolist()) for w in one], [w.score for w in one]) for one in found]

    for ours, renormalise in ((constrained, False), (constrained, True), (free, False)):
        trie, tokens = (dict_trie, title) if ours is constrained else (None, NEW_TOKENS)
        theirs = (
            {"length_penalty": 0.0, "renormalize_logits": renormalise, "max_new_tokens": longest}
            if trie
            else {"max_new_tokens": NEW_TOKENS}
        )
        yield {
            "figure": "own answers, prompts per second",
            "answers": ours.__name__,
            "softmax": "allowed tokens" if renormalise else "whole vocabulary",
            **compared(
                prompts,
                lambda some, f=ours, r=renormalise: f(some, r),
                lambda some, t=trie, s=theirs: generated(model, some, end, t, s),
                peers,
                repeats,
            ),
            "goal": 3.0,
            "limit": round(limit(length, tokens, BEAMS), 2),
            "users": users,
            "repeats": repeats,
            "history": history,
            "beams": BEAMS,
            "batch": BATCH,
            "prompt_tokens": round(length, 1),
            "answer_tokens": round(tokens, 1),
            "items": len(encoder.titles),
            **provenance(),
        }


def compared(prompts, ours: Callable, theirs: Callable, peers: Sequence[str], repeats: int) -> dict:
    """Rates of ours and of the peers, and the ratio to the faster peer."""

    def by(run, size):
        return lambda: [a for i in range(0, len(prompts), size) for a in run(prompts[i : i + size])]

    runs = {"llmrec": by(ours, BATCH), **{name: by(theirs, PEERS[name]) for name in peers}}
    for run in (ours, theirs):
        run([prompts[0][:16]])  # warm
    found, once = {}, {}
    for name, run in runs.items():
        once[name], found[name] = timed(run)
    equal = {
        name: sum(
            mine == other and np.allclose(scores, other_scores, rtol=1e-5, atol=1e-4)
            for (mine, scores), (other, other_scores) in zip(
                found["llmrec"], found[name], strict=True
            )
        )
        for name in peers
    }
    if equal[peers[0]] < len(prompts):
        sys.exit(f"prompts with equal answers: {equal} of {len(prompts)}; nothing is timed")
    peer = min(peers, key=once.get)  # the other is not run again
    first = (once["llmrec"], once[peer])
    once["llmrec"], once[peer], ratio = side_by_side(runs["llmrec"], runs[peer], repeats, first)
    return {
        **{name: round(len(prompts) / s, 3) for name, s in once.items()},
        "peer": peer,
        **ratio,
        **{f"equal_{name}": number for name, number in equal.items()},
    }


def generated(model, prompts, end: int, trie: dict | None, settings: dict) -> list[Answers]:
    """What `generate` answers to left-padded prompts; a trie of dicts says which tokens may be."""
    width = max(map(len, prompts))
    ids = np.full((len(prompts), width), end, np.int64)
    seen = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], seen[row, width - len(prompt) :] = prompt, 1

    def allowed(_, so_far):
        node = trie
        for token in so_far[width:].tolist():
            node = node.get(token, {})
        return list(node) or [end]

    with torch.inference_mode():
        out = model.generate(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(seen),
            do_sample=False,
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            pad_token_id=end,
            eos_token_id=end,
            prefix_allowed_tokens_fn=allowed if trie else None,
            use_cache=True,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
    rows = [tuple(r[: r.index(end)] if end in r else r) for r in out.sequences[:, width:].tolist()]
    scores = out.sequences_scores.tolist()
    return [(rows[i : i + BEAMS], scores[i : i + BEAMS]) for i in range(0, len(rows), BEAMS)]


def side_by_side(
    ours: Callable, theirs: Callable, repeats: int, first: tuple[float, float]
) -> tuple[float, float, dict]:
    """Median seconds of both, and the median and range of their ratios, over repeats.

    `first`: what both took in the first repeat, the one that was checked.
    """
    seconds = [first]
    for _ in range(repeats - 1):  # alternating, so that a slow spell of the machine hits both
        seconds.append((timed(ours)[0], timed(theirs)[0]))
    ratios = [round(t / o, 2) for o, t in seconds]
    mine, peers = (statistics.median(s) for s in zip(*seconds, strict=True))
    return (
        mine,
        peers,
        {"ratio": round(statistics.median(ratios), 2), "ratio_range": [min(ratios), max(ratios)]},
    )


def timed(run: Callable) -> tuple[float, object]:
    """Seconds of a call, and what it returned."""
    begun = time.perf_counter()
    found = run()
    return time.perf_counter() - begun, found


def page(figures: list[dict], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    on = figures[0]
    lines = [
        f"# SOFT against Hugging Face\n\n`{command()}`: {on['model']}, float32, {on['threads']} "
        "CPU threads "
        f"({on['machine']}), torch {on['torch']}, transformers {on['transformers']}, peft "
        f"{on['peft']}; MovieLens-100K. Rates are medians of {given.repeats} repeats that "
        "alternate both sides, ratios the medians of theirs.\n"
    ]
    if given.pairs:
        lines.append(
            "## Training on pairs\n\nPairs per second, forward and backward of a LoRA step (r 8, "
            f"all linear layers) over {given.pairs} pairs of titles drawn from the catalog. Peer: "
            "two right-padded passes with logits at every position. Loss equal within 1e-5 of "
            "itself, gradients within 1e-5 of the largest. Limit: the ratio of multiplications by "
            "the weights of body and head in the shapes that ran; tokens ratio: body alone.\n"
        )
        keys = "prompt_tokens title_tokens hugging_face llmrec ratio goal limit tokens_ratio"
        lines += table([f for f in figures if "pairs" in f], keys)
    if given.users:
        lines.append(
            f"## Own answers\n\nPrompts answered per second with {BEAMS} beams, llmrec in batches "
            f"of {BATCH}. Peer: `generate`, one prompt at a time or left padded in batches of "
            f"{BATCH}; of both the ratio is to the faster, the slower ran once. Equal to the "
            f"first ({given.peers[0].replace('_', ' ')}) in answers, order and scores (1e-4) "
            f"for all {given.users} prompts. Limit: of sharing the prompt alone; over the allowed "
            "tokens forced ones need no forward pass at all.\n"
        )
        keys = f"answers softmax prompt_tokens answer_tokens {' '.join(given.peers)} llmrec ratio "
        equal = " ".join(f"equal_{name}" for name in given.peers)
        lines += table([f for f in figures if "answers" in f], f"{keys} goal limit {equal}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
