"""Accuracy of Rankings, one value a user: HR, NDCG, MRR, Recall, Precision, MAP at a cut-off k.

One rule for all of them: only the first k ranks count; a target is credited at its first rank and
never again, a later occurrence of any position earns nothing but still takes up its rank; so does
-1, an answer that is no catalog item. A target that no Ranking can hold (outside the catalog) is
an ordinary miss. A user without a target has no value: NaN, never 0. All values lie in [0, 1].

A metric is a formula over the ranks at which a user's targets stand, so the ranks are found once,
at the largest cut-off, and every metric at every k follows from them.

Definitions are those of trec_eval (success, ndcg_cut, recip_rank, recall, P, map_cut) with binary
relevance; the mean over users is left to `llmrec.evaluation.intervals`. Knows no files, no systems.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llmrec.evaluation.by_id import as_positions
from llmrec.evaluation.rankings import NO_ITEM, IntArray, padded, target_sets

Floats: TypeAlias = npt.NDArray[np.float64]
Longs: TypeAlias = npt.NDArray[np.int64]
Metric: TypeAlias = Callable[[Any, Any, int], Floats]
# (U, M) ranks from 0 with k for a miss, (U,) targets of each user, k -> (U,)
Formula: TypeAlias = Callable[[Longs, Longs, int], Floats]

_NO_TARGET = NO_ITEM - 1  # stands in no Ranking
_CHUNK = 4096  # users compared at once: what is compared stays in the processor's cache


def target_ranks(rankings: Any, targets: Any, k: int) -> tuple[Longs, Longs]:
    """Where the targets stand: ((U, M) ranks from 0, k where not among the first k; (U,) targets).

    `rankings` (U, L) or U arrays, `targets` (U,) or (U, M), both padded with -1; or both by item
    id, or as tables, as `by_id` takes them. The count is of a user's different targets. A matrix is
    much faster than arrays. Raises ValueError for a k below 1 or for unequal numbers of users.
    """
    if k < 1:
        raise ValueError(f"the cut-off k must be at least 1, got {k}")
    rankings, targets = as_positions(rankings, targets)
    answers, wanted = padded(rankings)[:, :k], target_sets(targets)
    if len(answers) != len(wanted):
        raise ValueError(f"{len(answers)} rankings but targets of {len(wanted)} users")
    counts = (wanted != NO_ITEM).sum(axis=1)
    wanted = np.where(wanted == NO_ITEM, _NO_TARGET, wanted.astype(np.int64))
    wanted = _of_type(wanted, answers.dtype)
    ranks = np.empty(wanted.shape, np.int64)
    width = answers.shape[1]
    equal = np.ones((_CHUNK, width + 1), np.bool_)  # the last column is where a miss is found
    for begin in range(0, len(answers), _CHUNK):
        some = slice(begin, begin + _CHUNK)
        chunk = equal[: len(answers[some])]
        for column in range(wanted.shape[1]):
            np.equal(answers[some], wanted[some, column, None], out=chunk[:, :width])
            ranks[some, column] = chunk.argmax(axis=1)
    if width < k:
        ranks[ranks == width] = k
    return ranks, counts


def hit_rate(rankings: Any, targets: Any, k: int) -> Floats:
    """HR@k (U,): 1 if any target is among the first k, else 0; NaN without a target."""
    return _hit_rate(*target_ranks(rankings, targets, k), k)


def ndcg(rankings: Any, targets: Any, k: int) -> Floats:
    """NDCG@k (U,): sum of 1 / log2(rank + 2) over hits, divided by that of an ideal Ranking."""
    return _ndcg(*target_ranks(rankings, targets, k), k)


def mrr(rankings: Any, targets: Any, k: int) -> Floats:
    """MRR@k (U,): 1 / (rank + 1) of the best-ranked target, 0 without a hit."""
    return _mrr(*target_ranks(rankings, targets, k), k)


def recall(rankings: Any, targets: Any, k: int) -> Floats:
    """Recall@k (U,): hits among the first k, divided by the user's targets."""
    return _recall(*target_ranks(rankings, targets, k), k)


def precision(rankings: Any, targets: Any, k: int) -> Floats:
    """Precision@k (U,): hits among the first k, divided by k (also where a Ranking is shorter)."""
    return _precision(*target_ranks(rankings, targets, k), k)


def average_precision(rankings: Any, targets: Any, k: int) -> Floats:
    """MAP@k (U,): the precision at each hit, summed and divided by the user's targets (not by k).

    With one target a user it equals MRR@k.
    """
    return _average_precision(*target_ranks(rankings, targets, k), k)


METRICS: Mapping[str, Metric] = {
    "HR": hit_rate,
    "NDCG": ndcg,
    "MRR": mrr,
    "Recall": recall,
    "Precision": precision,
    "MAP": average_precision,
}


def metrics_at(
    rankings: Any, targets: Any, metrics: Sequence[str], ks: Sequence[int]
) -> dict[tuple[str, int], Floats]:
    """(name, k) -> (U,) for the named metrics at every cut-off, by metric then k.

    Bit for bit what each metric alone gives, from one search for the ranks. Shapes as for
    `target_ranks`. Raises ValueError for a name that is not in METRICS or a k below 1.
    """
    unknown = [name for name in metrics if name not in _FORMULAS]
    if unknown:
        raise ValueError(f"unknown metrics {unknown}; allowed: {', '.join(_FORMULAS)}")
    if min(ks, default=1) < 1:
        raise ValueError(f"the cut-off k must be at least 1, got {min(ks)}")
    deepest = max(ks, default=1)
    ranks, counts = target_ranks(rankings, targets, deepest)
    if ranks.shape[1] != 1:
        return {
            (name, k): _FORMULAS[name](np.minimum(ranks, k), counts, k)
            for name in metrics
            for k in ks
        }
    # One target: a user's value can only be one of few, so each is worked out once and looked up.
    cases = np.minimum(np.arange(deepest + 2), deepest)[:, None]  # found at 0.., missed, no target
    targets_of_case = (np.arange(deepest + 2) <= deepest).astype(np.int64)
    case = np.where(counts > 0, ranks[:, 0], deepest + 1)
    return {
        (name, k): _FORMULAS[name](np.minimum(cases, k), targets_of_case, k)[case]
        for name in metrics
        for k in ks
    }


def at_every_k(rankings: Any, targets: Any, ks: Sequence[int]) -> dict[str, Floats]:
    """Every metric at every cut-off, as (U,) arrays named `HR@10` and so on, by metric then k."""
    found = metrics_at(rankings, targets, list(METRICS), ks)
    return {f"{name}@{k}": values for (name, k), values in found.items()}


def _hit_rate(ranks: Longs, counts: Longs, k: int) -> Floats:
    return _defined((ranks.min(axis=1, initial=k) < k).astype(np.float64), counts)


def _ndcg(ranks: Longs, counts: Longs, k: int) -> Floats:
    gains = np.append(1.0 / np.log2(np.arange(k) + 2.0), 0.0)
    ideal = np.cumsum(gains)[np.clip(counts, 1, k) - 1]
    # The sum may stand in another order than the ideal's and pass 1 by a rounding.
    return _defined(np.minimum(gains[ranks].sum(axis=1) / ideal, 1.0), counts)


def _mrr(ranks: Longs, counts: Longs, k: int) -> Floats:
    best = ranks.min(axis=1, initial=k)
    return _defined(np.where(best < k, 1.0 / (best + 1.0), 0.0), counts)


def _recall(ranks: Longs, counts: Longs, k: int) -> Floats:
    return _defined((ranks < k).sum(axis=1) / np.maximum(counts, 1), counts)


def _precision(ranks: Longs, counts: Longs, k: int) -> Floats:
    return _defined((ranks < k).sum(axis=1) / k, counts)


def _average_precision(ranks: Longs, counts: Longs, k: int) -> Floats:
    ranks = np.sort(ranks, axis=1)
    hits_so_far = np.arange(1, ranks.shape[1] + 1)
    precisions = np.where(ranks < k, hits_so_far / (ranks + 1.0), 0.0)
    return _defined(precisions.sum(axis=1) / np.maximum(counts, 1), counts)


_FORMULAS: Mapping[str, Formula] = {
    "HR": _hit_rate,
    "NDCG": _ndcg,
    "MRR": _mrr,
    "Recall": _recall,
    "Precision": _precision,
    "MAP": _average_precision,
}


def _defined(values: Floats, counts: Longs) -> Floats:
    return np.where(counts > 0, values, np.nan)


def _of_type(values: IntArray, dtype: "np.dtype[np.integer[Any]]") -> IntArray:
    """The values as `dtype` where all fit: equal types are compared without a copy."""
    limits = np.iinfo(dtype)
    if values.size and limits.min <= values.min() and values.max() <= limits.max:
        return values.astype(dtype, copy=False)
    return values
