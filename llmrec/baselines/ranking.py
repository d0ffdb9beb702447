"""From scores of all items to the k best, and from a fitted baseline to predictions.

Works through the users in chunks: memory is O(users in a chunk * N), whatever their number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmrec.baselines.distribution import Distribution, Floats, Histories
from llmrec.data.candidates import candidate_nll
from llmrec.data.records import Ints

# Scores held at once: 2**22 float64 are 32 MiB.
CELLS = 2**22


class Scorer(Protocol):
    """Anything fitted that scores all items; a `Distribution` is one."""

    def scores(self, histories: Histories, filter_seen: bool = True) -> Floats:
        """(U, N), higher is better, -inf for what must not be recommended."""
        ...


@dataclass(frozen=True)
class WithoutItems:
    """A fitted scorer that gives none of the items `closed` (M,); of a `Distribution`,
    probabilities are shared among the others."""

    fitted: Scorer
    closed: Ints

    def scores(self, histories: Histories, filter_seen: bool = True) -> Floats:
        """See `Scorer.scores`."""
        if isinstance(self.fitted, Distribution):
            p = without_items(self.fitted.probabilities(histories, filter_seen), self.closed)
            with np.errstate(divide="ignore"):
                return np.log(p)
        scores = self.fitted.scores(histories, filter_seen)
        scores[:, self.closed] = -np.inf
        return scores


def without_items(probabilities: Floats, closed: Ints) -> Floats:
    """The same (U, N) with 0 for the items `closed` (M,) and the rest scaled to sum to 1 again."""
    kept = probabilities.copy()
    kept[:, closed] = 0.0
    total = kept.sum(axis=1, keepdims=True)
    return np.divide(kept, total, out=kept, where=total > 0)


@dataclass(frozen=True)
class TopK:
    """For U users: `positions` (U, k) best first, padded with -1; `scores` (U, k), padded -inf.

    `nll` (U,) is -log p(target) in nats, given candidates over these alone: NaN where the scorer
    is no distribution, inf where the target is an item that was filtered as seen.
    """

    positions: Ints
    scores: npt.NDArray[np.float32]
    nll: Floats


def top_k(scores: npt.NDArray[np.floating], k: int) -> tuple[Ints, npt.NDArray[np.float32]]:
    """The k best of each row of (U, N) log-scale scores: positions and scores, both (U, k).

    Equal scores stand in the order of their positions; -inf (and NaN) is never chosen, and a row
    with fewer than k items left is padded with -1 and -inf.
    """
    users = len(scores)
    positions = np.full((users, k), -1, np.int32)
    best = np.full((users, k), -np.inf, np.float32)
    for row, values in enumerate(scores):
        candidates = np.flatnonzero(values > -np.inf)
        if len(candidates) > k:
            # Keep everything equal to the k-th best: the stable sort below then settles ties.
            kth = np.partition(values[candidates], len(candidates) - k)[len(candidates) - k]
            candidates = candidates[values[candidates] >= kth]
        chosen = candidates[np.argsort(-values[candidates], kind="stable")][:k]
        positions[row, : len(chosen)] = chosen
        best[row, : len(chosen)] = values[chosen]
    return positions, best


def top_k_of(
    candidates: Ints, scores: npt.NDArray[np.floating], k: int
) -> tuple[Ints, npt.NDArray[np.float32]]:
    """The k best of each row's candidates (U, C) by their scores (U, C); both results (U, k).

    Equal scores stand in the order of their positions. A candidate of -inf (or NaN) comes last but
    is listed, as -inf; only a row of fewer than k candidates is padded, with -1 and -inf.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    padding = ((0, 0), (0, k - order.shape[1]))
    positions, best = (np.take_along_axis(x, order, axis=1) for x in (candidates, scores))
    return (
        np.pad(positions, padding, constant_values=-1).astype(np.int32),
        np.pad(best, padding, constant_values=-np.inf).astype(np.float32),
    )


def chunks(users: int, catalog_size: int, cells: int = CELLS) -> Iterator[slice]:
    """Slices of the users whose (chunk, N) scores stay within `cells`, at least one user each."""
    size = max(1, cells // max(1, catalog_size))
    return (slice(start, min(start + size, users)) for start in range(0, users, size))


def predict(
    fitted: Scorer,
    histories: Histories,
    targets: Ints | None,
    catalog_size: int,
    k: int,
    filter_seen: bool = True,
    candidates: Ints | None = None,
) -> TopK:
    """Rank the catalog for U histories and, given `targets` (U,), their negative log-likelihood.

    Scores of a `Distribution` are log probabilities. With `candidates` (U, C) only those are
    ranked and share the probability; see `top_k_of`. A target is then one of its candidates.
    """
    users = len(histories)
    positions = np.empty((users, k), np.int32)
    best = np.empty((users, k), np.float32)
    nll = np.full(users, np.nan)
    for part in chunks(users, catalog_size):
        scores = fitted.scores(histories[part], filter_seen)
        if candidates is None:
            positions[part], best[part] = top_k(scores, k)
        else:
            among = np.take_along_axis(scores, candidates[part], axis=1)
            positions[part], best[part] = top_k_of(candidates[part], among, k)
        if targets is None or not isinstance(fitted, Distribution):
            continue
        if candidates is None:
            nll[part] = -scores[np.arange(len(scores)), targets[part]]
        else:
            nll[part] = candidate_nll(among, candidates[part], targets[part])
    return TopK(positions, best, nll)


def places_among(
    fitted: Scorer,
    histories: Histories,
    targets: Ints,
    catalog_size: int,
    among: Ints,
    filter_seen: bool = True,
    seed: int = 0,
) -> Floats:
    """(U,) each target's place, from 0, in the ranking of the items `among` (C,) alone.

    Among equal scores the place is drawn: the order of a catalog can tell what is popular, as the
    numbers of MovieLens do, and a system that cannot tell items apart must not profit from it. The
    draws of all users are spread evenly, so that who has chance alone gets what chance gives. NaN
    for a target that is none of the items, infinite for one that may not be recommended.
    """
    places = np.full(len(histories), np.nan)
    asked = np.flatnonzero(np.isin(targets, among))
    drawn, luck = np.random.default_rng(seed), np.zeros(len(histories))
    luck[asked] = (drawn.permutation(len(asked)) + drawn.random(len(asked))) / max(1, len(asked))
    for part in chunks(len(asked), catalog_size):
        users = asked[part]
        scores = fitted.scores([histories[user] for user in users], filter_seen)
        own = scores[np.arange(len(users)), targets[users]][:, None]
        others = scores[:, among]
        before, equal = (others > own).sum(axis=1), (others == own).sum(axis=1)
        place = before + np.floor(luck[users] * equal)
        places[users] = np.where(own[:, 0] > -np.inf, place, np.inf)
    return places


def target_nll(
    fitted: Distribution,
    histories: Histories,
    targets: Ints,
    catalog_size: int,
    filter_seen: bool = True,
) -> Floats:
    """(U,) -log p(target) in nats, as in `predict` but without a ranking."""
    nll = np.empty(len(histories))
    for part in chunks(len(histories), catalog_size):
        p = fitted.probabilities(histories[part], filter_seen)
        with np.errstate(divide="ignore"):
            nll[part] = -np.log(p[np.arange(len(p)), targets[part]])
    return nll


def mean_ndcg(positions: Ints, targets: Ints) -> float:
    """Mean NDCG of rankings (U, k) with one relevant item each: 1 / log2(1 + its place) or 0.

    For choosing hyperparameters; what is reported comes from `llmrec.evaluation`.
    """
    _, places = np.nonzero(positions == np.asarray(targets)[:, None])
    return float((1.0 / np.log2(places + 2.0)).sum() / max(1, len(positions)))
