"""Means and paired tests of runs that were repeated with several seeds.

A value belongs to a user and a seed; users may be the same in every seed or drawn anew for each.

- Intervals: bootstrap that draws users and seeds independently of each other, a value counting as
  often as both its user and its seed were drawn (the pigeonhole bootstrap: Owen, Annals of Applied
  Statistics 2007). It is somewhat too wide rather than too narrow for many seeds; of S seeds the
  variance among seeds comes out (S - 1) / S of itself, and with one seed there is none in it.
- p-values: sign flips of users, all seeds of a user together, which speak of the seeds that ran.
- Several lines against their references: Holm's correction within each metric.

Knows no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from llmrec.evaluation.comparison import Comparison, compared, standing_of
from llmrec.evaluation.intervals import Clusters, Floats, Interval, difference

_CELLS = 4_000_000  # resampled weights held at once


def seeded_intervals(
    values: Floats,
    users: Clusters,
    seeds: Clusters,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """The C column means of `values` (E, C) with intervals over `users` (E,) and `seeds` (E,).

    Values that are not finite are left out and counted.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    patterns, pattern_of = np.unique(finite, axis=1, return_inverse=True)
    intervals: dict[int, Interval] = {}
    for number in range(patterns.shape[1]):
        kept, columns = patterns[:, number], np.flatnonzero(pattern_of.ravel() == number)
        n, excluded, own = int(kept.sum()), int((~kept).sum()), values[np.ix_(kept, columns)]
        means = own.mean(axis=0) if n else np.full(len(columns), np.nan)
        bounds = _bounds(own, users[kept], seeds[kept], samples, confidence, seed)
        for column, mean, low, high in zip(columns, means, *bounds, strict=True):
            intervals[int(column)] = Interval(float(mean), float(low), float(high), n, excluded)
    return [intervals[column] for column in range(values.shape[1])]


def seeded_comparisons(
    metric: str,
    pairs: Sequence[tuple[str, str]],
    values: Mapping[str, Floats],
    users: Clusters,
    seeds: Clusters,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Comparison]:
    """One family of paired tests: each (system, reference), Holm-corrected together.

    `values`: system -> (E,) for the same users and seeds, NaN where it has none. A system stands
    above or below only where the interval over users and seeds says so too.
    """
    options = {"samples": samples, "confidence": confidence, "seed": seed}
    found = compared(metric, pairs, values, users, **options)  # type: ignore[arg-type]
    if not found:
        return []
    gaps = [difference(values[one.system], values[one.reference]) for one in found]
    intervals = seeded_intervals(np.stack(gaps, axis=1), users, seeds, **options)  # type: ignore[arg-type]
    seeded = []
    for one, interval in zip(found, intervals, strict=True):
        test = replace(one.test, low=interval.low, high=interval.high)
        standing = standing_of(metric, test, one.p_holm, 1.0 - confidence)
        seeded.append(replace(one, test=test, standing=standing))
    return seeded


def _bounds(
    values: Floats, users: Clusters, seeds: Clusters, samples: int, confidence: float, seed: int
) -> Floats:
    """(2, C) bounds of the means of finite `values` (E, C); NaN for fewer than two users."""
    who = np.unique(users, return_inverse=True)[1].ravel()
    which = np.unique(seeds, return_inverse=True)[1].ravel()
    people, runs, width = (
        int(who.max(initial=-1)) + 1,
        int(which.max(initial=-1)) + 1,
        values.shape[1],
    )
    if people < 2:
        return np.full((2, width), np.nan)
    cells = who * runs + which
    counts = np.bincount(cells, minlength=people * runs).reshape(people, runs).astype(np.float64)
    sums = [np.bincount(cells, column, people * runs) for column in values.T]
    totals = np.stack(sums, axis=1).reshape(people, runs * width)
    rng, means = np.random.default_rng(seed), []
    at_once = max(1, _CELLS // people)
    for begin in range(0, samples, at_once):
        rows = min(at_once, samples - begin)
        drawn = rng.multinomial(people, np.full(people, 1.0 / people), rows).astype(np.float64)
        weight = rng.multinomial(runs, np.full(runs, 1.0 / runs), rows).astype(np.float64)
        total = np.einsum("brc,br->bc", (drawn @ totals).reshape(rows, runs, width), weight)
        count = (drawn @ counts * weight).sum(axis=1)
        means.append(total[count > 0] / count[count > 0, None])
    tail = (1.0 - confidence) / 2.0
    return np.asarray(np.quantile(np.concatenate(means), [tail, 1.0 - tail], axis=0))
