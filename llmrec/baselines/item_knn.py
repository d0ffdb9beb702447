"""Item-kNN: items chosen by the same users as the recent ones.

Cosine of co-occurrence with shrinkage, the `neighbours` nearest items kept for each item (Sarwar
et al. 2001; Deshpande and Karypis 2004). Knows no order in training, only in the history.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from llmrec.baselines.distribution import Distribution, Floats, Histories, history_weights
from llmrec.baselines.popularity import shares
from llmrec.baselines.ranking import chunks
from llmrec.data.records import Interactions


@dataclass(frozen=True)
class ItemKNN:
    """Hyperparameters of the neighbourhood and of its mixture with popularity.

    similarity(i, j) = users(i, j) / (sqrt(users(i) * users(j)) + `shrinkage`). The `last` items
    of a history speak, each `history_decay` times as loud as the next newer one. `share` in (0, 1]
    is the probability mass of popularity, so that no item is impossible; the rest is spread as
    score**`sharpness`.
    """

    neighbours: int = 100
    shrinkage: float = 10.0
    last: int = 20
    history_decay: float = 0.9
    sharpness: float = 1.0
    share: float = 0.1

    def fit(self, train: Interactions, catalog_size: int) -> "FittedItemKNN":
        """Find each item's neighbours; how often a user chose an item plays no part."""
        return self.from_neighbours(
            neighbourhood(train, catalog_size, self.neighbours, self.shrinkage),
            shares(train, catalog_size, None, 1.0),
            choices(train, catalog_size),
        )

    def from_neighbours(
        self, similarity: sp.csr_array, popularity: Floats, chosen: sp.csr_array
    ) -> "FittedItemKNN":
        """The same from a `neighbourhood`, `shares` and `choices` that were made before."""
        if not 0 < self.share <= 1 or self.last < 1:
            raise ValueError(f"ItemKNN needs 0 < share {self.share} <= 1, last {self.last} >= 1")
        return FittedItemKNN(similarity, popularity, chosen, self)


@dataclass(frozen=True)
class FittedItemKNN(Distribution):
    """`similarity` (N, N), at most `neighbours` a row; `popularity` (N,); who had `chosen` what
    (users, N); what was asked for."""

    similarity: sp.csr_array
    popularity: Floats
    chosen: sp.csr_array
    hyperparameters: ItemKNN

    def weights(self, histories: Histories) -> Floats:
        """See `Distribution.weights`; without any neighbour, popularity has all the mass."""
        asked = self.hyperparameters
        recent = history_weights(histories, len(self.popularity), asked.last, asked.history_decay)
        return self._with_popularity((recent @ self.similarity).toarray())

    def weights_before(self, sequences: Histories, ends: Sequence[int]) -> Floats:
        """See `Distribution.weights_before`; popularity, one count of many, is as it was."""
        asked, size = self.hyperparameters, len(self.popularity)
        histories = [sequence[:end] for sequence, end in zip(sequences, ends, strict=True)]
        recent = history_weights(histories, size, asked.last, asked.history_decay)
        near = np.zeros((len(histories), size))
        for user, (sequence, end) in enumerate(zip(sequences, ends, strict=True)):
            mine = slice(recent.indptr[user], recent.indptr[user + 1])
            speakers = recent.indices[mine]
            # Who has chosen a speaker before the end has it with each later item, but not again.
            later = np.setdiff1d(sequence[end:], sequence[:end])
            together, counts = self._together[speakers].toarray(), self._counts.copy()
            together[:, later] -= 1.0
            counts[later] -= 1.0
            norm = np.sqrt(counts)
            together[np.arange(len(speakers)), speakers] = 0.0
            with np.errstate(divide="ignore", invalid="ignore"):
                value = together / (norm[speakers, None] * norm + asked.shrinkage)
            value = np.where(together > 0, value, 0.0)
            near[user] = recent.data[mine] @ _largest(value, asked.neighbours)
        return self._with_popularity(near)

    @cached_property
    def _together(self) -> sp.csr_array:
        """(N, N) how many users have chosen both of two items."""
        return (self.chosen.T @ self.chosen).tocsr()

    @cached_property
    def _counts(self) -> Floats:
        """(N,) how many users have chosen each item."""
        counts: Floats = np.asarray(self.chosen.sum(axis=0))
        return counts

    def _with_popularity(self, near: Floats) -> Floats:
        asked = self.hyperparameters
        near = near**asked.sharpness
        total = near.sum(axis=1, keepdims=True)
        share = np.where(total > 0, asked.share, 1.0)
        near *= (1.0 - share) / np.where(total > 0, total, 1.0)
        return near + share * self.popularity


def choices(train: Interactions, catalog_size: int) -> sp.csr_array:
    """(users, N) 1 where a user has chosen an item; a repeated choice is one choice."""
    shape = (len(train.user_ids), catalog_size)
    ones = np.ones(len(train))
    chosen = sp.coo_array((ones, (train.user, train.position)), shape=shape).tocsr()
    chosen.data[:] = 1.0
    return chosen


def neighbourhood(
    train: Interactions, catalog_size: int, neighbours: int, shrinkage: float
) -> sp.csr_array:
    """(N, N) similarity of every item (row) to its nearest other items, ties by position."""
    chosen = choices(train, catalog_size)
    norm = np.sqrt(chosen.sum(axis=0))
    by_item = chosen.T.tocsr()
    blocks = [
        _nearest((by_item[part] @ chosen).tocsr(), part.start, norm, neighbours, shrinkage)
        for part in chunks(catalog_size, catalog_size)
    ]
    return sp.vstack(blocks, format="csr") if blocks else sp.csr_array((0, 0))


def _largest(values: Floats, count: int) -> Floats:
    """(R, N) all but the `count` largest of each row set to 0, equal ones kept by position."""
    if count >= values.shape[1]:
        return values
    least = -np.partition(-values, count - 1, axis=1)[:, count - 1 : count]
    above = values > least
    spare = count - above.sum(axis=1, keepdims=True)
    equal = values == least
    kept = above | (equal & (np.cumsum(equal, axis=1) <= spare))
    return np.where(kept, values, 0.0)


def _nearest(
    together: sp.csr_array, start: int, norm: Floats, neighbours: int, shrinkage: float
) -> sp.csr_array:
    """The strongest `neighbours` entries of each row of co-occurrence counts (rows, N)."""
    rows = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
    columns = together.indices
    value = together.data / (norm[rows + start] * norm[columns] + shrinkage)
    other = columns != rows + start
    rows, columns, value = rows[other], columns[other], value[other]
    order = np.lexsort((columns, -value, rows))
    rows, columns, value = rows[order], columns[order], value[order]
    begin = np.searchsorted(rows, rows)  # where this entry's row begins
    kept = np.arange(len(rows)) - begin < neighbours
    entries = (value[kept], (rows[kept], columns[kept]))
    return sp.coo_array(entries, shape=together.shape).tocsr()
