"""Accuracy of Rankings, one value a user: HR, NDCG, MRR, Recall, Precision, MAP at a cut-off k.

One rule for all of them: only the first k ranks count; a target is credited at its first rank and
never again, a later occurrence of any position earns nothing but still takes up its rank; so does
-1, an answer that is no catalog item. A target that no Ranking can hold (outside the catalog) is
an ordinary miss. A user without a target has no value: NaN, never 0. All values lie in [0, 1].

Definitions are those of trec_eval (success, ndcg_cut, recip_rank, recall, P, map_cut) with binary
relevance; the mean over users is left to `llmrec.evaluation.intervals`. Knows no files, no systems.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmrec.evaluation.rankings import NO_ITEM, IntArray, Rankings, padded, target_sets

Floats: TypeAlias = npt.NDArray[np.float64]
Metric: TypeAlias = Callable[[Rankings, IntArray, int], Floats]


def target_ranks(
    rankings: Rankings, targets: IntArray, k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the targets stand: ((U, M) ranks from 0, k where not among the first k; (U,) targets).

    `rankings` (U, L) or U arrays, `targets` (U,) or (U, M), both padded with -1. The count is of a
    user's different targets. Raises ValueError for a k below 1 or for unequal numbers of users.
    """
    if k < 1:
        raise ValueError(f"the cut-off k must be at least 1, got {k}")
    answers, wanted = padded(rankings)[:, :k], target_sets(targets)
    if len(answers) != len(wanted):
        raise ValueError(f"{len(answers)} rankings but targets of {len(wanted)} users")
    ranks = np.full(wanted.shape, k, np.int64)
    if answers.shape[1]:
        users = np.arange(len(answers))
        for column in range(wanted.shape[1]):
            target = wanted[:, column]
            equal = answers == target[:, None]
            first = equal.argmax(axis=1)
            found = equal[users, first] & (target != NO_ITEM)
            ranks[found, column] = first[found]
    return ranks, (wanted != NO_ITEM).sum(axis=1)


def hit_rate(rankings: Rankings, targets: IntArray, k: int) -> Floats:
    """HR@k (U,): 1 if any target is among the first k, else 0; NaN without a target."""
    ranks, counts = target_ranks(rankings, targets, k)
    return _defined((ranks.min(axis=1, initial=k) < k).astype(np.float64), counts)


def ndcg(rankings: Rankings, targets: IntArray, k: int) -> Floats:
    """NDCG@k (U,): sum of 1 / log2(rank + 2) over hits, divided by that of an ideal Ranking."""
    ranks, counts = target_ranks(rankings, targets, k)
    gains = np.append(1.0 / np.log2(np.arange(k) + 2.0), 0.0)
    ideal = np.cumsum(gains)[np.clip(counts, 1, k) - 1]
    # The sum may stand in another order than the ideal's and pass 1 by a rounding.
    return _defined(np.minimum(gains[ranks].sum(axis=1) / ideal, 1.0), counts)


def mrr(rankings: Rankings, targets: IntArray, k: int) -> Floats:
    """MRR@k (U,): 1 / (rank + 1) of the best-ranked target, 0 without a hit."""
    ranks, counts = target_ranks(rankings, targets, k)
    best = ranks.min(axis=1, initial=k)
    return _defined(np.where(best < k, 1.0 / (best + 1.0), 0.0), counts)


def recall(rankings: Rankings, targets: IntArray, k: int) -> Floats:
    """Recall@k (U,): hits among the first k, divided by the user's targets."""
    ranks, counts = target_ranks(rankings, targets, k)
    return _defined((ranks < k).sum(axis=1) / np.maximum(counts, 1), counts)


def precision(rankings: Rankings, targets: IntArray, k: int) -> Floats:
    """Precision@k (U,): hits among the first k, divided by k (also where a Ranking is shorter)."""
    ranks, counts = target_ranks(rankings, targets, k)
    return _defined((ranks < k).sum(axis=1) / k, counts)


def average_precision(rankings: Rankings, targets: IntArray, k: int) -> Floats:
    """MAP@k (U,): the precision at each hit, summed and divided by the user's targets (not by k).

    With one target a user it equals MRR@k.
    """
    ranks, counts = target_ranks(rankings, targets, k)
    ranks = np.sort(ranks, axis=1)
    hits_so_far = np.arange(1, ranks.shape[1] + 1)
    precisions = np.where(ranks < k, hits_so_far / (ranks + 1.0), 0.0)
    return _defined(precisions.sum(axis=1) / np.maximum(counts, 1), counts)


METRICS: Mapping[str, Metric] = {
    "HR": hit_rate,
    "NDCG": ndcg,
    "MRR": mrr,
    "Recall": recall,
    "Precision": precision,
    "MAP": average_precision,
}


def at_every_k(rankings: Rankings, targets: IntArray, ks: Sequence[int]) -> dict[str, Floats]:
    """Every metric at every cut-off, as (U,) arrays named `HR@10` and so on, by metric then k."""
    answers = padded(rankings)
    return {
        f"{name}@{k}": metric(answers, targets, k) for name, metric in METRICS.items() for k in ks
    }


def _defined(values: Floats, counts: npt.NDArray[np.int64]) -> Floats:
    return np.where(counts > 0, values, np.nan)
