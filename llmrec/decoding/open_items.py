"""What each user may still be given: the items below a trie node that are open to that user.

With the catalog's encoded titles sorted, the items below a node are one range, so how many of them
are open is a difference of two binary searches, and how much of a baseline's probability lies
there is a difference of two cumulative sums. Knows no model.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmrec.text.trie import TitleTrie

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
SMALLEST = 1e-15  # cumulative sums of float64 are exact to about this


class OpenItems:
    """The open items of U users under one trie.

    `closed`: U arrays of positions that may not be recommended (items already seen).
    `probabilities` (U, N): a baseline's, rows summing to 1 over each user's open items; guides the
    search and is optional. `shut` (M,): positions that nobody may be recommended, however many.
    """

    def __init__(
        self,
        trie: TitleTrie,
        closed: Sequence[npt.NDArray[np.integer]],
        probabilities: Doubles | None = None,
        shut: npt.NDArray[np.integer] | None = None,
    ) -> None:
        self.trie, self.users = trie, len(closed)
        self._stride = len(trie) + 1
        self._shut = np.zeros(0, np.int64)
        if shut is not None:
            self._shut = np.sort(trie.rank[np.unique(shut)]).astype(np.int64)
        ranks = [trie.rank[np.unique(c)].astype(np.int64) for c in closed]
        keys = [user * self._stride + r[~self._is_shut(r)] for user, r in enumerate(ranks)]
        self._closed = np.sort(np.concatenate(keys))
        self._cumulative = None
        if probabilities is not None:
            sums = np.cumsum(probabilities[:, trie.items], axis=1)
            self._cumulative = np.concatenate([np.zeros((len(sums), 1)), sums], axis=1)

    def count(self, users: Longs, nodes: Longs) -> Longs:
        """(C,) open items of user `users[c]` below node `nodes[c]`."""
        low, high = self.trie.below(nodes)
        base = users * self._stride
        closed = np.searchsorted(self._closed, base + high) - np.searchsorted(
            self._closed, base + low
        )
        shut = np.searchsorted(self._shut, high) - np.searchsorted(self._shut, low)
        return (high - low - closed - shut).astype(np.int64)

    def log_mass(self, users: Longs, nodes: Longs) -> Doubles:
        """(C,) log of the baseline's probability of the items of `nodes[c]` for `users[c]`."""
        assert self._cumulative is not None  # noqa: S101  asked only where probabilities were given
        low, high = self.trie.below(nodes)
        mass = self._cumulative[users, high] - self._cumulative[users, low]
        return np.log(np.maximum(mass, SMALLEST))

    def items_at(self, users: Longs, nodes: Longs) -> tuple[npt.NDArray[np.int32], Longs]:
        """Open items that end exactly at the nodes of B (user, node) pairs: (C,) positions, those
        of a node lowest first, and (C,) their index in B."""
        low, high = self.trie.ending_at(nodes)
        owner = np.repeat(np.arange(len(nodes)), high - low)
        at = np.arange(len(owner)) + np.repeat(low - np.cumsum(high - low) + high - low, high - low)
        items = self.trie.items[at]
        ranks = self.trie.rank[items].astype(np.int64)
        taken = _holds(self._closed, users[owner] * self._stride + ranks) | self._is_shut(ranks)
        return items[~taken], owner[~taken]

    def _is_shut(self, ranks: Longs) -> npt.NDArray[np.bool_]:
        return _holds(self._shut, ranks)

    def children(self, users: Longs, nodes: Longs) -> tuple[Longs, Longs]:
        """Children with open items of B (user, node) pairs: (C,) child nodes, (C,) index in B."""
        child, owner = self.trie.children_of(nodes)
        keep = self.count(users[owner], child) > 0
        return child[keep], owner[keep]


def _holds(ascending: Longs, values: Longs) -> npt.NDArray[np.bool_]:
    """Which of some values an ascending array has; none of them is negative."""
    return np.append(ascending, -1)[np.searchsorted(ascending, values)] == values


def segment_log_softmax(values: Doubles, owner: Longs) -> Doubles:
    """Log-softmax of `values` (C,) inside each run of equal `owner` (C,), which is ascending."""
    if len(values) == 0:
        return values
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    run = np.cumsum(np.diff(owner, prepend=owner[0]) != 0)
    shifted = values - np.maximum.reduceat(values, starts)[run]
    return shifted - np.log(np.add.reduceat(np.exp(shifted), starts))[run]


def child_log_probabilities(
    logits: Doubles,
    owner: Longs,
    open_items: OpenItems,
    users: Longs,
    children: Longs,
    weight: float,
) -> Doubles:
    """(C,) log p(child | node) over each node's open children.

    `logits` (C,) of the language model at the child's token, `owner` (C,) its node. With guidance
    of `weight` g below 1: g * log p_LLM + (1 - g) * log q, renormalised over the children.
    """
    scores = np.asarray(logits, np.float64) * weight
    if weight < 1.0:
        scores = scores + (1.0 - weight) * open_items.log_mass(users, children)
    return segment_log_softmax(scores, owner)
