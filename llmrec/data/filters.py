"""Which interactions stay: duplicates out, low ratings out, k-core, seeded nested subsets.

Array code over rows; the order of the rows is kept. Knows nothing of files or of splits.
"""

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Bools, Interactions, Longs
from llmrec.data.sorting import ascending, first_of_each, rows_in_order


def first_of_duplicates(interactions: Interactions) -> Bools:
    """(R,) True for the row of least `source_row` of each (user, item, timestamp)."""
    keys: list[npt.NDArray[np.integer]] = [
        interactions.user,
        interactions.position,
        interactions.timestamp,
    ]
    if ascending(interactions.source_row):
        return first_of_each(keys)
    by_source = rows_in_order([interactions.source_row])
    keep = np.empty(len(interactions), dtype=np.bool_)
    keep[by_source] = first_of_each([column[by_source] for column in keys])
    return keep


def k_core(interactions: Interactions, k: int) -> Bools:
    """(R,) True for the rows of the largest part in which every user and item has k rows.

    Dropping a rare item can make a user rare and the other way round, so it is repeated until
    nothing changes; the result does not depend on the order of dropping.
    """
    keep = np.ones(len(interactions), dtype=np.bool_)
    codes = [interactions.user, interactions.position]
    counts = [np.bincount(column) for column in codes]
    unchanged = 0  # looks in a row, at users and items in turn, that found nobody rare
    while unchanged < 2:
        unchanged += 1
        rare = (counts[0] > 0) & (counts[0] < k)
        if rare.any():
            dropped = np.flatnonzero(rare[codes[0]] & keep)
            keep[dropped] = False
            for column, count in zip(codes, counts, strict=True):
                count -= np.bincount(column[dropped], minlength=len(count))
            unchanged = 0
        codes.reverse()
        counts.reverse()
    return keep


def seeded_subset(total: int, count: int | None, seed: int, purpose: int) -> Longs:
    """At most `count` of `total` row numbers, drawn with a seed, ascending; None means all.

    Nested: a smaller count of the same seed and `purpose` is a subset of a larger one.
    """
    if count is None or count >= total:
        return np.arange(total)
    drawn = np.random.default_rng([seed, purpose]).permutation(total)[:count]
    return np.sort(drawn)


def drawn_items(total: int, share: float, seed: int, purpose: int) -> Bools:
    """(N,) True for a seeded `share` of N items; nested: a smaller share's are among a larger's."""
    drawn = np.zeros(total, dtype=np.bool_)
    drawn[seeded_subset(total, round(share * total), seed, purpose)] = True
    return drawn


def compacted(codes: npt.NDArray[np.int32], total: int) -> tuple[npt.NDArray[np.int32], Longs]:
    """Codes renumbered 0..n-1 without gaps, in order, and the n old codes that are in use."""
    used = np.flatnonzero(np.bincount(codes, minlength=total))
    renumbered = np.full(total, -1, dtype=np.int32)
    renumbered[used] = np.arange(len(used), dtype=np.int32)
    return renumbered[codes], used
