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

_ROWS = 256  # bootstrap samples at once


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
    intervals = []
    for column in np.asarray(values, np.float64).T:
        kept = np.isfinite(column)
        n, excluded = int(kept.sum()), int((~kept).sum())
        mean = float(column[kept].mean()) if n else float("nan")
        low, high = _bounds(column[kept], users[kept], seeds[kept], samples, confidence, seed)
        intervals.append(Interval(mean, low, high, n, excluded))
    return intervals


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
    seeded = []
    for one in found:
        gaps = difference(values[one.system], values[one.reference])
        interval = seeded_intervals(gaps[:, None], users, seeds, **options)[0]  # type: ignore[arg-type]
        test = replace(one.test, low=interval.low, high=interval.high)
        standing = standing_of(metric, test, one.p_holm, 1.0 - confidence)
        seeded.append(replace(one, test=test, standing=standing))
    return seeded


def _bounds(
    values: Floats, users: Clusters, seeds: Clusters, samples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Of the mean of finite `values`; NaN for fewer than two users."""
    who = np.unique(users, return_inverse=True)[1].ravel()
    which = np.unique(seeds, return_inverse=True)[1].ravel()
    people, runs = int(who.max(initial=-1)) + 1, int(which.max(initial=-1)) + 1
    if people < 2:
        return float("nan"), float("nan")
    cells = who * runs + which
    totals = np.bincount(cells, values, people * runs).reshape(people, runs)
    counts = np.bincount(cells, minlength=people * runs).reshape(people, runs).astype(np.float64)
    rng, means = np.random.default_rng(seed), []
    for begin in range(0, samples, _ROWS):
        rows = min(_ROWS, samples - begin)
        drawn = rng.multinomial(people, np.full(people, 1.0 / people), rows).astype(np.float64)
        weight = rng.multinomial(runs, np.full(runs, 1.0 / runs), rows)
        total, count = ((drawn @ table * weight).sum(axis=1) for table in (totals, counts))
        means.append(total[count > 0] / count[count > 0])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
    return float(low), float(high)
