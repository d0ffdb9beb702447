"""Text-kNN: the items whose text is nearest to that of a user's latest items.

Knows the items' vectors and nothing of who chose what, so an item that nobody has chosen yet
stands as well as any other. Probabilities are a softmax of cosines, its temperature chosen in
validation. Words are TF-IDF of the titles; other vectors, such as a sentence encoder's, come from
the caller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from llmrec.baselines.distribution import Distribution, Floats, Histories, history_weights
from llmrec.baselines.title_vectors import Vectors, unit_rows

# What is tried in validation.
TEXT_GRID: Mapping[str, Sequence[Any]] = {
    "temperature": (0.03, 0.05, 0.1, 0.2, 0.4, 1.0),
    "last": (1, 2, 5, 10, 20, 50),
    "history_decay": (0.6, 0.8, 0.9, 1.0),
}
GENRE_GRID = {"share": (0.25, 0.5, 0.75, 1.0), **TEXT_GRID}
NO_GENRES = (
    "text_knn_genres: the items file names no genres; name their column in "
    "data.items_columns.genres, or take text_knn"
)


@dataclass(frozen=True)
class TextKNN:
    """The `last` items of a history speak, each `history_decay` times as loud as the next newer.

    An item weighs exp(cosine / `temperature`), the cosine being with their weighted mean.
    """

    last: int = 5
    history_decay: float = 0.8
    temperature: float = 0.2

    def fit(self, vectors: Vectors) -> "FittedTextKNN":
        """From the items' vectors (N, D), dense or sparse. Raises ValueError for wrong settings."""
        if self.last < 1 or self.temperature <= 0:
            raise ValueError(f"TextKNN needs last {self.last} >= 1, temperature above 0")
        return FittedTextKNN(unit_rows(vectors), self)


@dataclass(frozen=True)
class GenreKNN(TextKNN):
    """The same over titles and genres: a cosine is `share` times that of the genres, and the rest
    that of the titles."""

    share: float = 0.5


@dataclass(frozen=True)
class FittedTextKNN(Distribution):
    """`vectors` (N, D) of length 1, or of zeros where an item has no text."""

    vectors: Vectors
    hyperparameters: TextKNN

    def weights(self, histories: Histories) -> Floats:
        """See `Distribution.weights`; all items alike after an empty history."""
        asked, vectors = self.hyperparameters, self.vectors
        recent = history_weights(histories, vectors.shape[0], asked.last, asked.history_decay)
        wanted = unit_rows(recent @ vectors)
        cosines = wanted @ vectors.T
        cosines = cosines.toarray() if sp.issparse(cosines) else np.asarray(cosines, np.float64)
        return np.exp((cosines - 1.0) / asked.temperature)
