"""Grounding by states: the catalog's items by their distance to what was written.

BIGRec (arXiv 2308.08434): items are ranked by the L2 distance between the state of the
written text and the state of the title; a baseline's scores may be fused in. Distances are taken
from differences in float64, each pair by itself: no cancellation, so a title written exactly lies
at distance 0, and neither the number of users nor the chunk changes a ranking. Knows no model.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llmrec.decoding.beam import Ranking

Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Closed = Sequence[npt.NDArray[np.integer]]
CHUNK = 64  # items; in float64 with their differences they fit a processor's cache
HELD = 2**24  # distances kept at a time, 128 MiB


def target_ranks(
    states: Floats,
    table: Floats,
    targets: Sequence[int] | npt.NDArray[np.integer],
    closed: Closed,
    fusion: npt.NDArray[np.floating] | None = None,
    gamma: float = 0.0,
    chunk: int = CHUNK,
) -> Longs:
    """(U,) rank from 0 of each user's target: how many open items come before it.

    Arguments as in `nearest`. Ties go to the lower position. A target that is closed to its user
    cannot be recommended and has rank N, behind every item. Raises ValueError for a target outside
    the catalog.
    """
    items = len(table)
    wanted = np.asarray(targets, np.int64)
    if len(wanted) != len(states):
        raise ValueError(f"{len(wanted)} targets for {len(states)} users")
    if ((wanted < 0) | (wanted >= items)).any():
        outside = wanted[(wanted < 0) | (wanted >= items)][0]
        raise ValueError(f"target {outside} is no position in a table of {items} items")
    ranks = np.full(len(states), items, np.int64)
    for user, values in _values(states, table, closed, fusion, gamma, chunk):
        target = wanted[user]
        if np.isfinite(values[target]):
            ranks[user] = np.count_nonzero(values < values[target]) + np.count_nonzero(
                values[:target] == values[target]
            )
    return ranks


def nearest(
    states: Floats,
    table: Floats,
    closed: Closed,
    top_k: int,
    fusion: npt.NDArray[np.floating] | None = None,
    gamma: float = 0.0,
    chunk: int = CHUNK,
) -> list[Ranking]:
    """The `top_k` open items of each of U users with the smallest values; scores are minus those.

    states (U, d) of what was written, table (N, d) of the items (may lie in a file, read `chunk`
    items at a time), `closed`: U arrays of positions that may not be ranked. The value is the
    distance or, with `fusion` (U, N) scores of a baseline and `gamma` not 0, (1 + c)^-gamma * d,
    where d and c are distance and score min-max normalised over the user's open items (0 where all
    are equal): what a user may not be given does not move the rest. The nearest item's d is 0, so
    fusion never moves it from the first place. Ties go to the lower position; a user with fewer
    open items gets them all. Raises ValueError for shapes that do not fit, a gamma without scores,
    states or open items' scores that are not finite.
    """
    rankings = []
    for _, values in _values(states, table, closed, fusion, gamma, chunk):
        kept = min(top_k, int(np.isfinite(values).sum()))
        if kept <= 0:
            rankings.append(Ranking(np.zeros(0, np.int32), np.zeros(0, np.float32)))
            continue
        bound = np.partition(values, kept - 1)[kept - 1]
        among = np.flatnonzero(values <= bound)  # ties at the bound are cut by position, below
        best = among[np.argsort(values[among], kind="stable")][:kept]
        rankings.append(Ranking(best.astype(np.int32), (-values[best]).astype(np.float32)))
    return rankings


def _values(
    states: Floats,
    table: Floats,
    closed: Closed,
    fusion: npt.NDArray[np.floating] | None,
    gamma: float,
    chunk: int,
) -> Iterator[tuple[int, Doubles]]:
    """Each user in turn and the values (N,) of all items, smallest best, infinite where closed."""
    users, items = len(states), len(table)
    if states.shape[1:] != table.shape[1:] or len(closed) != users:
        raise ValueError(
            f"states {states.shape}, table {table.shape} and {len(closed)} users' closed items do "
            "not fit: states and table must be of one width, with closed items for every user"
        )
    if fusion is None and gamma != 0.0:
        raise ValueError(f"gamma = {gamma} weighs a baseline's scores, and there are none")
    if fusion is not None and fusion.shape != (users, items):
        raise ValueError(f"fusion has shape {fusion.shape}; it must be {(users, items)}")
    group = max(1, HELD // max(1, items))
    for begin in range(0, users, group):
        block = _distances(states[begin : begin + group], table, chunk)
        for user, values in enumerate(block, start=begin):
            is_open = np.ones(items, bool)
            is_open[closed[user]] = False
            if fusion is not None and gamma != 0.0:  # at 0 not even rounding may move an item
                score = np.asarray(fusion[user][is_open], np.float64)
                if not np.isfinite(score).all():
                    raise ValueError(f"user {user}: fusion scores of open items must be finite")
                near = _normalised(values[is_open])
                values[is_open] = (1.0 + _normalised(score)) ** -gamma * near
            values[~is_open] = np.inf
            yield user, values


def _distances(states: Floats, table: Floats, chunk: int) -> Doubles:
    """(U, N) L2 distances. `vecdot` sums each pair alone, whatever stands in the same chunk."""
    found = np.empty((len(states), len(table)))
    wide = states.astype(np.float64)
    for begin in range(0, len(table), chunk):
        items = np.asarray(table[begin : begin + chunk], np.float64)
        difference = np.empty_like(items)
        for user, state in enumerate(wide):
            np.subtract(items, state, out=difference)
            np.vecdot(difference, difference, out=found[user, begin : begin + len(items)])
    if not np.isfinite(found).all():
        raise ValueError("states of texts and items must be finite; these give infinite distances")
    return np.sqrt(found, out=found)


def _normalised(values: Doubles) -> Doubles:
    """Values moved and scaled to [0, 1]; zeros where they are all equal."""
    if len(values) == 0:
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
