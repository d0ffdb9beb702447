"""Markov: what followed the last few items in the training sequences.

Every item has a row of transition probabilities: decayed counts of the items that came within
`reach` steps after it (and, times `backward`, before it: where timestamps tie, order says little),
shrunk towards recent popularity. A user's distribution is the mean of the rows of the last items.
Measured to be well calibrated, which is what a guide of a language model needs.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from llmrec.baselines.distribution import Distribution, Floats, Histories, history_weights
from llmrec.baselines.popularity import shares
from llmrec.data.records import Interactions


@dataclass(frozen=True)
class Markov:
    """Hyperparameters of the transition model.

    A pair d steps apart counts `reach_decay**(d - 1)`, for d up to `reach`. `prior` (> 0) is the
    weight of popularity in every row, in counts. Of the history, the `last` items speak, each
    `history_decay` times as loud as the next newer one. `half_life` is the popularity's.
    """

    reach: int = 10
    reach_decay: float = 0.8
    backward: float = 0.5
    prior: float = 10.0
    last: int = 5
    history_decay: float = 0.8
    half_life: float | None = None

    def fit(self, train: Interactions, catalog_size: int) -> "FittedMarkov":
        """Count transitions; `train` has each user's rows adjacent, oldest first."""
        return self.from_counts(
            transitions(train, catalog_size, self.reach, self.reach_decay),
            shares(train, catalog_size, self.half_life, 1.0),
        )

    def from_counts(self, forward: sp.csr_array, popularity: Floats) -> "FittedMarkov":
        """The same from `transitions` (N, N) and `shares` (N,) that were counted before."""
        if self.prior <= 0 or self.last < 1:
            raise ValueError(f"Markov needs prior {self.prior} > 0 and last {self.last} >= 1")
        counts = (forward + self.backward * forward.T).tocsr()
        scale = 1.0 / (counts.sum(axis=1) + self.prior)
        rows = (sp.diags_array(scale) @ counts).tocsr()
        return FittedMarkov(rows, popularity, self.last, self.history_decay)


@dataclass(frozen=True)
class FittedMarkov(Distribution):
    """`rows` (N, N) sum to less than 1; what is missing belongs to `popularity` (N,)."""

    rows: sp.csr_array
    popularity: Floats
    last: int
    history_decay: float

    def weights(self, histories: Histories) -> Floats:
        """See `Distribution.weights`; an empty history gets the popularity."""
        recent = history_weights(histories, len(self.popularity), self.last, self.history_decay)
        moved = (recent @ self.rows).toarray()
        # At least 0 in exact arithmetic; rounding must not make an unseen item negative.
        missing = np.maximum(1.0 - moved.sum(axis=1, keepdims=True), 1e-9)
        return moved + missing * self.popularity


def transitions(
    train: Interactions, catalog_size: int, reach: int = 1, decay: float = 1.0
) -> sp.csr_array:
    """(N, N) counts[i, j]: how often j came d <= `reach` steps after i for the same user.

    Each such pair counts `decay**(d - 1)`.
    """
    shape = (catalog_size, catalog_size)
    counts = sp.csr_array(shape, dtype=np.float64)
    for step in range(1, reach + 1):
        same = train.user[step:] == train.user[:-step]
        pair = (train.position[:-step][same], train.position[step:][same])
        values = np.full(int(same.sum()), decay ** (step - 1))
        counts = counts + sp.coo_array((values, pair), shape=shape).tocsr()
    return counts
