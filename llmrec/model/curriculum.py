"""The curriculum of SOFT: the share that a model's own answers have in the loss, by period.

A period is an epoch, or a number of steps.

Pure functions of measured distances. Knows neither models nor how a distance is measured.
Source: Self-Adaptive Self-Distillation Fine-Tuning, arXiv 2505.20771.
"""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Mixture:
    """One period's weights. `weights[kind]`: the weight of targets of that kind (see `Segment`).

    `facts` are logged at the period's beginning.
    """

    weights: tuple[float, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def adaptive(distance: float, untuned: float, alpha: float) -> float:
    """lambda = min(exp(alpha * (d / d_0 - 1)), 1).

    `distance` d of the live model from the truth, `untuned` d_0 of the untuned model; means of
    Euclidean distances of answers, or of target NLL. Where d_0 is 0 there is nothing to come nearer
    to: 1.
    """
    if untuned == 0:
        return 1.0
    return math.exp(min(alpha * (distance / untuned - 1), 0.0))


def linear(period: int, periods: int) -> float:
    """1 in the first of `periods`, 0 in the last, in equal steps; 1 where there is one alone."""
    return 1.0 if periods <= 1 else 1.0 - period / (periods - 1)
