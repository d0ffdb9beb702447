"""Whether a probability means what it says: temperature, reliability, ECE, Brier score, NLL.

A system is asked as its list: the K likeliest items of each example with their probabilities, and
what is left over, which counts as one outcome more. Temperature scaling and ECE: Guo et al. (ICML
2017); equal-mass bins: Nguyen & O'Connor (EMNLP 2015), Nixon et al. (CVPR workshops 2019); Brier
score: Brier (1950). Knows no systems, metrics or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmrec.errors import DataError
from llmrec.evaluation.intervals import Clusters, Floats, Interval

Bools = npt.NDArray[np.bool_]
Binning = Literal["width", "mass"]

# What is left over by a sum of float32 probabilities of the whole catalog is noise up to this.
NOISE = 1e-5
COLDEST, HOTTEST = 0.05, 20.0
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Listed:
    """E examples with up to K listed items each, best first.

    `probabilities` (E, K) do not increase along a row and are 0 once a list has ended; `rest` (E,)
    is what they leave over; `place` (E,) is the target's index in its list, -1 if not listed.
    """

    probabilities: Floats
    rest: Floats
    place: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.place)

    def take(self, rows: npt.NDArray[Any]) -> "Listed":
        """The given examples (indices or a mask)."""
        return Listed(self.probabilities[rows], self.rest[rows], self.place[rows])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(E,) how many items each list holds."""
        return np.asarray((self.probabilities > 0).sum(axis=1), np.int64)

    @property
    def of_target(self) -> Floats:
        """(E,) the target's probability, where it is not listed that of the rest."""
        if not self.probabilities.shape[1]:
            return self.rest
        at = np.maximum(self.place, 0)[:, None]
        given = np.take_along_axis(self.probabilities, at, axis=1)[:, 0]
        return np.where(self.place >= 0, given, self.rest)


@dataclass(frozen=True)
class Reliability:
    """What was promised and what came true, in B bins of examples with alike confidence.

    `low`, `high` (B,) bound a bin; `count` (B,) examples are in it, with the mean `confidence` (B,)
    and the share `accuracy` (B,) that was right. NaN in a bin without examples.
    """

    low: Floats
    high: Floats
    count: npt.NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error: |accuracy - confidence| over the examples; NaN for none."""
        filled = self.count > 0
        if not filled.any():
            return float("nan")
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.count[filled]).sum() / self.count.sum())


def listed(
    rankings: Sequence[npt.NDArray[np.integer[Any]]],
    log_scores: Sequence[npt.NDArray[np.floating[Any]]],
    targets: npt.NDArray[np.integer[Any]],
) -> Listed:
    """From E lists of positions, best first, their log-probabilities, and the targets (E,).

    An item of probability 0 ends its list. Raises DataError for scores that are no log-
    probabilities or not in order.
    """
    width = max(map(len, rankings), default=0)
    probabilities = np.zeros((len(rankings), width))
    place = np.full(len(rankings), -1, np.int64)
    for row, (items, scores) in enumerate(zip(rankings, log_scores, strict=True)):
        probabilities[row, : len(items)] = np.exp(np.asarray(scores, np.float64))
        found = np.flatnonzero((items == targets[row]) & (probabilities[row, : len(items)] > 0))
        if len(found):
            place[row] = found[0]
    _check(probabilities)
    rest = 1.0 - probabilities.sum(axis=1)
    return Listed(probabilities, np.where(rest < NOISE, 0.0, rest), place)


def temperature_scaled(listed: Listed, temperature: float) -> Listed:
    """Every probability to the power 1 / temperature, renormalised; the rest is one outcome.

    What was listed stays listed, if with a tiny probability.
    """
    logs = _logs(listed)
    powers = np.exp(logs / temperature - (logs / temperature).max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    powers = np.where(np.isfinite(logs), np.maximum(powers, _TINY), 0.0)
    return Listed(powers[:, :-1], powers[:, -1], listed.place)


def fit_temperature(listed: Listed) -> float:
    """The temperature in [0.05, 20] that gives the E examples the least mean NLL.

    The mean NLL is convex in 1 / temperature, so its slope is bisected. Examples whose target has
    probability 0 have an infinite NLL at any temperature and are left out. 1 where nothing tells
    temperatures apart: no example, or none but uniform distributions.
    """
    listed = listed.take(listed.of_target > 0)
    if not len(listed):
        return 1.0
    logs, target = _logs(listed), np.log(listed.of_target)
    logs -= logs.max(axis=1, keepdims=True)
    target -= np.log(np.maximum(listed.probabilities.max(axis=1, initial=0.0), listed.rest))
    known = np.where(np.isfinite(logs), logs, 0.0)

    def slope(inverse: float) -> float:
        weights = np.exp(inverse * logs)
        expected = (weights * known).sum(axis=1) / weights.sum(axis=1)
        return float((expected - target).mean())

    low, high = np.log(1.0 / HOTTEST), np.log(1.0 / COLDEST)
    at_low, at_high = slope(np.exp(low)), slope(np.exp(high))
    if at_high - at_low < 1e-12 and abs(at_low) < 1e-9:
        return 1.0
    if at_low >= 0:
        return HOTTEST
    if at_high <= 0:
        return COLDEST
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def nll(listed: Listed) -> Floats:
    """(E,) -log p(target) in nats, of the whole rest where it is not listed; inf where that is 0.

    An unlisted target is one of the rest, so this is a lower bound on its own NLL.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(listed.of_target))


def brier(listed: Listed) -> Floats:
    """(E,) sum over the outcomes of (p - 1[true])^2, the rest one outcome; 0 to 2."""
    squares = (listed.probabilities**2).sum(axis=1) + listed.rest**2
    return np.asarray(squares - 2.0 * listed.of_target + 1.0)


def top_k_mass(listed: Listed, k: int) -> tuple[Floats, Bools]:
    """(E,) the probability given to the first k items together, and whether one was the target."""
    mass = np.minimum(listed.probabilities[:, :k].sum(axis=1), 1.0)
    return mass, (listed.place >= 0) & (listed.place < k)


def reliability(
    confidence: Floats, correct: Bools, bins: int = 15, by: Binning = "width"
) -> Reliability:
    """Bins of the E examples by `confidence` (E,), 0 to 1, against `correct` (E,).

    `width`: bins of equal width, open to the left (the first is closed). `mass`: of counts as equal
    as can be without parting equal confidences; bounds are then the least and largest in it.
    """
    bin_of = _bin_of(confidence, bins, by)
    count = np.bincount(bin_of, minlength=bins).astype(np.int64)
    low, high = np.full(bins, np.nan), np.full(bins, np.nan)
    if by == "width":
        edges = np.linspace(0.0, 1.0, bins + 1)
        low, high = edges[:-1], edges[1:]
    else:
        for index in np.flatnonzero(count):
            inside = confidence[bin_of == index]
            low[index], high[index] = inside.min(), inside.max()
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bin_of, confidence, bins) / count
        accuracy = np.bincount(bin_of, correct.astype(np.float64), bins) / count
    return Reliability(low, high, count, mean, accuracy)


def ece_intervals(
    asked: Sequence[tuple[Floats, Bools, Binning]],
    clusters: Clusters,
    *,
    bins: int = 15,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """The ECE of each (confidence, correct, binning) with its percentile bootstrap over users.

    `clusters` (E,) names the user of each example. Bins stay those of the whole. A resample's ECE
    holds the noise of two draws, so an interval lies somewhat high, most of all near 0.
    """
    users = np.unique(clusters, return_inverse=True)[1].ravel()
    count, size = int(users.max(initial=-1)) + 1, len(users)
    totals = np.zeros((count, len(asked) * bins))
    for index, (promised, correct, by) in enumerate(asked):
        column = index * bins + _bin_of(promised, bins, by)
        np.add.at(totals, (users, column), promised - correct)
    bounds = np.full((2, len(asked)), np.nan)
    if count > 1:
        sizes = np.bincount(users, minlength=count)
        rng, drawn = np.random.default_rng(seed), np.empty((samples, len(asked)))
        for sample in range(samples):
            weights = np.bincount(rng.integers(0, count, count), minlength=count)
            gaps = np.abs(weights @ totals).reshape(len(asked), bins)
            drawn[sample] = gaps.sum(axis=1) / (weights @ sizes)
        tail = (1.0 - confidence) / 2.0
        bounds = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return [
        Interval(reliability(promised, correct, bins, by).ece, float(low), float(high), size, 0)
        for (promised, correct, by), low, high in zip(asked, *bounds, strict=True)
    ]


def _check(probabilities: Floats) -> None:
    wrong = np.isnan(probabilities).any(axis=1) | (probabilities.sum(axis=1) > 1.001)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        total = probabilities[row].sum()
        raise DataError(
            f"list {row}: its probabilities add up to {total:.6g}, so its scores are "
            "no log-probabilities. Lists are needed of a system that gives every item "
            "a probability; run `llmrec recommend` again."
        )
    unordered = (np.diff(probabilities, axis=1) > 0).any(axis=1)
    if unordered.any():
        raise DataError(
            f"list {int(np.flatnonzero(unordered)[0])}: its scores rise along the "
            "list, so it is not best first. Run `llmrec recommend` again."
        )


def _logs(listed: Listed) -> Floats:
    """(E, K + 1) log-probabilities of the listed items and of the rest, -inf for 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.c_[listed.probabilities, listed.rest]))


def _bin_of(confidence: Floats, bins: int, by: Binning) -> npt.NDArray[np.int64]:
    """(E,) the bin of each example, 0..bins - 1."""
    if by == "width":
        edges = np.linspace(0.0, 1.0, bins + 1)
        found = np.searchsorted(edges, confidence, side="left") - 1
        return np.clip(found, 0, bins - 1).astype(np.int64)
    if not len(confidence):
        return np.zeros(0, np.int64)
    # Equal confidences go together into the bin that the middle one of them falls into.
    _, which, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    twice_middle = 2 * (np.cumsum(counts) - counts) + counts
    bin_of_value = (twice_middle * bins // (2 * len(confidence))).clip(max=bins - 1)
    return bin_of_value[which.ravel()].astype(np.int64)
