"""What rerankers of the same candidates give together, and what a language model adds to it.

Reads the runs of a study whose recipes have a retriever (`data.candidates`). For each set of
systems the candidates are ordered by a weighted sum of log-probabilities, the retriever's among
them; weights of 0 and more are fitted to the likelihood of other users' targets (five folds), all
runs together. The retriever and a baseline fused so is what a language model fused with it has to
beat. Intervals by a bootstrap over users.

    python tools/pooled_lists.py runs/rerank/start-s0 runs/rerank/start-s1 runs/rerank/start-s2
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from llmrec.data.candidates import read_candidates, read_log_q
from llmrec.data.records import Examples
from llmrec.decoding.beam import Ranking
from llmrec.decoding.fusion import ranked, scores_of
from llmrec.evaluation.intervals import mean_interval
from llmrec.evaluation.metrics import hit_rate, ndcg
from llmrec.evaluation.predictions import Predictions

FOLDS, PENALTY, K = 5, 1e-3, 10


@dataclass(frozen=True)
class Pool:
    """What a set of systems gives together: NDCG and hits (E,), NLL (E,), NaN for a miss."""

    ndcg: np.ndarray
    hits: np.ndarray
    nll: np.ndarray
    weights: np.ndarray


def main() -> None:
    """Fit, and print a table of the sets and one of their differences."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("runs", type=Path, nargs="+")
    options.add_argument("--baselines", nargs="+", default=["text_knn", "item_knn", "popularity"])
    options.add_argument("--model", default="tuned")
    given = options.parse_args()
    names = [*given.baselines, given.model]
    users, candidates, targets, log_p = read(given.runs, names)
    base, model = list(range(1, len(names))), len(names)
    sets = {"the retriever": [0]}
    sets |= {f"retriever, {name}": [0, place + 1] for place, name in enumerate(names)}
    sets |= {
        f"retriever, {names[0]}, {given.model}": [0, 1, model],
        "retriever, all baselines": [0, *base],
        f"retriever, all baselines, {given.model}": [0, *base, model],
    }
    found = {name: pooled(log_p[:, :, of], candidates, targets, users) for name, of in sets.items()}
    print(f"{len(users)} answers of {len(np.unique(users))} users\n")
    print(f"| systems | NDCG@{K} | HR@{K} | NLL of the candidates, nats | weights |")
    print("|---|---|---|---|---|")
    for name, pool in found.items():
        figures = [told(values, users) for values in (pool.ndcg, pool.hits, pool.nll)]
        print(f"| {name} | {' | '.join(figures)} | {', '.join(f'{w:.2f}' for w in pool.weights)} |")
    print(f"\n| | less | NDCG@{K} | HR@{K} | NLL |\n|---|---|---|---|---|")
    own = f"retriever, {given.model}"
    pairs = [(name, "the retriever") for name in list(found)[1:]]
    pairs += [(own, f"retriever, {names[0]}")]
    pairs += [(f"retriever, {names[0]}, {given.model}", f"retriever, {names[0]}")]
    pairs += [(f"retriever, all baselines, {given.model}", "retriever, all baselines")]
    for name, other in pairs:
        one, two = found[name], found[other]
        changes = (one.ndcg - two.ndcg, one.hits - two.hits, one.nll - two.nll)
        print(f"| {name} | {other} | {' | '.join(told(c, users, '+') for c in changes)} |")


def read(runs: list[Path], names: list[str]) -> tuple[np.ndarray, ...]:
    """Users (E,), candidates (E, C), targets (E,), and log-probabilities (E, C, S) among the
    candidates, the retriever's first."""
    parts = []
    for run in runs:
        test, path = Examples.read(run / "data/test.parquet"), run / "data/candidates-test.parquet"
        among = read_candidates(path)
        columns = [read_log_q(path)]
        for name in names:
            said = Predictions.read(run / "predictions" / f"{name}.parquet")
            pairs = zip(
                said.items.reshape(among.shape), said.scores.reshape(among.shape), strict=True
            )
            columns.append(scores_of([Ranking(*pair) for pair in pairs], among))
        log_p = np.stack([log_softmax(column, axis=1) for column in columns], axis=2)
        parts.append((test.user_ids, among, test.targets, log_p))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def pooled(
    log_p: np.ndarray, candidates: np.ndarray, targets: np.ndarray, users: np.ndarray
) -> Pool:
    """The systems (E, C, S) together, each user by the weights of the other folds' users."""
    known, which = np.unique(users, return_inverse=True)
    fold = (np.random.default_rng(0).permutation(len(known)) % FOLDS)[which]
    hit = candidates == targets[:, None]
    held = hit.any(axis=1)
    scores, weights = np.empty(candidates.shape), []
    for part in range(FOLDS):
        others = held & (fold != part)
        weights.append(fitted(log_p[others], hit[others].argmax(axis=1)))
        mine = fold == part
        scores[mine] = log_softmax(log_p[mine] @ weights[-1], axis=1)
    lists = [ranking.positions for ranking in ranked(candidates, scores)]
    nll = np.where(held, -scores[np.arange(len(scores)), hit.argmax(axis=1)], np.nan)
    return Pool(ndcg(lists, targets, K), hit_rate(lists, targets, K), nll, np.mean(weights, axis=0))


def fitted(log_p: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(S,) weights under which the targets at `places` (E,) are likeliest."""
    rows = np.arange(len(log_p))

    def cost(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_q = log_softmax(log_p @ weights, axis=1)
        expected = (np.exp(log_q)[:, :, None] * log_p).sum(axis=1)
        slope = (expected - log_p[rows, places]).mean(axis=0) + 2 * PENALTY * weights
        return float(PENALTY * weights @ weights - log_q[rows, places].mean()), slope

    count = log_p.shape[2]
    begin = np.full(count, 0.5)
    return minimize(cost, begin, jac=True, method="L-BFGS-B", bounds=[(0, None)] * count).x


def told(values: np.ndarray, users: np.ndarray, sign: str = "") -> str:
    """A mean with its interval, over users."""
    there = ~np.isnan(values)
    found = mean_interval(values[there], users[there], seed=0)
    return f"{found.mean:{sign}.4f} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


if __name__ == "__main__":
    main()
