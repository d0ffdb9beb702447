"""Beyond accuracy: what a system recommends to all its users taken together.

Counted over the first k answers of every user. An *answer* is whatever stands at a rank; a
*recommendation* is the first occurrence of a catalog item in a user's list. N items, U users,
c(i) = training interactions of item i. Knows no targets, no systems, no files.

Sources: catalog coverage and Gini index: Shani & Gunawardana, Evaluating Recommendation Systems
(2011), and Fleder & Hosanagar (2009); average recommendation popularity: Yin et al. (VLDB 2012);
share of the long tail: Abdollahpouri et al. (FLAIRS 2019), with Pareto's 80 % as the head;
novelty: Zhou et al. (PNAS 2010), Vargas & Castells (RecSys 2011).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.evaluation.rankings import NO_ITEM, IntArray, Rankings, answer_counts, padded

HEAD_PERCENT = 80


@dataclass(frozen=True)
class BeyondAccuracy:
    """Figures of one system at the cut-off `k`; NaN where there is nothing to count.

    coverage: share of the N items that any user is recommended, 0..1.
    gini: inequality of how often the N items are recommended; 0 all equally often, 1 - 1/N always
        the same one.
    popularity: c(i) averaged over a user's recommendations, then over users (ARP); interactions.
    long_tail_share: share of a user's recommendations outside the head, averaged over users. The
        head is the fewest most popular items that hold 80 % of the training interactions.
    novelty: self-information -log2((c(i) + 1) / (sum of c + N)), averaged like popularity; bits.
        One is added so that an item without training interactions has a finite value.
    invalid_share: answers that are no catalog item, of all answers.
    repeated_share: answers that repeat an item from higher up in the same list, of all answers.
    seen_share: recommendations that stand in the user's history, of all answers.
    answers: how many answers were counted.
    """

    k: int
    coverage: float
    gini: float
    popularity: float
    long_tail_share: float
    novelty: float
    invalid_share: float
    repeated_share: float
    seen_share: float
    answers: int


def beyond_accuracy(
    rankings: Rankings, training_counts: IntArray, histories: Sequence[IntArray], k: int
) -> BeyondAccuracy:
    """Look at `rankings` (U lists of positions, -1 or N and above = no catalog item).

    `training_counts` (N,) counts each item's training interactions, `histories` are the U users'
    own pasts. Invalid answers at the end of a list are only seen if `rankings` is a sequence of
    arrays (a matrix ends in padding). Raises ValueError for a k below 1 or unequal lengths.
    """
    if k < 1:
        raise ValueError(f"the cut-off k must be at least 1, got {k}")
    matrix, size = padded(rankings)[:, :k], len(training_counts)
    if len(matrix) != len(histories):
        raise ValueError(f"{len(matrix)} rankings but histories of {len(histories)} users")
    answered = np.arange(matrix.shape[1]) < answer_counts(rankings)[:, None]
    valid = (matrix != NO_ITEM) & (matrix < size)
    recommended = valid & ~_repeats(matrix)
    answers = int(answered.sum())
    user, rank = np.nonzero(recommended)
    item = matrix[user, rank].astype(np.int64)
    times = np.bincount(item, minlength=size)
    seen = _contained(user * np.int64(size) + item, histories, size)
    counts = np.asarray(training_counts, np.float64)
    information = -np.log2((counts + 1.0) / (counts.sum() + size))
    return BeyondAccuracy(
        k=k,
        coverage=_ratio((times > 0).sum(), size),
        gini=gini(times),
        popularity=_mean_of_users(counts[item], user),
        long_tail_share=_mean_of_users((~head(training_counts))[item], user),
        novelty=_mean_of_users(information[item], user),
        invalid_share=_ratio((answered & ~valid).sum(), answers),
        repeated_share=_ratio((valid & ~recommended).sum(), answers),
        seen_share=_ratio(seen.sum(), answers),
        answers=answers,
    )


def gini(amounts: IntArray) -> float:
    """Gini index of N amounts: sum of (2 i - N - 1) x_i / (N sum x), x ascending, i from 1."""
    amounts, size = np.sort(amounts), len(amounts)
    weights = 2.0 * np.arange(1, size + 1) - size - 1
    return _ratio(float((weights * amounts).sum()), size * amounts.sum())


def head(training_counts: IntArray) -> npt.NDArray[np.bool_]:
    """(N,) which items are the head: the fewest that hold 80 % of all interactions."""
    order = np.argsort(-np.asarray(training_counts, np.int64), kind="stable")
    # In whole numbers: 0.8 times a count need not be the number it stands for.
    reached = np.cumsum(training_counts[order], dtype=np.int64) * 100
    needed = np.searchsorted(reached, HEAD_PERCENT * int(training_counts.sum())) + 1
    inside = np.zeros(len(training_counts), np.bool_)
    inside[order[:needed]] = True
    return inside


def _repeats(matrix: IntArray) -> npt.NDArray[np.bool_]:
    """(U, L) which entries occurred further left in their row."""
    order = np.argsort(matrix, axis=1, kind="stable")
    ordered = np.take_along_axis(matrix, order, axis=1)
    same = np.zeros(matrix.shape, np.bool_)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeats = np.empty_like(same)
    np.put_along_axis(repeats, order, same, axis=1)
    return repeats


def _contained(
    keys: npt.NDArray[np.int64], histories: Sequence[IntArray], size: int
) -> npt.NDArray[np.bool_]:
    """Which keys (user * N + position) are in the users' histories."""
    lengths = np.fromiter(map(len, histories), np.int64, len(histories))
    if not lengths.sum():
        return np.zeros(len(keys), np.bool_)
    past = np.concatenate(histories).astype(np.int64)
    return np.isin(keys, np.repeat(np.arange(len(histories)), lengths) * size + past)


def _mean_of_users(
    values: npt.NDArray[np.float64] | npt.NDArray[np.bool_], user: npt.NDArray[np.intp]
) -> float:
    """Mean over a user's recommendations first, then over users that have any."""
    counts = np.bincount(user)
    sums = np.bincount(user, values)
    return float((sums[counts > 0] / counts[counts > 0]).mean()) if len(user) else float("nan")


def _ratio(part: float | np.number, whole: float | np.number) -> float:
    return float(part) / float(whole) if whole else float("nan")
