"""Sorting token sequences into the chains of a path-compressed trie, one token depth at a time.

At each depth only the sequences that still share their prefix with another are looked at, so the
work is that of the shared prefixes, and no table of N x longest is made. The order of work is that
of radix sorting from the first digit on (Sedgewick and Wayne, Algorithms, 5.1); chains without a
branch are kept whole as in PATRICIA (Morrison, 1968). Knows no walk and no query.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
LIMIT = 2**31 - 1  # places, positions and token ids are int32
_BLOCK = 1 << 20  # tokens copied at a time, which bounds the memory of their indices


@dataclass(frozen=True)
class Chains:
    """M chains over N sequences: the arrays of a TitleTrie, which explains them."""

    tokens: Ints
    begin: Ints
    children: Ints
    low: Ints
    high: Ints
    items: Ints


@dataclass(frozen=True)
class _Groups:
    """G sets of sequences that are equal so far, in sorted order; each ends inside one chain.

    `low` (G,): the first place of a set among all sorted sequences, `size` (G,): how many it has,
    `chain` (G,): the number of its chain as made, `level` (G,): how many chains lie above that one.
    """

    low: Ints
    size: Longs
    chain: Ints
    level: Ints


@dataclass(frozen=True)
class _Made:
    """M chains in the order they were made: by the depth `start` of their first token.

    `end` (M,) is the depth after their last token, `children` (M,) how many they have.
    """

    low: Ints
    size: Ints
    level: Ints
    start: Ints
    end: Ints
    children: Ints


def chains_of(tokens: Ints, offsets: Longs) -> Chains:
    """The chains of N sequences; sequence i is `tokens[offsets[i]:offsets[i + 1]]`, not empty.

    Memory besides `tokens` (T,), `offsets` (N + 1,) and the result: at most about 200 bytes a
    sequence and 30 MB. Raises ValueError where the tokens, shared prefixes counted once, number
    2**31 - 1 or more.
    """
    items, made = _split(tokens, offsets)
    # Breadth first: siblings stand together, and families in the order of their parents.
    order = np.argsort(made.level * np.int64(len(items)) + made.low)
    low, start = made.low[order], made.start[order]
    edges = np.concatenate([[0], np.cumsum(made.end[order] - start, dtype=np.int64)])
    if edges[-1] >= LIMIT:
        raise ValueError(
            f"the titles have {int(edges[-1])} tokens with shared prefixes counted once; a "
            f"TitleTrie holds fewer than {LIMIT}: split the catalog"
        )
    children = np.cumsum(np.append(1, made.children[order]), dtype=np.int32)
    high = low + made.size[order]
    del made, order
    stored = np.empty(int(edges[-1]) + 1, np.int32)
    stored[0] = -1  # the root, which no token leads into
    _copy(tokens, offsets[items[low]] + start, edges, stored[1:])
    begin = (edges + 1).astype(np.int32)
    begin[0] = 0
    return Chains(stored, begin, children, low, high, items)


def _split(tokens: Ints, offsets: Longs) -> tuple[Ints, _Made]:
    """(N,) the sequences in sorted order, equal ones lowest first, and the chains they make."""
    base = int(tokens.max()) + 2  # token t is digit t + 1; the end of a sequence is digit 0
    rows = np.arange(len(offsets) - 1, dtype=np.int32)
    items = np.empty_like(rows)
    root = np.zeros(1, np.int32)
    groups = _Groups(root, np.array([len(rows)]), root, root)
    made = [(root, groups.size.astype(np.int32), root, root)]  # low, size, level, start
    closed: list[tuple[Ints, Ints, Ints]] = []  # chain, end, children
    number = 1
    depth = 0
    while len(rows):
        owner = np.repeat(np.arange(len(groups.low), dtype=np.int32), groups.size)
        keys = _digits(tokens, offsets, rows, depth) + owner * np.int64(base)
        _sort_inside(owner, keys, rows, base * len(groups.low))
        # Every run of equal keys is a set that is equal for one token more, or ended here.
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        size = np.diff(first, append=len(keys))
        above, goes_on = owner[first], keys[first] % base > 0
        before = np.cumsum(groups.size) - groups.size
        low = (groups.low[above] + first - before[above]).astype(np.int32)
        chain, level = groups.chain[above], groups.level[above]
        runs = np.bincount(above, minlength=len(groups.low))
        children = np.bincount(above[goes_on], minlength=len(groups.low)).astype(np.int32)
        ends = (runs > 1) | (children == 0)
        ended = groups.chain[ends]
        closed.append((ended, np.full_like(ended, depth), children[ends]))
        new = goes_on & ends[above]
        chain[new] = np.arange(number, number + int(new.sum()))
        level[new] += 1
        number += int(new.sum())
        start = np.full_like(chain[new], depth)
        made.append((low[new], size[new].astype(np.int32), level[new], start))
        alone = new & (size == 1)
        only = rows[first[alone]]
        length = (offsets[only + 1] - offsets[only]).astype(np.int32)
        closed.append((chain[alone], length, np.zeros_like(only)))
        active = goes_on & ~alone
        stays = np.repeat(active, size)
        place = np.repeat(low - first, size) + np.arange(len(rows))
        items[place[~stays]] = rows[~stays]
        rows = rows[stays]
        groups = _Groups(low[active], size[active], chain[active], level[active])
        depth += 1
    of, ends_at, counts = (np.concatenate(column) for column in zip(*closed, strict=True))
    end, child_count = np.empty_like(of), np.empty_like(of)
    end[of], child_count[of] = ends_at, counts
    lows, sizes, levels, starts = (np.concatenate(column) for column in zip(*made, strict=True))
    return items, _Made(lows, sizes, levels, starts, end, child_count)


def _digits(tokens: Ints, offsets: Longs, rows: Ints, depth: int) -> Longs:
    """(A,) the digit of A sequences at a depth."""
    at = offsets[rows] + depth
    ended = at >= offsets[rows + 1]
    at[ended] = 0
    digits = tokens[at].astype(np.int64) + 1
    digits[ended] = 0
    return digits


def _sort_inside(owner: Ints, keys: Longs, rows: Ints, bound: int) -> None:
    """Sort `keys` (A,) and `rows` (A,) by key in place, stable; all keys are below `bound`.

    Keys of a lower `owner` (A,) are lower, and most groups hold one token: only others are moved.
    """
    mixed = np.zeros(int(owner[-1]) + 1, bool)
    mixed[owner[1:][keys[1:] < keys[:-1]]] = True
    at = np.flatnonzero(mixed[owner])
    bits = len(at).bit_length()
    if bound.bit_length() + bits < 64:  # values sort several times faster than indices do
        packed = keys[at] << bits
        packed |= np.arange(len(at))
        packed.sort()
        order = packed & ((1 << bits) - 1)
    else:
        order = np.argsort(keys[at], kind="stable")
    keys[at], rows[at] = keys[at[order]], rows[at[order]]


def _copy(tokens: Ints, source: Longs, edges: Longs, into: Ints) -> None:
    """Fill `into[edges[m]:edges[m + 1]]` from `tokens[source[m]:]`, for all M chains."""
    cuts = np.searchsorted(edges, np.arange(0, int(edges[-1]), _BLOCK)).tolist()
    for first, stop in pairwise([*cuts, len(source)]):
        begin, end = int(edges[first]), int(edges[stop])
        at = np.repeat(source[first:stop] - edges[first:stop], np.diff(edges[first : stop + 1]))
        at += np.arange(begin, end)
        into[begin:end] = tokens[at]
