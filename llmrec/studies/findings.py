"""What a study found: means, paired tests over users and seeds, gates, curves; no words.

Computed from the pooled test examples and from what the run folders say of themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec.evaluation.comparison import Comparison
from llmrec.evaluation.gates import POPULARITY, SENSITIVITY, Gates
from llmrec.evaluation.intervals import Interval, difference
from llmrec.evaluation.layout import from_json
from llmrec.evaluation.over_seeds import seeded_comparisons, seeded_intervals
from llmrec.evaluation.table import NLL, SCALED_NLL
from llmrec.model.kept_weights import read_log
from llmrec.studies.cells import Cell, Plan, Side
from llmrec.studies.pooled import Pooled, Row

SAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Tested:
    """A comparison, and in how many of the seeds its mean has the sign of the whole."""

    comparison: Comparison
    agreeing: int
    seeds: int


@dataclass(frozen=True)
class Group:
    """The means (rows, metrics) and tests over one group of test examples, `n` in number."""

    name: str
    n: int
    users: int
    means: Mapping[Side, Mapping[str, Interval]]
    tests: tuple[Tested, ...]


def groups_of(plan: Plan, pooled: Pooled) -> list[Group]:
    """One for each group of the study that has examples."""
    found = []
    for name in plan.study.groups:
        inside = pooled.group(name)
        if not inside.any():
            continue
        sides = [row.side for row in pooled.rows]
        stacked = np.stack(
            [pooled.values[s][m] for s in sides for m in plan.study.metrics], axis=1
        )[inside]
        intervals = iter(_intervals(stacked, pooled, inside))
        means = {side: {m: next(intervals) for m in plan.study.metrics} for side in sides}
        tests = tuple(t for m in plan.study.metrics for t in _tests(plan, pooled, inside, m))
        users = len(np.unique(pooled.clusters[inside]))
        found.append(Group(name, int(inside.sum()), users, means, tests))
    return found


def _intervals(values: Any, pooled: Pooled, inside: Any) -> list[Interval]:
    users, seeds = pooled.clusters[inside], pooled.seeds[inside]
    return seeded_intervals(values, users, seeds, samples=SAMPLES, confidence=CONFIDENCE)


def _tests(plan: Plan, pooled: Pooled, inside: Any, metric: str) -> list[Tested]:
    pairs = [pair for pair in plan.pairs if all(side in pooled.values for side in pair)]
    values = {key_of(s): pooled.values[s][metric][inside] for pair in pairs for s in pair}
    users, seeds = pooled.clusters[inside], pooled.seeds[inside]
    found = seeded_comparisons(
        metric,
        [(key_of(a), key_of(b)) for a, b in pairs],
        values,
        users,
        seeds,
        samples=SAMPLES,
        confidence=CONFIDENCE,
    )
    return [_tested(one, values, seeds) for one in found]


def _tested(one: Comparison, values: Mapping[str, Any], seeds: Any) -> Tested:
    gaps = difference(values[one.system], values[one.reference])
    by_seed = [gaps[(seeds == seed) & np.isfinite(gaps)] for seed in np.unique(seeds)]
    signs = [np.sign(part.mean()) for part in by_seed if len(part)]
    agreeing = sum(sign == np.sign(one.test.difference) for sign in signs)
    return Tested(one, int(agreeing), len(signs))


def key_of(side: Side) -> str:
    """A side as one word, as a study's file writes it."""
    return f"{side.line}:{side.system}"


def by_seed(pooled: Pooled, side: Side, metric: str) -> list[float]:
    """The mean of each seed, NaN where it has none."""
    found = []
    for seed in dict.fromkeys(pooled.seeds.tolist()):
        values = pooled.values[side][metric][pooled.seeds == seed]
        finite = values[np.isfinite(values)]
        found.append(float(finite.mean()) if len(finite) else float("nan"))
    return found


def gates_of(plan: Plan, pooled: Pooled) -> dict[Side, Gates]:
    """The gates of every row that is a language model's, over all its seeds."""
    found = {}
    for row in pooled.rows:
        told = [
            pooled.metrics[cell.name].get("gates", {}).get(row.side.system)
            for cell in plan.of(row.side.line)
            if cell.name in pooled.metrics
        ]
        known = [one for one in told if one is not None]
        if known:
            shares = [from_json(one["distinct"]) for one in known]
            found[row.side] = Gates(
                _over_popularity(pooled, row),
                _mean(pooled, pooled.values[row.side][SENSITIVITY]),
                float(np.mean(shares)),
                known[0]["answers"],
            )
    return found


def _over_popularity(pooled: Pooled, row: Row) -> Interval | None:
    """Against the same line's popularity, or another line's where it has none."""
    sides = [side for side in pooled.values if side.system == POPULARITY]
    same = [side for side in sides if side.line == row.side.line] or sides
    if not same:
        return None
    return _mean(pooled, difference(pooled.values[row.side][NLL], pooled.values[same[0]][NLL]))


def _mean(pooled: Pooled, values: Any) -> Interval | None:
    interval = seeded_intervals(values[:, None], pooled.clusters, pooled.seeds)[0]
    return interval if interval.n else None


def at_temperature(pooled: Pooled, side: Side) -> Interval | None:
    """The mean NLL at a temperature that was fitted in validation; None without calibration."""
    return _mean(pooled, pooled.values[side][SCALED_NLL])


def trainings(cells: Sequence[Cell]) -> list[list[tuple[float, float]]]:
    """Validation NLL by targets seen, a curve for each cell that has one."""
    curves = []
    for cell in cells:
        lines = read_log(cell.folder.train_log)
        seen = [(x["step"], x["targets"]) for x in lines if "targets" in x]
        valid = [(x["step"], x["valid_nll"]) for x in lines if x.get("valid_nll") is not None]
        if seen and valid:
            steps, targets = zip(*seen, strict=True)
            across = np.interp([s for s, _ in valid], [0, *steps], [0, *targets])
            curves.append([(float(x), y) for x, (_, y) in zip(across, valid, strict=True)])
    return curves
