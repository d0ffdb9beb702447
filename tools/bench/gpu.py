"""The figures that need a GPU, in one call: decoding, own answers, SOFT's training step, memory.

Models have the shapes of Llama-3.2-3B and SmolLM2-135M and random bf16 weights: nothing is
downloaded. The peers are Hugging Face's `generate` with `prefix_allowed_tokens_fn`, one user at a
time or left padded in batches, whichever is faster, and two padded training passes with logits at
every position. A small model is checked equal first, in float32 on the same device; in bf16 the
share of equal lists is stated. Best-first search is measured over the allowed tokens only: under
the whole vocabulary random weights find all titles about equally improbable, and it would read most
of the trie. Searches are measured plain and with each pass behind the prompts as one CUDA graph. A
part begins only while there is time for it, and says so where there is not; one that
fails costs the others nothing.

One line of JSON for each figure on stdout, and with --out a Markdown page. Needs torch,
transformers, peft and numpy, and of llmrec the working tree.

    PYTHONPATH=. python tools/bench/gpu.py --out results/bench-h200.md
    python tools/bench/gpu.py --smoke                          # tiny shapes on the CPU
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gpu_page import page
from gpu_plans import FULL, SMOKE, Plan
from gpu_rates import Clock, Graphs, best_batch, measured, same_lists, shared, side_by_side
from gpu_sides import (
    PEAK,
    Bench,
    PairStep,
    alike,
    batched,
    best_of_all,
    by_beams,
    by_best_first,
    generated,
    graphed,
    read_behind,
    roofline,
    searched,
    sharing,
    tuned,
)

OWN_BEAMS = 4


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--minutes", type=float, default=9.0, help="no part begins after them")
    options.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU, once")
    options.add_argument("--only", default="", metavar="NAME,NAME",
                         help="parts whose names begin so, and in this order")  # fmt: skip
    options.add_argument("--model", default="", help="of a size whose name begins so")
    options.add_argument("--batches", default="", metavar="N,N", help="users in a batch, tried")
    options.add_argument("--peers", type=int, help="users that `generate` is asked for at once")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    if not given.smoke and not torch.cuda.is_available():
        sys.exit("no CUDA GPU is visible to torch; --smoke tries the script on the CPU")
    plan = SMOKE if given.smoke else FULL
    plan = replace(
        plan, sizes=tuple(size for size in plan.sizes if size.name.startswith(given.model)),
        batches=tuple(map(int, given.batches.split(","))) if given.batches else plan.batches,
        peers=given.peers or plan.peers,
    )  # fmt: skip
    clock, figures = Clock(60 * given.minutes, 1 if given.smoke else given.repeats), []
    listed = list(parts(plan, clock)) if given.only else parts(plan, clock)
    wanted = (part for begin in given.only.split(",") for part in listed
              if part[0].startswith(begin))  # fmt: skip
    for name, part in wanted:
        figures.append(attempted(name, part, plan, clock))
        print(json.dumps(figures[-1]), flush=True)
    if given.out:
        given.out.write_text(page(figures, sys.argv[1:]), "utf-8")
    if any({"failed", "graphs_failed"} & f.keys() or f.get("equal") is False for f in figures):
        sys.exit("a part failed or was not equal; its line says which")


def parts(plan: Plan, clock: Clock) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Name and work of each part, the most wanted first."""
    few = replace(plan, dtype=torch.float32, prompt=plan.prompt // 4, spread=4, items=200)
    bench = Bench(few, plan.checked)
    yield "equal searches", partial(equal_searches, bench)
    yield "equal graphs", partial(equal_graphs, bench)
    yield "equal gradients", partial(equal_gradients, bench)
    for size in plan.sizes:
        bench = Bench(plan, size)
        *narrow, wide = plan.beams
        for beams in narrow:
            for renormalise in (False, True):
                name = f"decode {beams}"
                yield name, partial(decoding, bench, clock, name, beams, renormalise)
            yield f"best-first {beams}", partial(exact, bench, clock, beams)
        for renormalise in (False, True):
            yield (
                "own answers",
                partial(decoding, bench, clock, "own answers", OWN_BEAMS, renormalise),
            )
        yield "memory", partial(memory, bench, narrow[-1])
        yield "pairs", partial(pairs, Bench(plan, size), clock)  # it puts an adapter on its model
        for renormalise in (False, True):
            yield (
                f"decode {wide}",
                partial(decoding, bench, clock, f"decode {wide}", wide, renormalise),
            )
        yield f"best-first {wide}", partial(exact, bench, clock, wide)


def attempted(name: str, part: Callable[[], dict], plan: Plan, clock: Clock) -> dict:
    """The figure of a part, or why there is none."""
    if clock.left() < plan.needed:
        return {"figure": name, "skipped": f"{max(0, round(clock.left()))} s were left"}
    begun = time.perf_counter()
    try:
        found = {"figure": name, **part()}
    except Exception as error:  # what one part breaks must not cost the others a GPU's time
        traceback.print_exc()
        line = (str(error).strip().splitlines() or [""])[0]
        found = {"figure": name, "failed": f"{type(error).__name__}: {line}"}
    release(plan)
    return {**found, "part_seconds": round(time.perf_counter() - begun, 1)}


def release(plan: Plan) -> None:
    """Give back what the last part held, so that it is in no other part's memory."""
    if plan.device == "cuda":
        torch.cuda.empty_cache()


# Equality, in float32


def equal_searches(bench: Bench) -> dict:
    """Beams against `generate`, and best-first search against the score of every title."""
    beams, asked, equal = bench.plan.beams[0], bench.prompts[: bench.plan.peers], {}
    for renormalise in (False, True):
        mode = softmax(renormalise)
        theirs = batched(
            asked, 1, partial(generated, bench, beams=beams, renormalise=renormalise, scored=True)
        )
        for batch in (1, len(asked)):
            ours = batched(
                asked, batch, partial(searched, bench, search=by_beams(beams, renormalise))
            )
            equal[f"beams, {mode}, batch {batch}"] = alike(ours, theirs)
        ours = searched(bench, asked[:2], by_best_first(beams, renormalise))
        true = [best_of_all(bench, prompt, beams, renormalise) for prompt in asked[:2]]
        equal[f"best-first, {mode}"] = alike(ours, true)
    return {
        "equal": all(equal.values()),
        **equal,
        "beams": beams,
        "users": len(asked),
        **bench.provenance(),
    }


def equal_graphs(bench: Bench) -> dict:
    """Lists and scores of llmrec with graphs against its plain ones, batches in turn."""
    beams, asked, equal = bench.plan.beams[0], bench.prompts[: bench.plan.users], {}
    size = -(-2 * len(asked) // 3)  # the second batch is a smaller one
    for renormalise in (False, True):
        for name, search in (
            ("beams", by_beams(beams, renormalise)),
            ("best-first", by_best_first(beams, renormalise)),
        ):
            plain = batched(asked, size, partial(searched, bench, search=search))
            run = graphed(bench, search)
            twice = [batched(asked, size, run) for _ in range(2)]  # captured, then replayed
            equal[f"{name}, {softmax(renormalise)}"] = all(alike(g, plain) for g in twice)
    return {
        "equal": all(equal.values()),
        **equal,
        "beams": beams,
        "users": len(asked),
        **bench.provenance(),
    }


def equal_gradients(bench: Bench) -> dict:
    """One tree a pair against two padded passes: loss and gradients."""
    model, losses, gradients = tuned(bench), [], []
    step = PairStep(bench, model)
    for run in (step.one_pass, step.two_passes):
        losses.append(run())
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        )
    loss = abs(losses[0] / losses[1] - 1)
    most = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
    return {
        "equal": loss <= 1e-5 and most <= 1e-5,
        "loss_apart": float(f"{loss:.1e}"),
        "gradients_apart": float(f"{most:.1e}"),
        **bench.provenance(),
    }


# Figures


def decoding(bench: Bench, clock: Clock, name: str, beams: int, renormalise: bool) -> dict:
    """Users per second by beams, against `generate`."""
    search = by_beams(beams, renormalise)
    ours = partial(searched, bench, search=search)
    rates, batch, found = best_batch(bench, lambda _: ours)
    asked, users = bench.prompts[: bench.plan.peers], bench.prompts[: bench.plan.users]
    theirs = partial(generated, bench, beams=beams, renormalise=renormalise)
    theirs(asked)  # warm
    answers, once = {}, {}
    for size in (1, len(asked)):
        answers[size], once[size], _ = measured(bench, partial(batched, asked, size, theirs))
    peer = min(once, key=once.get)
    graphs = Graphs(bench, search, users)
    (mine, peers, *captured), ratio = side_by_side(
        bench,
        clock,
        (len(users), partial(batched, users, batch, ours)),
        (len(asked), partial(batched, asked, peer, theirs)),
        *graphs.side,
    )
    if renormalise:
        bench.peer_rates[beams] = peers
    passes, rows = read_behind(bench, users[:batch], search)
    read = min(rows, beams * (bench.plan.title - 1))
    limit = roofline(bench, read)
    return {
        "softmax": softmax(renormalise),
        "beams": beams,
        "hugging_face": round(peers, 2),
        "llmrec": round(mine, 2),
        **ratio,
        **graphs.figures(captured, peers, answers[1]),
        "goal": dict(bench.size.goals).get(name),
        "sharing_limit": round(sharing(bench, beams), 2),
        "roofline": round(limit, 1),
        "roofline_share": round(mine / limit, 3),
        "batch_roofline_share": round(mine / roofline(bench, read, batch, passes), 3),
        "llmrec_by_batch": rates,
        "batch": batch,
        "passes_behind": passes,
        "rows_behind": round(rows, 1),
        "hugging_face_by_batch": {size: round(len(asked) / s, 2) for size, s in once.items()},
        "peer_batch": peer,
        "valid": all(len(set(items)) == beams for items, _ in found),
        "same_lists": same_lists(found, answers[1]),
        "same_items": shared(found, answers[1]),
        "peer_same_items": shared(answers[len(asked)], answers[1]),
        "prompt_tokens": round(bench.length, 1),
        "title_tokens": bench.plan.title,
        "users": bench.plan.users,
        "peer_users": len(asked),
        **bench.provenance(),
    }


def exact(bench: Bench, clock: Clock, beams: int) -> dict:
    """Users per second by best-first search, against beams and against `generate`."""
    search = by_best_first(beams, renormalise=True)
    ours = partial(searched, bench, search=search)
    rates, batch, found = best_batch(bench, lambda _: ours)
    asked = bench.prompts[: bench.plan.users]
    by = partial(searched, bench, search=by_beams(beams, renormalise=True))
    of_beams, _, _ = measured(bench, partial(batched, asked, batch, by))
    graphs = Graphs(bench, search, asked)
    (mine, others, *captured), ratio = side_by_side(
        bench,
        clock,
        (len(asked), partial(batched, asked, batch, ours)),
        (len(asked), partial(batched, asked, batch, by)),
        *graphs.side,
    )
    passes, rows = read_behind(bench, asked[:batch], search)
    limit, peers = roofline(bench, rows), bench.peer_rates.get(beams)
    return {
        "softmax": softmax(True),
        "beams": beams,
        "llmrec_beams": round(others, 2),
        "best_first": round(mine, 2),
        **ratio,
        **graphs.figures(captured, peers, found),
        "hugging_face": peers and round(peers, 2),
        "ratio_to_hugging_face": peers and round(mine / peers, 2),
        "goal": dict(bench.size.goals).get(f"decode {beams}"),
        "roofline": round(limit, 1),
        "roofline_share": round(mine / limit, 3),
        "by_batch": rates,
        "batch": batch,
        "passes_behind": passes,
        "rows_behind": round(rows, 1),
        "found_by_beams": shared(of_beams, found),
        "prompt_tokens": round(bench.length, 1),
        "title_tokens": bench.plan.title,
        "users": len(asked),
        **bench.provenance(),
    }


def memory(bench: Bench, beams: int) -> dict:
    """Peak memory above the weights, by user, of one batch on both sides."""
    asked, size, title = bench.prompts[: bench.plan.peers], bench.size, bench.plan.title
    sides = {
        "hugging_face": partial(generated, bench, asked, beams, False),
        "llmrec": partial(searched, bench, asked, by_beams(beams, False)),
    }
    for run in sides.values():
        run()  # warm
    peaks = {name: measured(bench, run)[2] for name, run in sides.items()}
    mib = {n: round(p / len(asked) / 2**20, 2) if p else None for n, p in peaks.items()}
    width = torch.finfo(bench.plan.dtype).bits // 8
    token = 2 * size.layers * size.kv_heads * (size.hidden // size.heads) * width / 2**20
    kept = {
        "hugging_face": beams * (bench.length + title - 1),
        "llmrec": bench.length + beams * (title - 1),
    }
    return {
        "softmax": softmax(False),
        "beams": beams,
        **mib,
        "ratio": round(mib["hugging_face"] / mib["llmrec"], 2) if mib["llmrec"] else None,
        "limit": round(kept["hugging_face"] / kept["llmrec"], 2),
        "keys_and_values": {n: round(tokens * token, 2) for n, tokens in kept.items()},
        "unit": "MiB a user",
        "batch": len(asked),
        "prompt_tokens": round(bench.length, 1),
        "title_tokens": title,
        **bench.provenance(),
    }


def pairs(bench: Bench, clock: Clock) -> dict:
    """SOFT's training step: one tree a pair against two padded passes with full logits."""
    body, head = bench.weights  # the adapter's do not count
    step = PairStep(bench, tuned(bench))
    rows, count = step.rows(), len(step.prompts)
    losses, peaks = [], []
    for run in (step.one_pass, step.two_passes):
        run()  # warm
        loss, _, peak = measured(bench, run)
        losses.append(loss)
        peaks.append(peak)
    (mine, peers), ratio = side_by_side(
        bench, clock, (count, step.one_pass), (count, step.two_passes)
    )
    tokens, learned = sum(len(r.input_ids) for r in rows), sum(len(r.labels) for r in rows)
    padded = [
        sum(count * max(map(len, some)) for some in step.paths),
        count * max(len(r.input_ids) for r in rows),
    ]
    # Forward and backward cost alike, since frozen weights get no gradient.
    work = 4 * (tokens * body + learned * head)
    gib = [round(p / 2**30, 2) if p else None for p in peaks]
    return {
        "hugging_face": round(peers, 2),
        "llmrec": round(mine, 2),
        **ratio,
        "goal": dict(bench.size.goals).get("pairs"),
        "limit": round(padded[0] * (body + head) / (padded[1] * body + learned * head), 2),
        "tokens_per_s": round(mine * tokens / count),
        "peak_share": round(mine / count * work / PEAK, 3),
        "llmrec_gib": gib[0],
        "hugging_face_gib": gib[1],
        "loss_apart": float(f"{abs(losses[0] / losses[1] - 1):.1e}"),
        "pairs": count,
        "prompt_tokens": round(float(np.mean([len(p) for p in step.prompts])), 1),
        "title_tokens": bench.plan.title,
        "body_tokens": padded,
        "head_positions": [padded[0], learned],
        "lora": "r 8, all-linear",
        **bench.provenance(),
    }


def softmax(renormalise: bool) -> str:
    """What probabilities are over."""
    return "allowed tokens" if renormalise else "whole vocabulary"


if __name__ == "__main__":
    main()
