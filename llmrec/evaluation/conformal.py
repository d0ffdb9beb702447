"""Prediction sets: how many of a user's likeliest items hold the target for a share of the users.

Split conformal prediction (Vovk et al. 2005; Papadopoulos et al., ECML 2002): other users, set
aside, say how nonconforming their targets were; a threshold on that gives sets that hold the target
of a new user with probability 1 - alpha at least, if the users are exchangeable, whatever the
probabilities are worth. Three measures of nonconformity: LAC (Sadinle et al., JASA 2019), APS
(Romano et al., NeurIPS 2020), RAPS (Angelopoulos et al., ICLR 2021), the last two not randomised,
which makes sets slightly larger than needed. All three never fall along a list, so every set is the
beginning of a list. A threshold for each group: Vovk et al. (Mondrian conformal prediction).
Knows no systems or files.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from llmrec.evaluation.calibration import Bools, Listed
from llmrec.evaluation.intervals import Clusters, Floats, Interval, mean_intervals

Method = Literal["lac", "aps", "raps"]

ALL = "all"
SHORT, MIDDLE, LONG = "short history", "middle history", "long history"
TOO_FEW = "too few examples to calibrate"
OUTSIDE = "too many targets outside the lists"
MARGINAL = "the common threshold is for all users together"


@dataclass(frozen=True)
class Rule:
    """A measure of nonconformity; `penalty` for each rank past `free` is of RAPS alone."""

    method: Method
    penalty: float = 0.01
    free: int = 5


RULES = (Rule("lac"), Rule("aps"), Rule("raps"))


@dataclass(frozen=True)
class Coverage:
    """What the sets of one rule were worth for one group of the users that measure.

    `threshold` was found from `calibrated` examples, of the group's own if `own`. `coverage` is the
    share of targets inside their sets, `size` the number of items in a set. `guaranteed`: whether
    the rule promises 1 - alpha here; if not, `reason` says why. A set without a finite threshold
    is the whole list.
    """

    method: Method
    alpha: float
    group: str
    own: bool
    calibrated: int
    threshold: float
    coverage: Interval
    size: Interval
    median_size: float
    empty_share: float
    guaranteed: bool
    reason: str


@dataclass(frozen=True)
class Group:
    """Which of the calibrating and of the measured examples belong to a group, both masks.

    `own`: whether it can have a threshold of its own, as one is known before the target is.
    """

    calibrating: Bools
    measured: Bools
    own: bool = False


def item_scores(listed: Listed, rule: Rule) -> Floats:
    """(E, K) nonconformity of every listed item, infinite once a list has ended."""
    given = listed.probabilities
    scores = 1.0 - given if rule.method == "lac" else np.cumsum(given, axis=1)
    if rule.method == "raps":
        ranks = np.arange(1, given.shape[1] + 1)
        scores = scores + rule.penalty * np.maximum(0, ranks - rule.free)
    return np.where(given > 0, scores, np.inf)


def target_scores(listed: Listed, rule: Rule) -> Floats:
    """(E,) nonconformity of the targets, infinite where one is not listed."""
    return _of_targets(item_scores(listed, rule), listed.place)


def threshold(scores: Floats, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n `scores`; infinite if n is too small for it."""
    n = len(scores)
    # 10 times 0.9 need not be 9 in floating point, and must not become the tenth.
    rank = max(1, math.ceil(round((n + 1) * (1.0 - alpha), 9)))
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= n else math.inf


def needed(alpha: float) -> int:
    """The least number of calibrating examples that can give a finite threshold."""
    return max(1, math.ceil(round((1.0 - alpha) / alpha, 9)))


def set_sizes(listed: Listed, rule: Rule, threshold: float) -> npt.NDArray[np.int64]:
    """(E,) how many items at the beginning of each list are in its set; it can be none."""
    return _sizes(item_scores(listed, rule), threshold)


def covered(listed: Listed, rule: Rule, threshold: float) -> Bools:
    """(E,) whether the target is in its set."""
    return _inside(target_scores(listed, rule), threshold)


def coverages(
    calibrating: Listed,
    measured: Listed,
    alphas: Sequence[float],
    groups: Mapping[str, Group],
    clusters: Clusters,
    *,
    rules: Sequence[Rule] = RULES,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Coverage]:
    """Coverage of each rule and alpha for all and for each group, with its own threshold if it can.

    `clusters` (M,) names the user of each measured example. Intervals are bootstrapped over users
    with the thresholds as they are.
    """
    everyone = Group(np.ones(len(calibrating), np.bool_), np.ones(len(measured), np.bool_))
    scored = [
        (rule, target_scores(calibrating, rule), item_scores(measured, rule)) for rule in rules
    ]
    found = []
    for name, group in {ALL: everyone, **groups}.items():
        rows, sets, places = group.measured, [], measured.place[group.measured]
        for rule, calibrated, items in scored:
            kept = items[rows]
            targets = _of_targets(kept, places)
            for alpha in alphas:
                for own in (False, True)[: 1 + group.own]:
                    scores = calibrated[group.calibrating] if own else calibrated
                    limit = threshold(scores, alpha)
                    sets.append(
                        (
                            rule,
                            alpha,
                            own,
                            len(scores),
                            limit,
                            _sizes(kept, limit),
                            _inside(targets, limit),
                        )
                    )
        columns = [
            column.astype(np.float64) for *_, sizes, held in sets for column in (held, sizes)
        ]
        matrix = np.stack(columns, axis=1) if columns else np.zeros((int(rows.sum()), 0))
        intervals = mean_intervals(
            matrix, clusters[rows], samples=samples, confidence=confidence, seed=seed
        )
        for i, (rule, alpha, own, n, limit, sizes, _) in enumerate(sets):
            reason = _reason(n, alpha, limit, own or name == ALL)
            found.append(
                Coverage(
                    rule.method,
                    alpha,
                    name,
                    own,
                    n,
                    limit,
                    intervals[2 * i],
                    intervals[2 * i + 1],
                    float(np.median(sizes)) if len(sizes) else math.nan,
                    float((sizes == 0).mean()) if len(sizes) else math.nan,
                    not reason,
                    reason,
                )
            )
    return found


def activity_cuts(lengths: npt.NDArray[np.integer]) -> tuple[int, int]:
    """Two history lengths that part `lengths` (n,), the calibrating examples', in about thirds."""
    if not len(lengths):
        return 0, 0
    first, second = np.quantile(lengths, [1 / 3, 2 / 3], method="lower")
    return int(first), int(second)


def activity_groups(lengths: npt.NDArray[np.integer], cuts: tuple[int, int]) -> dict[str, Bools]:
    """(E,) for each third of activity, whether a history of that length is in it."""
    return {
        SHORT: lengths <= cuts[0],
        MIDDLE: (lengths > cuts[0]) & (lengths <= cuts[1]),
        LONG: lengths > cuts[1],
    }


def size_curve(
    calibrating: Listed, measured: Listed, rule: Rule, levels: Collection[float]
) -> list[tuple[float, float, float]]:
    """(alpha, mean set size, coverage) for each alpha of `levels` with a finite threshold."""
    scores, items = target_scores(calibrating, rule), item_scores(measured, rule)
    targets, curve = _of_targets(items, measured.place), []
    for alpha in levels:
        limit = threshold(scores, alpha)
        if math.isfinite(limit) and len(measured):
            sizes, held = _sizes(items, limit), _inside(targets, limit)
            curve.append((alpha, float(sizes.mean()), float(held.mean())))
    return curve


def _of_targets(scores: Floats, place: npt.NDArray[np.int64]) -> Floats:
    if not scores.shape[1]:
        return np.full(len(place), np.inf)
    at = np.take_along_axis(scores, np.maximum(place, 0)[:, None], axis=1)[:, 0]
    return np.where(place >= 0, at, np.inf)


def _sizes(scores: Floats, limit: float) -> npt.NDArray[np.int64]:
    return np.asarray(_inside(scores, limit).sum(axis=1), np.int64)


def _inside(scores: Floats, limit: float) -> Bools:
    return (scores <= limit) & np.isfinite(scores)


def _reason(calibrated: int, alpha: float, limit: float, promised: bool) -> str:
    if math.isinf(limit):
        return TOO_FEW if calibrated < needed(alpha) else OUTSIDE
    return "" if promised else MARGINAL
