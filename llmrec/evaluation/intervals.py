"""How sure a mean over users is, and whether two systems differ: bootstrap, sign flips, Holm.

Users are the unit. Where one user has several test examples, hand over `clusters`: all examples of
a user are then drawn, or flipped, together, as they are not independent of each other.

- Interval of a mean: percentile bootstrap (Efron & Tibshirani 1993, ch. 13). Its coverage is held
  by a simulation in the tests. If all users have one and the same value (no hit at all) it has no
  width, which says nothing about users not asked.
- Test of a difference: paired sign-flip randomisation (Fisher 1935; Smucker et al., CIKM 2007);
  p = (1 + flips at least as far from 0) / (1 + flips), so never 0.
- Several tests: Holm's step-down correction (1979).

A value that is not finite is left out and counted, in a paired test on both sides. The same seed
gives the same numbers; a column's numbers do not depend on the other columns beside it.
Knows no systems, metrics or files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Clusters: TypeAlias = npt.NDArray[np.integer]

# Resampled weights held at once: 32 MB as float64.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean over `n` examples with its interval; `excluded` more had no finite value.

    NaN where undefined: the mean of none, the interval of fewer than two users.
    """

    mean: float
    low: float
    high: float
    n: int
    excluded: int


@dataclass(frozen=True)
class PairedTest:
    """Mean of a - b over the `n` examples finite in both, its interval, two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    excluded: int


def mean_intervals(
    values: Floats,
    clusters: Clusters | None = None,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """The C column means of `values` (E, C), each with its percentile bootstrap interval.

    `clusters` (E,) names the user of each of the E examples; without it each is a user.
    """
    _check(values, clusters, samples, confidence)
    intervals: dict[int, Interval] = {}
    for columns, kept, groups in _alike(values, clusters):
        n, excluded = int(kept.sum()), int((~kept).sum())
        means = values[np.ix_(kept, columns)].mean(axis=0) if n else np.full(len(columns), np.nan)
        bounds = np.full((2, len(columns)), np.nan)
        if groups.max(initial=0) >= 1:
            totals, sizes = _totals(values[np.ix_(kept, columns)], groups)
            rng = np.random.default_rng(seed)
            drawn = np.concatenate(
                [(w @ totals) / (w @ sizes)[:, None] for w in _draws(len(sizes), samples, rng)]
            )
            tail = (1.0 - confidence) / 2.0
            bounds = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
        for i, column in enumerate(columns):
            low, high = float(bounds[0, i]), float(bounds[1, i])
            intervals[int(column)] = Interval(float(means[i]), low, high, n, excluded)
    return [intervals[column] for column in range(values.shape[1])]


def mean_interval(
    values: Floats,
    clusters: Clusters | None = None,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of `values` (E,) with its percentile bootstrap interval."""
    return mean_intervals(
        np.asarray(values, np.float64)[:, None],
        clusters,
        samples=samples,
        confidence=confidence,
        seed=seed,
    )[0]


def sign_flip_p_values(
    differences: Floats, clusters: Clusters | None = None, *, samples: int = 2000, seed: int = 0
) -> Floats:
    """(C,) two-sided p-values of "the mean difference is 0" for the columns of (E, C).

    Exact over all random flips if the differences are symmetric about 0 under the hypothesis, as
    they are when two systems are exchangeable. NaN for a column without finite values.
    """
    _check(differences, clusters, samples, 0.95)
    p_values = np.full(differences.shape[1], np.nan)
    for columns, kept, groups in _alike(differences, clusters):
        if not kept.any():
            continue
        totals, sizes = _totals(differences[np.ix_(kept, columns)], groups)
        observed = np.abs(totals.sum(axis=0))
        # Flips that give the observed mean up to rounding count as equally far.
        threshold = observed - 1e-12 * np.abs(totals).sum(axis=0)
        rng, reached = np.random.default_rng(seed), np.zeros(len(columns), np.int64)
        for rows in _chunks(len(sizes), samples):
            signs = rng.integers(0, 2, (rows, len(sizes)), np.int8) * 2.0 - 1.0
            reached += (np.abs(signs @ totals) >= threshold).sum(axis=0)
        p_values[columns] = (1.0 + reached) / (1.0 + samples)
    return p_values


def paired_tests(
    differences: Floats,
    clusters: Clusters | None = None,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[PairedTest]:
    """A test for each of the C columns of `differences` (E, C), a - b example by example."""
    intervals = mean_intervals(
        differences, clusters, samples=samples, confidence=confidence, seed=seed
    )
    p_values = sign_flip_p_values(differences, clusters, samples=samples, seed=seed)
    return [
        PairedTest(i.mean, i.low, i.high, float(p), i.n, i.excluded)
        for i, p in zip(intervals, p_values, strict=True)
    ]


def paired_test(
    a: Floats,
    b: Floats,
    clusters: Clusters | None = None,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Does `a` (E,) differ from `b` (E,), example by example? ValueError if of unequal length."""
    return paired_tests(
        difference(a, b)[:, None], clusters, samples=samples, confidence=confidence, seed=seed
    )[0]


def difference(a: Floats, b: Floats) -> Floats:
    """a - b, NaN where either is not finite (infinity minus infinity included, unwarned)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must have one shape, got {a.shape} and {b.shape}")
    both, result = np.isfinite(a) & np.isfinite(b), np.full(a.shape, np.nan)
    result[both] = a[both] - b[both]
    return result


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """(T,) adjusted p-values of a family of T tests; NaN tests stay NaN and are not counted."""
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _alike(
    values: Floats, clusters: Clusters | None
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_], npt.NDArray[np.intp]]]:
    """Columns with the same finite rows, those rows (E,), and their users as 0..G-1."""
    finite = np.isfinite(values)
    patterns, pattern_of = np.unique(finite, axis=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        kept = patterns[:, p]
        users = np.arange(len(values)) if clusters is None else clusters
        groups = np.unique(users[kept], return_inverse=True)[1]
        yield np.flatnonzero(pattern_of.ravel() == p), kept, groups


def _totals(values: Floats, groups: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Per user: the (G, C) sums of the examples' values and the (G,) numbers of examples."""
    count = int(groups.max()) + 1
    sums = [np.bincount(groups, column, count) for column in values.T]
    return np.stack(sums, axis=1), np.bincount(groups, minlength=count).astype(np.float64)


def _draws(users: int, samples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each of G users is drawn in each bootstrap sample, (rows, G) at a time."""
    for rows in _chunks(users, samples):
        cells = rng.integers(0, users, (rows, users)) + np.arange(rows)[:, None] * users
        drawn = np.bincount(cells.ravel(), minlength=rows * users)
        yield drawn.reshape(rows, users).astype(np.float64)


def _chunks(users: int, samples: int) -> Iterator[int]:
    rows = max(1, _CHUNK // max(users, 1))
    for start in range(0, samples, rows):
        yield min(rows, samples - start)


def _check(values: Floats, clusters: Clusters | None, samples: int, confidence: float) -> None:
    if values.ndim != 2:
        raise ValueError(f"values must have the shape (E, C), got {values.shape}")
    if clusters is not None and clusters.shape != values.shape[:1]:
        raise ValueError(
            f"clusters must name a user for each of {len(values)} examples, "
            f"got the shape {clusters.shape}"
        )
    if samples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(f"need samples >= 1 and 0 < confidence < 1, got {samples}, {confidence}")
