"""Rankings and targets as matrices: the one place that knows how both are padded.

A Ranking is one user's positions, best first. Many of them are a (U, L) integer matrix padded with
-1 at the end, or a sequence of U 1-D arrays. In both, -1 is an answer that is no catalog item; at
the end of a matrix row it cannot be told from padding, so where that matters (the share of invalid
answers) hand over the sequence of arrays. Knows nothing of metrics or files.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
Rankings: TypeAlias = IntArray | Sequence[IntArray]

NO_ITEM = -1


def padded(rankings: Rankings) -> IntArray:
    """(U, L) positions, best first, -1 where a Ranking holds no item or has ended.

    Raises ValueError for anything but whole numbers of at least -1 in that shape.
    """
    if isinstance(rankings, np.ndarray):
        matrix = rankings
        if matrix.ndim != 2:
            raise ValueError(f"rankings must have the shape (U, L), got {matrix.shape}")
    else:
        counts = np.fromiter(map(len, rankings), np.int64, len(rankings))
        matrix = np.full((len(rankings), int(counts.max(initial=0))), NO_ITEM, np.int64)
        if matrix.size:
            matrix[np.arange(matrix.shape[1]) < counts[:, None]] = np.concatenate(rankings)
    return _checked(matrix, "rankings")


def answer_counts(rankings: Rankings) -> npt.NDArray[np.int64]:
    """(U,) how many answers each Ranking holds, invalid ones counted, padding not."""
    if not isinstance(rankings, np.ndarray):
        return np.fromiter(map(len, rankings), np.int64, len(rankings))
    valid = padded(rankings) != NO_ITEM
    last = valid.shape[1] - valid[:, ::-1].argmax(axis=1) if valid.size else np.zeros(len(valid))
    return np.where(valid.any(axis=1), last, 0).astype(np.int64)


def target_sets(targets: IntArray) -> IntArray:
    """(U, M) targets, each once per user, -1 elsewhere; from (U,) or a (U, M) padded with -1."""
    matrix = np.asarray(targets)
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2:
        raise ValueError(f"targets must have the shape (U,) or (U, M), got {matrix.shape}")
    _checked(matrix, "targets")
    if matrix.shape[1] > 1:
        matrix = np.sort(matrix, axis=1)
        repeated = np.zeros(matrix.shape, np.bool_)
        repeated[:, 1:] = matrix[:, 1:] == matrix[:, :-1]
        matrix = np.where(repeated, NO_ITEM, matrix)
    return matrix


def _checked(matrix: IntArray, what: str) -> IntArray:
    if not np.issubdtype(matrix.dtype, np.integer):
        if matrix.size:
            raise ValueError(f"{what} must be whole numbers, got dtype {matrix.dtype}")
        matrix = matrix.astype(np.int64)
    if matrix.size and matrix.min() < NO_ITEM:
        raise ValueError(f"{what} must be positions from 0 or -1 for none, got {matrix.min()}")
    return matrix
