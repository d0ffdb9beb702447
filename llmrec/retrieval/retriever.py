"""Other users who had chosen alike before a moment: coarse by vectors, fine by six measures.

Coarse: the snapshots nearest by the cosine of their windows' vectors, of other users, strictly
earlier than the query. Of each user the nearest one stays, so a neighbour is a user. Fine: those
users' snapshots ranked by a weighted sum of the measures. (The best by that sum of all of a user's
coarse snapshots would be right as well; one for each user is simpler.) Knows no prompt: what a
neighbour shows is in `Snapshots.history` and `Snapshots.chosen`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Ints, Longs
from llmrec.errors import RecipeError
from llmrec.retrieval.index import VectorIndex
from llmrec.retrieval.similarity import MEASURES, measured
from llmrec.retrieval.snapshots import NOTHING, Queries, Snapshots
from llmrec.retrieval.vectors import Floats, unit, window_vectors

NOBODY = -1  # where there are fewer neighbours
SNAPSHOTS_A_USER = 5  # at most, searched for each user wanted in the coarse stage
QUERIES = 256  # looked for together
HELD = 2**22  # snapshots found at a time, all queries together
DECIMALS = 4  # of a score: windows that are as good tie, whatever float32 made of them


@dataclass(frozen=True)
class Neighbours:
    """K other users for each of Q queries, most alike first.

    `snapshot` (Q, K) int64 indices into Snapshots, -1 where there are fewer; `score` (Q, K)
    float32, 0 there.
    """

    snapshot: Longs
    score: Floats


@dataclass(frozen=True)
class WholeHistories:
    """Vectors of histories that are more than the mean of their items.

    `snapshots` (M, d): of the Snapshots, of length 1; `embed`: of windows (Q, L), in the same way.
    """

    snapshots: Floats
    embed: Callable[[Ints], Floats]


class Retriever:
    """Finds neighbours among `snapshots`; the same ones however the queries are batched."""

    def __init__(
        self,
        snapshots: Snapshots,
        item_vectors: npt.NDArray[np.floating],
        weights: Mapping[str, float],
        coarse: int = 200,
        index: VectorIndex | None = None,
        whole: WholeHistories | None = None,
    ) -> None:
        """item_vectors (N, d) of any length; `weights` by MEASURES; `coarse` users are ranked.

        `whole`: what is searched, and the measure cosine, where that is not the mean of the items.
        `index` is over the windows' vectors and is built when None. Raises RecipeError for weights
        of no measure, below zero or all zero, ValueError for an index of other snapshots.
        """
        self.snapshots = snapshots
        self.item_vectors = unit(item_vectors)
        self.weights = shares_of(weights)
        self.coarse, self.whole = coarse, whole
        if index is None:
            index = VectorIndex.build(
                window_vectors(snapshots.windows, self.item_vectors)
                if whole is None
                else whole.snapshots
            )
        if len(index) != len(snapshots):
            raise ValueError(f"an index of {len(index)} vectors for {len(snapshots)} snapshots")
        self.index = index
        users = len(np.unique(snapshots.user))
        self._searched_first = coarse * min(SNAPSHOTS_A_USER, -(-len(snapshots) // max(1, users)))

    def retrieve(self, queries: Queries, count: int) -> Neighbours:
        """The `count` (K) most alike users of each query; none for an empty window.

        Ties go to the later snapshot. Raises ValueError for a `count` not in 1..coarse.
        """
        if not 1 <= count <= self.coarse:
            raise ValueError(f"count {count} must lie between 1 and coarse, {self.coarse}")
        found = Neighbours(
            np.full((len(queries), count), NOBODY, np.int64),
            np.zeros((len(queries), count), np.float32),
        )
        for rows in _blocks(len(queries), QUERIES):
            candidates = self.candidates(queries.take(rows), count)
            values = self.likeness(queries.take(rows), candidates)
            best = ranked(candidates, values, self.weights, count)
            found.snapshot[rows], found.score[rows] = best.snapshot, best.score
        return found

    def candidates(self, queries: Queries, count: int) -> Longs:
        """(Q, coarse) int64 snapshots of different other users, nearest first, then -1.

        Where fewer than `count` are found among the nearest, more of them are searched.
        """
        found = np.full((len(queries), self.coarse), NOBODY, np.int64)
        allowed = np.searchsorted(self.snapshots.time, queries.time, side="left")
        vectors = self._vectors(queries)
        waiting = np.flatnonzero((queries.windows[:, -1] >= 0) & (allowed > 0))
        wanted = self._searched_first
        while len(waiting):
            short = []
            for part in _blocks(len(waiting), max(1, HELD // wanted)):
                rows = waiting[part]
                most = min(wanted, int(allowed[rows].max()))
                ids, scores = self.index.search(vectors[rows], most, allowed[rows], together=False)
                for row, own_ids, own_scores in zip(rows.tolist(), ids, scores, strict=True):
                    users = self._nearest_of_users(own_ids, own_scores, int(queries.user[row]))
                    found[row, : len(users)] = users
                    if len(users) < count and wanted < allowed[row]:
                        short.append(row)
            waiting, wanted = np.array(short, np.int64), wanted * 4
        return found

    def likeness(self, queries: Queries, candidates: Longs) -> Floats:
        """(Q, C, 6) `measured` of each query's candidates (Q, C); 0 where there is none."""
        windows = np.full((*candidates.shape, queries.windows.shape[1]), NOTHING, np.int32)
        there = candidates != NOBODY
        windows[there] = self.snapshots.windows[candidates[there]]
        values = measured(queries.windows, windows, self.item_vectors)
        if self.whole is not None:
            mine, theirs = self._vectors(queries), self.whole.snapshots
            for row, own in enumerate(candidates):  # one query at a time: the same in any batch
                cosine = np.einsum("cd,d->c", theirs[np.maximum(own, 0)], mine[row])
                values[row, :, 0] = np.where(own == NOBODY, 0.0, np.clip(cosine, 0.0, 1.0))
        return values

    def _vectors(self, queries: Queries) -> Floats:
        """(Q, d) what the queries are searched by."""
        if self.whole is None:
            return window_vectors(queries.windows, self.item_vectors)
        return self.whole.embed(queries.windows)

    def _nearest_of_users(self, ids: Longs, scores: Floats, own: int) -> Longs:
        """At most `coarse` of the found snapshots, each other user's nearest, nearest first."""
        ids, scores = ids[ids != NOBODY], scores[ids != NOBODY]
        ids = ids[np.lexsort((-ids, -scores.round(DECIMALS)))]
        users = self.snapshots.user[ids]
        first = np.sort(np.unique(users, return_index=True)[1])
        nearest: Longs = ids[first[users[first] != own]][: self.coarse]
        return nearest


def shares_of(weights: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """(6,) weights by MEASURES that sum to 1; a measure that is not named weighs nothing."""
    unknown = sorted(set(weights) - set(MEASURES))
    values = np.array([weights.get(name, 0.0) for name in MEASURES], np.float64)
    if unknown or not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise RecipeError(
            f"the weights {dict(weights)} of the similarity measures cannot be used: name "
            f"{', '.join(MEASURES)}, each 0 or more and at least one above 0"
        )
    shares: npt.NDArray[np.float64] = values / values.sum()
    return shares


def ranked(
    candidates: Longs, values: Floats, weights: npt.NDArray[np.float64], count: int
) -> Neighbours:
    """The `count` best of the candidates (Q, C) by the weighted sum of values (Q, C, 6).

    Ties, to four decimals, go to the later snapshot.
    """
    score = np.zeros(candidates.shape, np.float64)
    for measure, weight in enumerate(weights):  # one at a time: the sum is the same in any batch
        score += weight * values[:, :, measure]
    score = np.where(candidates == NOBODY, -np.inf, score.round(DECIMALS))
    best = np.lexsort((-candidates, -score), axis=1)[:, :count]
    snapshot = np.take_along_axis(candidates, best, axis=1)
    score = np.take_along_axis(score, best, axis=1)
    return Neighbours(snapshot, np.where(snapshot == NOBODY, 0.0, score).astype(np.float32))


def random_neighbours(snapshots: Snapshots, queries: Queries, count: int, seed: int) -> Neighbours:
    """`count` different other users, each equally likely, with one of their earlier snapshots.

    What a query draws depends on `seed` and on its number among the queries, not on the others;
    one with an empty window draws as well. Scores are 0.
    """
    found = np.full((len(queries), count), NOBODY, np.int64)
    by_user = np.argsort(snapshots.user, kind="stable")  # of each user in the order of time
    starts = np.flatnonzero(np.diff(snapshots.user[by_user], prepend=-1) != 0)
    ends = np.append(starts, len(by_user))[1:]
    newcomers = np.argsort(by_user[starts], kind="stable")  # users by their first snapshot
    starts, ends = starts[newcomers], ends[newcomers]
    firsts = by_user[starts]
    codes = snapshots.user[firsts]
    allowed = np.searchsorted(snapshots.time, queries.time, side="left")
    for row, (before, own) in enumerate(zip(allowed.tolist(), queries.user, strict=True)):
        rng = np.random.default_rng([seed, row])
        present = int(np.searchsorted(firsts, before))  # users with a snapshot already
        # One more than wanted: without the query's own user, what is left is drawn fairly.
        drawn = rng.choice(present, min(count + 1, present), replace=False)
        drawn = drawn[codes[drawn] != own][:count]
        for place, user in enumerate(drawn.tolist()):
            past = by_user[starts[user] : ends[user]]
            found[row, place] = past[rng.integers(np.searchsorted(past, before))]
    return Neighbours(found, np.zeros(found.shape, np.float32))


def _blocks(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, rows, size))
