"""What every fitted baseline that is a distribution over the catalog shares.

A subclass says how much each item weighs for a history; here the weights lose the items already
seen and become probabilities. Also histories as matrices. Knows no particular baseline.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from llmrec.data.records import Ints, Longs, concatenated

Floats = npt.NDArray[np.float64]
Histories = Sequence[Ints]


class Distribution(ABC):
    """A fitted baseline whose scores are probabilities of the N items, for U users at a time."""

    @abstractmethod
    def weights(self, histories: Histories) -> Floats:
        """(U, N) new, positive array: how much each item weighs, on any scale per user.

        Histories are positions in the Catalog, oldest first, and may be empty.
        """

    def weights_before(self, sequences: Histories, ends: Sequence[int]) -> Floats | None:
        """(U, N): `weights` of what stands before `ends` (U) in training `sequences` (U).

        Each is a user's whole training sequence, and the weights are as if nothing from its end on
        had been counted. None where that is not cheap to know.
        """
        return None

    def probabilities(self, histories: Histories, filter_seen: bool = True) -> Floats:
        """(U, N): rows sum to 1; with `filter_seen`, items of the history are exactly 0.

        Memory is O(U * N): give the users in chunks (`ranking.predict` does). A user who has seen
        the whole catalog has nothing left to be recommended: that row is all 0.
        """
        weights = self.weights(histories)
        if filter_seen:
            weights[seen(histories)] = 0.0
        total = weights.sum(axis=1, keepdims=True)
        return np.divide(weights, total, out=weights, where=total > 0)

    def scores(self, histories: Histories, filter_seen: bool = True) -> Floats:
        """(U, N): log probabilities, -inf where the probability is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities(histories, filter_seen))


def seen(histories: Histories) -> tuple[Longs, Ints]:
    """Row and column of every history item: an index into a (U, N) array."""
    lengths = [len(history) for history in histories]
    return np.repeat(np.arange(len(lengths)), lengths), concatenated(histories)


def history_weights(
    histories: Histories, catalog_size: int, last: int | None, decay: float
) -> sp.csr_array:
    """(U, N): the weights of each user's `last` items, summing to 1 (0 for an empty history).

    The newest item weighs 1, the one before it `decay`, then `decay**2`, before normalising;
    `last` None takes the whole history.
    """
    recent = [history[-last:] if last else history for history in histories]
    raw = [decay ** np.arange(len(history) - 1, -1, -1, dtype=float) for history in recent]
    values = np.concatenate([weight / weight.sum() for weight in raw if len(weight)] or [[]])
    shape = (len(recent), catalog_size)
    return sp.coo_array((values, seen(recent)), shape=shape).tocsr()  # repeats are summed
