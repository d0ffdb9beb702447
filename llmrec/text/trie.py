"""The TitleTrie: every encoded title as a path, in flat arrays.

Its whole contract is `allowed(prefix) -> token ids`; the rest is the same walk for many prefixes
at once. Paths are compressed: nodes with one child are stored as slices of one token array, about
125 bytes a title of 28 tokens. Knows neither text nor models, nor how it is built or filed.
The contract is that of GENRE (De Cao et al., 2021), the layout is compressed sparse rows.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.text.trie_building import LIMIT, Ints, Longs, chains_of

TREE_ROOT = 0


class UnreachablePrefixError(ValueError):
    """A prefix that no sequence of the trie begins with."""


@dataclass(frozen=True)
class TitleTrie:
    """N sequences as S nodes; node 0 is the root, every other one the place after one token.

    `tokens` (S,) is the token that leads into a node (-1 for the root). Nodes are stored in M
    chains, breadth first: chain m is the nodes `begin[m]` to `begin[m + 1]` - 1, where each but the
    last has the next one as its only child, and no sequence ends before the last. The children of
    the last are the first nodes of the chains `children[m]` to `children[m + 1]` - 1, ordered by
    token. With the sequences sorted, those below any node of chain m are the contiguous range
    `low[m]` to `high[m]` - 1 of `items` (N,), which holds their positions in the input; `rank` (N,)
    is its inverse. Sequences equal in all tokens stand side by side in one range, lowest first.
    """

    tokens: Ints
    begin: Ints
    children: Ints
    low: Ints
    high: Ints
    items: Ints
    rank: Ints

    @staticmethod
    def from_sequences(sequences: Sequence[Sequence[int] | npt.NDArray[np.integer]]) -> "TitleTrie":
        """Build from token-id lists, each not empty; memory as of `from_flat`, and their copy.

        For decoding, close each sequence by an end token, or one that begins another cannot end.
        """
        if len(sequences) == 0:
            raise ValueError("a TitleTrie needs at least one sequence; got none")
        offsets = np.zeros(len(sequences) + 1, np.int64)
        np.cumsum([len(s) for s in sequences], out=offsets[1:])
        _refuse_empty(offsets)
        return TitleTrie.from_flat(np.concatenate(sequences), offsets)

    @staticmethod
    def from_flat(tokens: npt.NDArray[np.integer], offsets: npt.NDArray[np.integer]) -> "TitleTrie":
        """Build from N sequences end to end: i is `tokens[offsets[i]:offsets[i + 1]]`, not empty.

        Memory while building, besides `tokens` (T,) and the trie: at most about 200 bytes a
        sequence and 30 MB, and a copy of `tokens` unless they are int32. Raises ValueError at an
        empty sequence, a negative token, offsets that do not fit, and where 2**31 - 1 tokens or
        more would have to be stored.
        """
        edges = np.asarray(offsets, np.int64)
        if len(edges) < 2:
            raise ValueError("a TitleTrie needs at least one sequence; got none")
        if edges[0] != 0 or edges[-1] != len(tokens):
            raise ValueError(
                f"offsets run from {int(edges[0])} to {int(edges[-1])}; they must start at 0 and "
                f"end at {len(tokens)}, the number of tokens"
            )
        _refuse_empty(edges)
        if len(edges) > LIMIT:
            raise ValueError(f"a TitleTrie holds fewer than {LIMIT} titles; got {len(edges) - 1}")
        if tokens.min() < 0:
            raise ValueError(f"token id {int(tokens.min())} is negative")
        if tokens.max() >= LIMIT:
            raise ValueError(f"token id {int(tokens.max())} is not below {LIMIT}")
        found = chains_of(tokens.astype(np.int32, casting="same_kind", copy=False), edges)
        rank = np.empty_like(found.items)
        rank[found.items] = np.arange(len(rank), dtype=np.int32)
        return TitleTrie(
            found.tokens, found.begin, found.children, found.low, found.high, found.items, rank
        )

    def __len__(self) -> int:
        return len(self.items)

    def walk(self, prefix: Sequence[int] | npt.NDArray[np.integer]) -> Ints:
        """Nodes after 0, 1, ... len(prefix) tokens: (len(prefix) + 1,), the root first.

        Raises UnreachablePrefixError when no sequence begins with `prefix`.
        """
        nodes = np.zeros(len(prefix) + 1, np.int32)
        node = chain = TREE_ROOT
        for depth, token in enumerate(prefix):
            node += 1
            if node == self.begin[chain + 1]:
                first, stop = self.children[chain : chain + 2].tolist()
                chain = first + bisect_left(
                    range(first, stop), token, key=lambda c: self.tokens[self.begin[c]]
                )
                node = int(self.begin[chain]) if chain < stop else len(self.tokens)
            if node == len(self.tokens) or self.tokens[node] != token:
                raise UnreachablePrefixError(
                    f"no title begins with the token ids {list(map(int, prefix[: depth + 1]))}"
                )
            nodes[depth + 1] = node
        return nodes

    def allowed(self, prefix: Sequence[int] | npt.NDArray[np.integer]) -> Ints:
        """Token ids, ascending, that continue `prefix` towards some title; empty at an end.

        Raises UnreachablePrefixError when no sequence begins with `prefix`.
        """
        children, _ = self.children_of(self.walk(prefix)[-1:])
        return self.tokens[children]

    def child_count(self, nodes: npt.NDArray[np.integer]) -> Longs:
        """(B,) how many children each of B nodes has; 0 where no sequence goes on."""
        return self._children(nodes)[1]

    def chain_end(self, nodes: npt.NDArray[np.integer]) -> Longs:
        """(B,) the last node of the chain of each of B nodes: up to there, tokens are forced.

        It is the first, from the node itself on, where paths part or a sequence ends. The nodes on
        the way are the numbers between, so their tokens are one slice of `tokens`.
        """
        return self.begin[self._chains(nodes) + 1].astype(np.int64) - 1

    def below(self, nodes: npt.NDArray[np.integer]) -> tuple[Longs, Longs]:
        """(B,) first and (B,) one past the last place in `items` of what lies below B nodes."""
        chains = self._chains(nodes)
        return self.low[chains].astype(np.int64), self.high[chains].astype(np.int64)

    def children_of(self, nodes: npt.NDArray[np.integer]) -> tuple[Longs, Longs]:
        """All children of B nodes end to end: (C,) child nodes, (C,) index of the parent in B."""
        first, count = self._children(nodes)
        owner = np.repeat(np.arange(len(nodes)), count)
        inside = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        chains = first[owner] + inside
        children = np.asarray(nodes, np.int64)[owner] + 1
        branches = first[owner] >= 0
        children[branches] = self.begin[chains[branches]]
        return children, owner

    def items_at(self, node: int) -> Ints:
        """Positions of the sequences that end exactly at `node`, lowest first."""
        low, high = self.ending_at(np.array([node]))
        return self.items[low[0] : high[0]]

    def ending_at(self, nodes: npt.NDArray[np.integer]) -> tuple[Longs, Longs]:
        """(B,) first and (B,) one past the last place in `items` of what ends at B nodes."""
        chains, nodes = self._chains(nodes), np.asarray(nodes, np.int64)
        first, stop = self.children[chains], self.children[chains + 1]
        parts = np.minimum(first, len(self.low) - 1)  # of a leaf any: it is not looked at
        high = np.where(first < stop, self.low[parts], self.high[chains])
        low = self.low[chains].astype(np.int64)
        return low, np.where(nodes + 1 < self.begin[chains + 1], low, high)

    def _chains(self, nodes: npt.NDArray[np.integer]) -> Longs:
        """(B,) the chain that each of B nodes lies in."""
        # int32 like `begin`, or NumPy would make a wider copy of `begin` at every call.
        found = np.searchsorted(self.begin, np.asarray(nodes, np.int32), side="right")
        return found.astype(np.int64) - 1

    def _children(self, nodes: npt.NDArray[np.integer]) -> tuple[Longs, Longs]:
        """(B,) the first chain below B nodes, -1 where the next node is the child; (B,) counts."""
        chains = self._chains(nodes)
        last = self.begin[chains + 1] == np.asarray(nodes) + 1
        first = self.children[chains].astype(np.int64)
        count = self.children[chains + 1] - first
        return np.where(last, first, -1), np.where(last, count, 1)


def _refuse_empty(offsets: Longs) -> None:
    lengths = np.diff(offsets)
    if lengths.min() < 1:
        raise ValueError(f"sequence {int(np.argmin(lengths))} is empty; every title needs tokens")
