"""Popularity: the same answer for everybody, from counts, optionally forgetting with time.

Knows nothing of the order of a user's items; a history only says what was seen.
"""

from dataclasses import dataclass

import numpy as np

from llmrec.baselines.distribution import Distribution, Floats, Histories
from llmrec.data.records import Interactions


@dataclass(frozen=True)
class Popularity:
    """Counts plus `smoothing` (> 0), so that an item never seen keeps some probability."""

    smoothing: float = 1.0

    def fit(self, train: Interactions, catalog_size: int) -> "FittedPopularity":
        """Count the training interactions of each of the N items."""
        return FittedPopularity(shares(train, catalog_size, None, self.smoothing))


@dataclass(frozen=True)
class RecentPopularity:
    """Counts in which an interaction weighs half as much for every `half_life` before the end.

    `half_life` is in units of the timestamps and counts back from the last training timestamp.
    """

    half_life: float
    smoothing: float = 1.0

    def fit(self, train: Interactions, catalog_size: int) -> "FittedPopularity":
        """Count the training interactions of each of the N items, each with its weight."""
        return FittedPopularity(shares(train, catalog_size, self.half_life, self.smoothing))


@dataclass(frozen=True)
class FittedPopularity(Distribution):
    """`shares` (N,): the probability of every item before seen ones are taken out."""

    shares: Floats

    def weights(self, histories: Histories) -> Floats:
        """See `Distribution.weights`."""
        return np.tile(self.shares, (len(histories), 1))


def shares(
    train: Interactions, catalog_size: int, half_life: float | None, smoothing: float
) -> Floats:
    """(N,) smoothed share of each item in `train`, summing to 1, all positive.

    Raises ValueError unless `smoothing` and `half_life` are positive.
    """
    if smoothing <= 0 or (half_life is not None and half_life <= 0):
        raise ValueError(f"smoothing {smoothing} and half_life {half_life} must be positive")
    weight = None
    if half_life is not None and len(train):
        weight = 0.5 ** ((train.timestamp.max() - train.timestamp) / half_life)
    counts = np.bincount(train.position, weight, catalog_size) + smoothing
    return counts / counts.sum()
