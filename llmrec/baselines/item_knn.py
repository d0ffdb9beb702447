"""Item-kNN: items chosen by the same users as the recent ones.

Cosine of co-occurrence with shrinkage, the `neighbours` nearest items kept for each item (Sarwar
et al. 2001; Deshpande and Karypis 2004). Knows no order in training, only in the history.
"""

from dataclasses import dataclass

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
        )

    def from_neighbours(self, similarity: sp.csr_array, popularity: Floats) -> "FittedItemKNN":
        """The same from a `neighbourhood` (N, N) and `shares` (N,) that were made before."""
        if not 0 < self.share <= 1 or self.last < 1:
            raise ValueError(f"ItemKNN needs 0 < share {self.share} <= 1, last {self.last} >= 1")
        return FittedItemKNN(similarity, popularity, self)


@dataclass(frozen=True)
class FittedItemKNN(Distribution):
    """`similarity` (N, N), at most `neighbours` a row; `popularity` (N,); what was asked for."""

    similarity: sp.csr_array
    popularity: Floats
    hyperparameters: ItemKNN

    def weights(self, histories: Histories) -> Floats:
        """See `Distribution.weights`; without any neighbour, popularity has all the mass."""
        asked = self.hyperparameters
        recent = history_weights(histories, len(self.popularity), asked.last, asked.history_decay)
        near = (recent @ self.similarity).toarray() ** asked.sharpness
        total = near.sum(axis=1, keepdims=True)
        share = np.where(total > 0, asked.share, 1.0)
        near *= (1.0 - share) / np.where(total > 0, total, 1.0)
        return near + share * self.popularity


def neighbourhood(
    train: Interactions, catalog_size: int, neighbours: int, shrinkage: float
) -> sp.csr_array:
    """(N, N) similarity of every item (row) to its nearest other items, ties by position."""
    shape = (len(train.user_ids), catalog_size)
    ones = np.ones(len(train))
    chosen = sp.coo_array((ones, (train.user, train.position)), shape=shape).tocsr()
    chosen.data[:] = 1.0  # a repeated choice is one choice
    norm = np.sqrt(chosen.sum(axis=0))
    by_item = chosen.T.tocsr()
    blocks = [
        _nearest((by_item[part] @ chosen).tocsr(), part.start, norm, neighbours, shrinkage)
        for part in chunks(catalog_size, catalog_size)
    ]
    return sp.vstack(blocks, format="csr") if blocks else sp.csr_array((0, 0))


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
