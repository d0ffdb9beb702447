"""The transition-graph heuristic (TGH): no training, a surprisingly strong baseline.

Items that directly followed one another in training are joined. Candidates are the rings at
exactly 1, 2, 3 hops from the last item; the text of their titles, and on the first ring the
counts, order them; each ring has a budget. Source: "An Embarrassingly Simple Graph Heuristic ...".
It gives an order, no probabilities. Where the source is silent, the rule here is ours: rings
stand one after another; beyond the list the budgets fill (10 items) the same budgets apply again
to what is left, up to `depth` items; then popularity.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec.baselines.distribution import Floats, Histories
from llmrec.baselines.markov import transitions
from llmrec.baselines.title_vectors import Vectors, unit_rows
from llmrec.data.records import Interactions, Longs

# Rings as (which item from the end, hops), each with its share of a list of 10.
BUDGETS = {
    1: (((1, 1), 7), ((1, 2), 2), ((1, 3), 1)),
    2: (((1, 1), 5), ((1, 2), 1), ((2, 1), 3), ((2, 2), 1)),
}
COUNT_WEIGHT = 0.5


@dataclass(frozen=True)
class TransitionGraph:
    """`variant` 1 looks 1 to 3 hops from the last item, 2 at 2 hops from the last two items.

    The first `depth` places follow the rings, those after them popularity.
    """

    variant: int = 1
    depth: int = 100

    def fit(
        self, train: Interactions, catalog_size: int, vectors: Vectors
    ) -> "FittedTransitionGraph":
        """Join consecutive items of `train`; `vectors` (N, D), dense or sparse, are the texts'.

        `title_vectors.title_vectors` makes them without a model. Raises ValueError for another
        variant or number of rows.
        """
        if self.variant not in BUDGETS or vectors.shape[0] != catalog_size:
            raise ValueError(f"variant {self.variant}, {vectors.shape[0]} of {catalog_size} texts")
        counts = transitions(train, catalog_size)
        popularity = np.bincount(train.position, minlength=catalog_size)
        by_popularity = np.argsort(-popularity, kind="stable")
        never = popularity == 0
        return FittedTransitionGraph(counts, unit_rows(vectors), by_popularity, never, self)


@dataclass(frozen=True)
class FittedTransitionGraph:
    """`counts` (N, N) of consecutive items; unit `vectors` (N, D); positions by popularity.

    `never` (N,): the items that nobody chose.
    """

    counts: sp.csr_array
    vectors: Vectors
    by_popularity: Longs
    never: npt.NDArray[np.bool_]
    hyperparameters: TransitionGraph

    def scores(self, histories: Histories, filter_seen: bool = True) -> Floats:
        """(U, N): minus the place in the user's ranking, from 0; -inf for seen items.

        Items that nobody chose end every ranking and share one place: nothing tells them apart.
        """
        result = np.full((len(histories), len(self.by_popularity)), -np.inf)
        for row, history in enumerate(histories):
            ranked = self._ranking(history, filter_seen)
            result[row, ranked] = -np.arange(len(ranked))
            alike = ranked[self.never[ranked]]
            if len(alike):
                result[row, alike] = result[row, alike].max()
        return result

    def _ranking(self, history: npt.NDArray[np.int32], filter_seen: bool) -> Longs:
        """All items that may be recommended, best first."""
        free = np.ones(len(self.by_popularity), dtype=bool)
        if filter_seen:
            free[history] = False
        rings, budgets = [], []
        for (back, hops), budget in BUDGETS[self.hyperparameters.variant]:
            if len(history) >= back:
                ring = self._ring(int(history[-back]), hops)
                rings.append(ring[free[ring]].tolist())
            else:
                rings.append([])
            budgets.append(budget)
        popular = self.by_popularity[free[self.by_popularity]]
        places = _filled(rings, budgets, popular.tolist())
        chosen = list(islice(places, self.hyperparameters.depth))
        free[chosen] = False
        rest = popular[free[popular]]
        return np.concatenate([np.array(chosen, dtype=np.int64), rest])

    def _ring(self, item: int, hops: int) -> Longs:
        """Items at exactly `hops` steps from `item`, best first, ties by position."""
        reached = np.zeros(len(self.by_popularity), dtype=bool)
        reached[item] = True
        ring = np.array([item])
        for _ in range(hops):
            around = np.zeros_like(reached)
            around[self.counts[ring].indices] = True
            ring = np.flatnonzero(around & ~reached)
            reached[ring] = True
        one = self.vectors[[item]]
        score = (self.vectors @ (one.toarray() if sp.issparse(one) else one).ravel())[ring]
        if hops == 1 and len(ring):
            strength = np.log1p(self.counts[[item]].toarray()[0, ring])
            score = score + COUNT_WEIGHT * strength / strength.max()
        return ring[np.argsort(-score, kind="stable")]


def _filled(rings: list[list[int]], budgets: list[int], popular: list[int]) -> Iterator[int]:
    """All items once, ring after ring by budget, list of 10 after list of 10.

    What a ring cannot fill, the next one does, and popularity what the last one cannot.
    """
    taken: set[int] = set()
    queues = [iter(ring) for ring in (*rings, popular)]
    found = True
    while found:
        found, owed = False, 0
        # Popularity has no budget of its own: it only fills what is owed.
        for queue, budget in zip(queues, (*budgets, 0), strict=True):
            owed += budget
            for item in islice((item for item in queue if item not in taken), owed):
                taken.add(item)
                owed -= 1
                found = True
                yield item
