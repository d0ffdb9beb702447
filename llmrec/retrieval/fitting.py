"""Weights of the measures from validation queries, and how well retrievers foresee the next item.

The question is always the same: did one of the neighbours choose next what the query's user chose?
Returns arrays with a value for each query, so that intervals and tests can be made of them. Knows
no prompt, no model and no split: the queries' moments keep their targets out of sight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Bools, Interactions, Ints
from llmrec.retrieval.agreement import rating_agreement
from llmrec.retrieval.retriever import (
    NOBODY,
    Neighbours,
    Retriever,
    WholeHistories,
    random_neighbours,
    ranked,
    shares_of,
)
from llmrec.retrieval.similarity import MEASURES
from llmrec.retrieval.snapshots import Queries, Snapshots
from llmrec.retrieval.vectors import Floats

Doubles = npt.NDArray[np.float64]

STEPS = 4  # a weight is a multiple of 1 / 4
KS = (1, 5, 10)


@dataclass(frozen=True)
class FittedWeights:
    """The best `weights` by MEASURES, its `value`, that of `equal_value` weights, over `queries`.

    A value is the mean over queries of 1 / the place of the first neighbour whose next item is the
    target, 0 where there is none.
    """

    weights: dict[str, float]
    value: float
    equal_value: float
    queries: int


@dataclass(frozen=True)
class RetrieverRow:
    """One way of finding neighbours: its `vectors` and `weights` by name, a value for each query.

    `first` (Q, 6): the measures, over these vectors, of the first neighbour; NaN without one.
    `agreement` (Q,): how alike that one rates; see `rating_agreement`. `hits` (Q, len(KS)): whether
    one of the first 1, 5, 10 neighbours chose the target next.
    """

    vectors: str
    weights: str
    first: Floats
    agreement: Floats
    hits: Bools


def next_item_hits(
    neighbours: Neighbours, snapshots: Snapshots, targets: Ints, ks: Sequence[int]
) -> Bools:
    """(Q, len(ks)) whether one of the first k neighbours chose the query's target (Q,) next."""
    place = _places(neighbours, snapshots, targets)
    hits: Bools = place[:, None] < np.asarray(ks)
    return hits


def fit_weights(
    retriever: Retriever, queries: Queries, targets: Ints, count: int = 10
) -> FittedWeights:
    """Search the grid of weights in quarters that sum to 1 for the best mean reciprocal place.

    Candidates and measures are those of `retriever` (its own weights play no part) and are found
    once; of the first `count` neighbours the place counts. Ties go to the weights nearest to equal,
    then to the earlier of MEASURES. Raises ValueError without queries.
    """
    if len(queries) == 0:
        raise ValueError("no queries to fit the weights on")
    candidates = retriever.candidates(queries, count)
    values = retriever.likeness(queries, candidates)

    def value(weights: Doubles) -> float:
        found = ranked(candidates, values, weights, count)
        place = _places(found, retriever.snapshots, targets)
        return float((1.0 / (place + 1.0)).mean())

    equal = np.full(len(MEASURES), 1.0 / len(MEASURES))
    best = max(_grid(), key=lambda w: (round(value(w), 12), -float(((w - equal) ** 2).sum())))
    weights = dict(zip(MEASURES, best.tolist(), strict=True))
    return FittedWeights(weights, value(best), value(equal), len(queries))


def compare_retrievers(
    snapshots: Snapshots,
    item_vectors: Mapping[str, npt.NDArray[np.floating]],
    queries: Queries,
    targets: Ints,
    weights: Mapping[str, Mapping[str, float]],
    coarse: int = 200,
    seed: int = 0,
    *,
    interactions: Interactions,
    whole: Mapping[str, WholeHistories] | None = None,
) -> list[RetrieverRow]:
    """A row for random neighbours, each measure alone, equal weights and each of `weights`.

    `interactions`: those of the snapshots, for their ratings. `whole`: what histories are searched
    by, for kinds where that is not the mean of their items.

    All of them for each kind of `item_vectors` (N, d) by name. The random row's measures are over
    the first kind of vectors; the coarse stage of all others is the cosine over their own.
    """
    ways = {name: {name: 1.0} for name in MEASURES}
    ways |= {"equal": dict.fromkeys(MEASURES, 1.0)}
    ways |= {name: dict(given) for name, given in weights.items()}
    rows: list[RetrieverRow] = []
    for kind, vectors in item_vectors.items():
        retriever = Retriever(
            snapshots, vectors, ways["equal"], coarse, whole=(whole or {}).get(kind)
        )
        count = min(max(KS), coarse)
        candidates = retriever.candidates(queries, count)
        values = retriever.likeness(queries, candidates)
        found = {
            name: ranked(candidates, values, shares_of(given), count)
            for name, given in ways.items()
        }
        if not rows:
            found = {"random": random_neighbours(snapshots, queries, count, seed), **found}
        for name, neighbours in found.items():
            first = retriever.likeness(queries, neighbours.snapshot[:, :1])[:, 0]
            first[neighbours.snapshot[:, 0] == NOBODY] = np.nan
            hits = next_item_hits(neighbours, snapshots, targets, KS)
            nearest = neighbours.snapshot[:, 0]
            agreement = rating_agreement(interactions, queries, snapshots, nearest)
            rows.append(RetrieverRow(kind, name, first, agreement, hits))
    return rows


def _places(neighbours: Neighbours, snapshots: Snapshots, targets: Ints) -> Doubles:
    """(Q,) how many neighbours come before the first that chose the target next, or infinity."""
    hit = np.zeros(neighbours.snapshot.shape, np.bool_)
    there = neighbours.snapshot != NOBODY
    hit[there] = (
        snapshots.chosen[neighbours.snapshot[there]]
        == np.broadcast_to(targets[:, None], hit.shape)[there]
    )
    return np.where(hit.any(axis=1), hit.argmax(axis=1), np.inf)


def _grid() -> list[Doubles]:
    """Every (6,) weights in quarters that sum to 1; of two, first that with more up front."""
    measures = len(MEASURES)
    grid = []
    for bars in combinations(range(STEPS + measures - 1), measures - 1):  # between 4 quarters
        edges = (-1, *bars, STEPS + measures - 1)
        grid.append((np.diff(edges) - 1) / STEPS)
    return grid[::-1]
