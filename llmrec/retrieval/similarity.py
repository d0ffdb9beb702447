"""Six ways in which two windows of items can be alike, over many pairs at once.

Windows are right-aligned positions padded with -1 on the left, as in Snapshots. All values lie in
[0, 1], higher is more alike, and are 0 where either window is empty:

- cosine: of the unit means of the items' vectors, 0 where it is negative;
- jaccard: items in both / items in either, as sets;
- lcs: length of the longest common subsequence / length of the shorter window;
- recency: an item weighs 1 / (1 + s) where it last occurs s steps before the end; cosine of these
  weights over all items;
- transition: distinct ordered pairs (an item, directly followed by another or itself) in both / in
  the window with fewer of them; 0 where either has none;
- dtw: dynamic time warping (Sakoe & Chiba 1978) with steps diagonal, left and up. A cell costs
  (1 - cosine of the two items' vectors) / 2, nothing for the same item, and is counted once; of the
  cheapest path, 1 - cost / (sum of both lengths). A path is shorter than that sum, so it lies in
  (0, 1], and near 1/2 or above in practice.

Knows no users, no time and no weights: see `llmrec.retrieval.retriever`.
"""

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Bools, Ints
from llmrec.retrieval.vectors import Floats, unit

MEASURES = ("cosine", "jaccard", "lcs", "recency", "transition", "dtw")

PAIRS = 4096  # looked at together: their tables stay in a processor's cache
MULTIPLIED = 2**18  # products in a call: too few to wake threads, which costs more than it saves
GATHERED = 2**22  # floats of item vectors held together, 16 MiB


def measured(queries: Ints, windows: Ints, item_vectors: Floats) -> Floats:
    """(Q, C, 6) float32 likeness, by MEASURES, of each of Q windows to C windows of its own.

    queries (Q, L), windows (Q, C, L), item_vectors (N, d) float32 with rows of length 1 or zero.
    How the queries are batched changes no bit; C may change the last ones. Raises ValueError for
    shapes that do not fit and positions outside the vectors.
    """
    if windows.ndim != 3 or queries.shape != (len(windows), windows.shape[2]):
        raise ValueError(
            f"queries {queries.shape} and windows {windows.shape} are no (Q, L) and (Q, C, L)"
        )
    count, candidates, length = windows.shape
    values = np.zeros((count, candidates, len(MEASURES)), np.float32)
    if not values.size or not length:
        return values
    if max(queries.max(), windows.max()) >= len(item_vectors):
        raise ValueError(
            f"a window holds a position above {len(item_vectors) - 1}, the last of the item vectors"
        )
    wide = max(1, min(candidates, GATHERED // (length * item_vectors.shape[1]), PAIRS))
    many = max(1, PAIRS // wide)
    for row in range(0, count, many):
        for column in range(0, candidates, wide):
            at = np.s_[row : row + many, column : column + wide]
            values[at] = _measured(queries[row : row + many], windows[at], item_vectors)
    return values


def _measured(queries: Ints, windows: Ints, item_vectors: Floats) -> Floats:
    """The same for few enough pairs. From here on P = Q * C pairs, item by item: (L, P)."""
    count, candidates, length = windows.shape
    cosine, product = _products(queries, windows, item_vectors)
    mine = np.ascontiguousarray(queries.T)
    left = np.repeat(mine, candidates, axis=1)
    right = np.ascontiguousarray(windows.reshape(-1, length).T)
    left_known, right_known = left >= 0, right >= 0
    equal = (left[:, None] == right) & left_known[:, None]  # (L, L, P)
    left_size, right_size = left_known.sum(axis=0), right_known.sum(axis=0)

    left_last, right_last = np.repeat(_last(mine), candidates, axis=1), _last(right)
    common = (left_last & equal.any(axis=1)).sum(axis=0)
    either = left_last.sum(axis=0) + right_last.sum(axis=0) - common

    moves = np.repeat(_last_moves(mine), candidates, axis=1)
    shared = (moves & (equal[:-1, :-1] & equal[1:, 1:]).any(axis=1)).sum(axis=0)
    fewer = np.minimum(moves.sum(axis=0), _last_moves(right).sum(axis=0))

    values = np.stack(
        [
            np.clip(cosine, 0.0, 1.0),
            common / np.maximum(either, 1),
            _longest_common(equal) / np.maximum(np.minimum(left_size, right_size), 1),
            _recency(equal, left_last, right_last),
            shared / np.maximum(fewer, 1),
            1.0
            - _warping(product, equal, left_known, right_known)
            / np.maximum(left_size + right_size, 1),
        ],
        axis=1,
    )
    values[(left_size == 0) | (right_size == 0)] = 0.0
    return values.reshape(count, candidates, -1).astype(np.float32)


def _products(queries: Ints, windows: Ints, item_vectors: Floats) -> tuple[Floats, Floats]:
    """(P,) cosine of the windows' means and (L, L, P) products of their items' vectors."""
    count, candidates, length = windows.shape
    cosine = np.empty((count, candidates), np.float32)
    product = np.empty((length, length, count, candidates), np.float32)
    theirs = np.empty((candidates * length, item_vectors.shape[1]), np.float32)
    by_item = np.empty((candidates * length, length), np.float32)
    step = max(1, MULTIPLIED // (length * item_vectors.shape[1]))
    for row in range(count):  # each query is multiplied by itself, whatever the others are
        mine = item_vectors[queries[row]]
        mine[queries[row] < 0] = 0.0
        flat = windows[row].T.ravel()  # item by item
        item_vectors.take(flat, axis=0, out=theirs, mode="wrap")
        theirs[flat < 0] = 0.0
        total = theirs.reshape(length, -1).sum(axis=0).reshape(candidates, -1)
        cosine[row] = np.einsum("cd,d->c", unit(total), unit(mine.sum(axis=0)))
        for start in range(0, len(theirs), step):
            np.matmul(theirs[start : start + step], mine.T, out=by_item[start : start + step])
        product[:, :, row] = by_item.T.reshape(length, length, candidates)
    return cosine.reshape(-1), product.reshape(length, length, -1)


def _last(items: Ints) -> Bools:
    """(L, P) where an item occurs for the last time in its window."""
    last = items >= 0
    for place in range(len(items) - 1):
        last[place] &= ~(items[place + 1 :] == items[place]).any(axis=0)
    return last


def _last_moves(items: Ints) -> Bools:
    """(L - 1, P) where an item and the one directly behind it occur so for the last time."""
    last = items[:-1] >= 0
    for place in range(len(items) - 2):
        again = (items[place + 1 : -1] == items[place]) & (items[place + 2 :] == items[place + 1])
        last[place] &= ~again.any(axis=0)
    return last


def _recency(equal: Bools, left_last: Bools, right_last: Bools) -> Floats:
    """(P,) cosine of the weights by recency over all items."""
    weight = 1.0 / np.arange(len(equal), 0, -1, dtype=np.float32)[:, None]
    left, right = left_last * weight, right_last * weight
    # An earlier occurrence weighs nothing, so each common item is met once.
    common = sum(left[i] * (equal[i] * right).sum(axis=0) for i in range(len(equal)))
    largest = np.sqrt((left * left).sum(axis=0) * (right * right).sum(axis=0))
    value: Floats = np.minimum(common / np.where(largest > 0, largest, 1.0), 1.0)
    return value


def _longest_common(equal: Bools) -> npt.NDArray[np.int16]:
    """(P,) length of the longest common subsequence, one row of the table at a time."""
    length, _, pairs = equal.shape
    table = np.zeros((length + 1, pairs), np.int16)
    reached = np.empty((length, pairs), np.int16)
    for row in equal:
        np.add(table[:-1], row.view(np.int8), out=reached)
        np.maximum(reached, table[1:], out=reached)
        for j in range(length):
            np.maximum(reached[j], table[j], out=table[j + 1])
    longest: npt.NDArray[np.int16] = table[-1]
    return longest


def _warping(cost: Floats, equal: Bools, left_known: Bools, right_known: Bools) -> Floats:
    """(P,) cost of the cheapest path; infinite where one window is empty. Overwrites `cost`.

    `cost` (L, L, P) holds the products of the items' vectors.
    """
    length, _, pairs = cost.shape
    np.clip(cost, -1.0, 1.0, out=cost)
    cost -= 1.0
    cost *= -0.5
    np.copyto(cost, 0.0, where=equal)
    # A path runs free of cost through the corner where both are padding, the only way in.
    np.copyto(cost, 0.0, where=~(left_known[:, None] | right_known))
    np.copyto(cost, np.inf, where=left_known[:, None] ^ right_known)
    barred = np.float32(np.inf)
    before = np.zeros((length + 1, pairs), np.float32)
    before[1:] = np.where(right_known, barred, 0)
    reached = np.empty((length, pairs), np.float32)
    for i in range(length):
        np.minimum(before[1:], before[:-1], out=reached)
        before[0] = np.where(left_known[i], barred, 0)
        for j in range(length):
            np.minimum(reached[j], before[j], out=before[j + 1])
            before[j + 1] += cost[i, j]
    cheapest: Floats = before[-1]
    return cheapest
