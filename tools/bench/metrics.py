"""HR and NDCG at five cut-offs for many users, side by side with torchmetrics and a plain loop.

One target a user, rankings of 50 as one matrix. The peers are asked for fewer users, since both
take the same time for every user, and their seconds are projected. Values are checked equal user by
user first. Without torchmetrics installed its line is left out. One line of JSON for each figure on
stdout, and with --out a Markdown page.

    python tools/bench/metrics.py --repeats 5 --out metrics.md
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from llmrec.evaluation.metrics import metrics_at

NAMES, KS, LENGTH, ITEMS = ("HR", "NDCG"), (1, 5, 10, 20, 50), 50, 10_000
SECONDS, RATIO = 0.5, 50.0  # the goals, for a million users

Found = dict[tuple[str, int], np.ndarray]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--users", type=int, default=1_000_000)
    options.add_argument("--loop-users", type=int, default=20_000, help="for the plain loop")
    options.add_argument("--torchmetrics-users", type=int, default=1_000)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    rankings, targets = drawn(given.users)
    peers = [("plain Python loop", by_loop, given.loop_users, given.repeats)]
    try:
        version("torchmetrics")
        peers.insert(0, ("torchmetrics", by_torchmetrics, given.torchmetrics_users, 3))
    except PackageNotFoundError:
        print("torchmetrics is not installed; its line is left out", file=sys.stderr)
    figures = []
    for name, peer, users, repeats in peers:
        figures.append(figure(rankings, targets, name, peer, min(users, given.users), repeats))
        print(json.dumps(figures[-1]), flush=True)
    if given.out:
        given.out.write_text(page(figures, given), "utf-8")


def drawn(users: int) -> tuple[np.ndarray, np.ndarray]:
    """(U, 50) rankings of different items and (U,) targets, half of them in the ranking."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, ITEMS, (users, 1), dtype=np.int32)
    stride = rng.integers(1, ITEMS // LENGTH, (users, 1), dtype=np.int32)
    rankings = (start + stride * np.arange(LENGTH, dtype=np.int32)) % ITEMS
    targets = rng.integers(0, ITEMS, users, dtype=np.int32)
    hit = np.flatnonzero(rng.random(users) < 0.5)
    targets[hit] = rankings[hit, rng.integers(0, LENGTH, len(hit))]
    return rankings, targets


def figure(rankings, targets, name: str, peer, users: int, repeats: int) -> dict:
    """Seconds both ways for all users, the peer's projected, after equality on the peer's users."""
    some = rankings[:users], targets[:users]
    ours, theirs = metrics_at(*some, NAMES, KS), peer(*some)
    apart = max(float(np.abs(ours[key] - theirs[key]).max()) for key in ours)
    if apart > 1e-6:  # torchmetrics counts in float32
        sys.exit(f"values of {name} differ by {apart:.1e}; nothing is timed")
    mine, peers = [], []
    for _ in range(repeats):  # alternating, so that a slow spell of the machine hits both
        mine.append(seconds(lambda: metrics_at(rankings, targets, NAMES, KS)))
        peers.append(seconds(lambda: peer(*some)) * len(targets) / users)
    ratios = [p / m for p, m in zip(peers, mine, strict=True)]
    return {
        "figure": "HR and NDCG at five cut-offs, seconds",
        "peer": name,
        "llmrec": round(statistics.median(mine), 3),
        "goal_seconds": SECONDS,
        "peer_projected": round(statistics.median(peers), 1),
        "ratio": round(statistics.median(ratios), 1),
        "ratio_range": [round(min(ratios), 1), round(max(ratios), 1)],
        "goal": RATIO if name == "torchmetrics" else None,
        "largest_difference": float(f"{apart:.1e}"),
        "users": len(targets),
        "peer_users": users,
        "ks": list(KS),
        "length": LENGTH,
        "repeats": repeats,
        **provenance(),
    }


def seconds(run) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def by_loop(rankings, targets) -> Found:
    """User by user, as a script would: the rank, then every value."""
    values: dict = {(name, k): [] for name in NAMES for k in KS}
    for ranking, target in zip(rankings.tolist(), targets.tolist(), strict=True):
        rank = ranking.index(target) if target in ranking else None
        for k in KS:
            hit = rank is not None and rank < k
            values["HR", k].append(1.0 if hit else 0.0)
            values["NDCG", k].append(1.0 / math.log2(rank + 2) if hit else 0.0)
    return {key: np.array(found) for key, found in values.items()}


def by_torchmetrics(rankings, targets) -> Found:
    """Its retrieval metrics, one object for each metric and cut-off, the mean over users left out.

    They take relevance and score of every answer with the user it belongs to.
    """
    import torch
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalNormalizedDCG

    users, length = rankings.shape
    relevant = torch.from_numpy(rankings == targets[:, None]).flatten()
    scores = -torch.arange(length, dtype=torch.float32).repeat(users)
    indexes = torch.arange(users).repeat_interleave(length)
    found = {}
    for name, kind in (("HR", RetrievalHitRate), ("NDCG", RetrievalNormalizedDCG)):
        for k in KS:
            metric = kind(top_k=k, aggregation=lambda values, dim=0: values)
            metric.update(scores, relevant, indexes=indexes)
            found[name, k] = metric.compute().numpy()
    return found


def provenance() -> dict:
    """What every figure ran on."""
    found = {"numpy": np.__version__, "machine": platform.machine(), "threads": 1}
    for package in ("torchmetrics", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def page(figures: list[dict], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    on = figures[0]
    lines = [
        "# Metrics of a million users",
        "",
        f"`python tools/bench/metrics.py --users {given.users} --repeats {given.repeats}`: HR and "
        f"NDCG at {', '.join(map(str, KS))} for {on['users']:,} users, rankings of {LENGTH}, one "
        f"target each; numpy {on['numpy']}, torch {on['torch']}, torchmetrics "
        f"{on['torchmetrics']} ({on['machine']}). llmrec runs on one thread. Peers ran for fewer "
        "users and are projected in proportion; values of these users are equal, at most the "
        f"stated difference apart. Medians of alternating repeats. Goals: {SECONDS} s for a "
        f"million users; {RATIO:g}x torchmetrics.",
        "",
        "| peer | its users | peer, s | llmrec, s | ratio (range) | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {f['peer']} | {f['peer_users']:,} | {f['peer_projected']} | {f['llmrec']} | "
        f"{f['ratio']} ({f['ratio_range'][0]} to {f['ratio_range'][1]}) | "
        f"{f['largest_difference']} |"
        for f in figures
    ]
    if on["torchmetrics"] is None:
        lines += ["", "torchmetrics was not installed: no figure."]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
