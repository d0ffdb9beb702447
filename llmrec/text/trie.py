"""The TitleTrie: every encoded title as a path, in flat arrays.

Its whole contract is `allowed(prefix) -> token ids`; the rest is the same walk for many prefixes
at once. Built by array code over titles, one level at a time. Knows neither text nor models.
The contract is that of GENRE (De Cao et al., 2021), the layout is compressed sparse rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
TREE_ROOT = 0


class UnreachablePrefixError(ValueError):
    """A prefix that no sequence of the trie begins with."""


@dataclass(frozen=True)
class TitleTrie:
    """N sequences as M nodes in breadth-first order; node 0 is the root.

    `tokens` (M,) is the token that leads into a node (-1 for the root). The children of node m are
    nodes `children[m]` to `children[m + 1]` - 1, ordered by token. With the sequences sorted,
    those below node m are the contiguous range `low[m]` to `high[m]` - 1 of `items` (N,), which
    holds their positions in the input; `rank` (N,) is its inverse. Sequences equal in all tokens
    stand side by side in one range.
    """

    tokens: Ints
    children: Ints
    low: Ints
    high: Ints
    items: Ints
    rank: Ints

    @staticmethod
    def from_sequences(sequences: Sequence[Sequence[int] | npt.NDArray[np.integer]]) -> "TitleTrie":
        """Build from token-id lists, each not empty; memory O(N x longest) while building.

        For decoding, close each sequence by an end token, or one that begins another cannot end.
        """
        if len(sequences) == 0:
            raise ValueError("a TitleTrie needs at least one sequence; got none")
        lengths = np.array([len(s) for s in sequences], np.int64)
        if not lengths.all():
            raise ValueError(
                f"sequence {int(np.argmin(lengths))} is empty; every title needs tokens"
            )
        flat = np.fromiter(chain.from_iterable(sequences), np.int64, int(lengths.sum()))
        if flat.min() < 0:
            raise ValueError(f"token id {int(flat.min())} is negative")
        width = int(lengths.max())
        table = np.zeros((len(lengths), width), ">u4")  # 0 pads, ids are kept as id + 1
        table[np.arange(width) < lengths[:, None]] = flat + 1
        # Big-endian rows compare as bytes the way their ids compare as numbers.
        order = np.argsort(table.view(f"S{4 * width}").ravel(), kind="stable")
        table = table[order].astype(np.int64) - 1
        return TitleTrie._from_sorted(table, lengths[order], order)

    @staticmethod
    def _from_sorted(table: Longs, lengths: Longs, order: npt.NDArray[np.intp]) -> "TitleTrie":
        count, width = table.shape
        tokens, low, high = [np.array([-1])], [np.array([0])], [np.array([count])]
        children = []
        fresh = np.ones(count, bool)  # where row i leaves the path of row i - 1
        fresh[1:] = False
        first = 1  # number of the first node of the level being made
        parents = np.zeros(1, np.int64)  # first sorted row of each node of the level above
        for depth in range(width):
            fresh[1:] |= table[1:, depth] != table[:-1, depth]
            alive = lengths > depth
            starts = np.flatnonzero(fresh & alive)
            ends = np.append(starts[1:], count)
            # A shorter sequence sorts before its extensions, so no dead row follows a live one
            # inside a node; dead rows between two nodes are cut off here.
            dead = np.concatenate([[0], np.cumsum(~alive)])
            next_dead = np.searchsorted(dead, dead[starts], side="right") - 1
            ends = np.minimum(ends, next_dead)
            children.append(first + np.searchsorted(starts, parents))
            tokens.append(table[starts, depth])
            low.append(starts)
            high.append(ends)
            first += len(starts)
            parents = starts
        children.append(np.full(len(parents) + 1, first))
        rank = np.empty(count, np.int32)
        rank[order] = np.arange(count, dtype=np.int32)
        return TitleTrie(_joined(tokens), _joined(children), _joined(low), _joined(high),
                         order.astype(np.int32), rank)  # fmt: skip

    def __len__(self) -> int:
        return len(self.items)

    def walk(self, prefix: Sequence[int] | npt.NDArray[np.integer]) -> Ints:
        """Nodes after 0, 1, ... len(prefix) tokens: (len(prefix) + 1,), the root first.

        Raises UnreachablePrefixError when no sequence begins with `prefix`.
        """
        nodes = np.zeros(len(prefix) + 1, np.int32)
        for depth, token in enumerate(prefix):
            start, stop = self.children[nodes[depth]], self.children[nodes[depth] + 1]
            child = start + np.searchsorted(self.tokens[start:stop], token)
            if child == stop or self.tokens[child] != token:
                raise UnreachablePrefixError(
                    f"no title begins with the token ids {list(map(int, prefix[: depth + 1]))}"
                )
            nodes[depth + 1] = child
        return nodes

    def allowed(self, prefix: Sequence[int] | npt.NDArray[np.integer]) -> Ints:
        """Token ids, ascending, that continue `prefix` towards some title; empty at an end.

        Raises UnreachablePrefixError when no sequence begins with `prefix`.
        """
        node = self.walk(prefix)[-1]
        return self.tokens[self.children[node] : self.children[node + 1]]

    def child_count(self, nodes: npt.NDArray[np.integer]) -> Longs:
        """(B,) how many children each of B nodes has; 0 where no sequence goes on."""
        return np.diff(self.children)[nodes].astype(np.int64)

    def below(self, nodes: npt.NDArray[np.integer]) -> tuple[Longs, Longs]:
        """(B,) first and (B,) one past the last place in `items` of what lies below B nodes."""
        return self.low[nodes].astype(np.int64), self.high[nodes].astype(np.int64)

    def children_of(self, nodes: npt.NDArray[np.integer]) -> tuple[Longs, Longs]:
        """All children of B nodes end to end: (C,) child nodes, (C,) index of the parent in B."""
        first, count = self.children[nodes], np.diff(self.children)[nodes]
        owner = np.repeat(np.arange(len(nodes)), count)
        inside = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        return first[owner].astype(np.int64) + inside, owner

    def items_at(self, node: int) -> Ints:
        """Positions of the sequences that end exactly at `node`, lowest first."""
        first_child, stop = self.children[node], self.children[node + 1]
        ends = self.low[first_child] if first_child < stop else self.high[node]
        return np.sort(self.items[self.low[node] : ends])


def _joined(levels: Sequence[npt.NDArray[np.integer]]) -> Ints:
    return np.concatenate(levels).astype(np.int32)
