"""Text-kNN: the items whose text is nearest to that of a user's latest items.

Knows the items' vectors and nothing of who chose what, so an item that nobody has chosen yet
stands as well as any other. Probabilities are a softmax of cosines, its temperature chosen in
validation. Words are TF-IDF of the titles; other vectors, such as a sentence encoder's, come from
the caller.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from llmrec.baselines.distribution import Distribution, Floats, Histories, history_weights
from llmrec.baselines.title_vectors import Vectors, unit_rows


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
