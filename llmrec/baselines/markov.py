"""Markov: what followed the last few items in the training sequences.

Every item has a row of transition probabilities: decayed counts of the items that came within
`reach` steps after it (and, times `backward`, before it: where timestamps tie, order says little),
shrunk towards recent popularity. A user's distribution is the mean of the rows of the last items.
Measured to be well calibrated, which is what a guide of a language model needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from llmrec.baselines.distribution import Distribution, Floats, Histories, history_weights
from llmrec.baselines.popularity import shares
from llmrec.data.records import Interactions, Ints


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
        total = counts.sum(axis=1) + self.prior
        rows = (sp.diags_array(1.0 / total) @ counts).tocsr()
        return FittedMarkov(rows, total, popularity, self)


@dataclass(frozen=True)
class FittedMarkov(Distribution):
    """`rows` (N, N) sum to less than 1; what is missing belongs to `popularity` (N,).

    `total` (N,): the counts that each row was divided by, the prior's among them.
    """

    rows: sp.csr_array
    total: Floats
    popularity: Floats
    hyperparameters: Markov

    def weights(self, histories: Histories) -> Floats:
        """See `Distribution.weights`; an empty history gets the popularity."""
        asked = self.hyperparameters
        recent = history_weights(histories, len(self.popularity), asked.last, asked.history_decay)
        return self._with_popularity((recent @ self.rows).toarray())

    def weights_before(self, sequences: Histories, ends: Sequence[int]) -> Floats:
        """See `Distribution.weights_before`; popularity, one count of many, is as it was."""
        asked, size = self.hyperparameters, len(self.popularity)
        histories = [sequence[:end] for sequence, end in zip(sequences, ends, strict=True)]
        recent = history_weights(histories, size, asked.last, asked.history_decay)
        moved = np.zeros((len(histories), size))
        for user, (sequence, end) in enumerate(zip(sequences, ends, strict=True)):
            mine = slice(recent.indptr[user], recent.indptr[user + 1])
            speakers, loud = recent.indices[mine], recent.data[mine]
            own = self._own_counts(sequence, end, speakers)
            total = self.total[speakers]
            counts = np.maximum(self.rows[speakers].toarray() * total[:, None] - own, 0.0)
            moved[user] = (loud / (total - own.sum(axis=1))) @ counts
        return self._with_popularity(moved)

    def _with_popularity(self, moved: Floats) -> Floats:
        # At least 0 in exact arithmetic; rounding must not make an unseen item negative.
        missing = np.maximum(1.0 - moved.sum(axis=1, keepdims=True), 1e-9)
        return moved + missing * self.popularity

    def _own_counts(self, sequence: Ints, end: int, speakers: Ints) -> Floats:
        """(S, N) what the `speakers` (S,) owe to pairs of a sequence whose later item stands at
        `end` or behind."""
        asked, size = self.hyperparameters, len(self.popularity)
        own, row = np.zeros((len(speakers), size)), np.full(size, -1)
        row[speakers] = np.arange(len(speakers))
        for step in range(1, min(asked.reach, len(sequence) - 1) + 1):
            later = np.arange(max(end, step), len(sequence))
            first, second = sequence[later - step], sequence[later]
            value = asked.reach_decay ** (step - 1)
            for speaker, other, share in (
                (first, second, value),
                (second, first, asked.backward * value),
            ):
                speaks = row[speaker] >= 0
                np.add.at(own, (row[speaker[speaks]], other[speaks]), share)
        return own


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
