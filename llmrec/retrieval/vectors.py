"""Vectors of items from who chose them together, and of windows from their items.

Items: positive pointwise mutual information of items chosen close to each other by the same user,
factorised by a truncated singular value decomposition (Levy & Goldberg, Neural Word Embedding as
Implicit Matrix Factorization, NIPS 2014; roots of the singular values as in Levy et al., TACL
2015). Counts whatever interactions it is given: which moments those may come from is the caller's
to say. Knows no model; vectors made by one come in as an array of the same shape.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from llmrec.data.records import Interactions, Ints

Floats = npt.NDArray[np.float32]

_NOISE = 1e-6  # what float32 leaves where directions cancel


def unit(vectors: npt.NDArray[Any]) -> Floats:
    """(..., d) float32 with rows of length 1; a row shorter than 1e-6 becomes zero."""
    vectors = vectors.astype(np.float32, copy=False)
    length = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    scaled: Floats = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > _NOISE)
    return scaled


def window_vectors(windows: Ints, item_vectors: Floats, chunk: int = 2**16) -> Floats:
    """(..., d) unit mean of each window's items, each brought to length 1; zeros for no item.

    windows (..., L) positions, -1 is padding; item_vectors (N, d) float32, zero for an item nothing
    is known of. Works through `chunk` windows at a time.
    """
    flat = windows.reshape(-1, windows.shape[-1])
    vectors = np.empty((len(flat), item_vectors.shape[1]), np.float32)
    for start in range(0, len(flat), chunk):
        part = flat[start : start + chunk]
        total = np.zeros((len(part), item_vectors.shape[1]), np.float32)
        for column in part.T:  # one item of each window at a time: no (chunk, L, d) in memory
            known = column >= 0
            total[known] += unit(item_vectors[column[known]])
        vectors[start : start + chunk] = unit(total)
    return vectors.reshape(*windows.shape[:-1], item_vectors.shape[1])


def cooccurrence_factors(
    interactions: Interactions,
    catalog_size: int,
    dimensions: int = 64,
    window: int = 10,
    seed: int = 0,
) -> Floats:
    """(N, d) float32 unit vectors of the N items, alike where the same items are chosen near them.

    Two items are together once for each pair of a user's interactions at most `window` steps apart.
    d is `dimensions`, or less where the catalog is smaller; an item that was never chosen, or only
    as chance would have it, is zero. The same interactions give the same bytes on one machine.
    Interactions are ordered (see `llmrec.data.splits`). Raises ValueError for sizes below 1.
    """
    if min(catalog_size, dimensions, window) < 1:
        raise ValueError(
            f"catalog size {catalog_size}, dimensions {dimensions} and window "
            f"{window} must be at least 1"
        )
    information = _positive_information(_together(interactions, catalog_size, window))
    size = min(dimensions, max(1, catalog_size - 1))
    if information.nnz == 0:
        return np.zeros((catalog_size, size), np.float32)
    start = np.random.default_rng(seed).standard_normal(catalog_size)
    left, strength, _ = svds(information, k=size, v0=start)
    left, strength = left[:, ::-1], strength[::-1]  # the strongest first
    real = strength > 1e-6 * strength[0]  # what is left of a lower rank is rounding
    factors = np.where(real, left * np.sqrt(np.where(real, strength, 0.0)), 0.0)
    # A singular vector's sign is free: its largest entry is made positive.
    largest = factors[np.abs(factors).argmax(axis=0), np.arange(size)]
    factors *= np.where(largest < 0, -1.0, 1.0)
    factors[np.diff(information.indptr) == 0] = 0.0
    return unit(factors)


def _together(interactions: Interactions, catalog_size: int, window: int) -> sp.csr_array:
    """(N, N) symmetric counts of two different items within `window` steps of one user."""
    user, position = interactions.user, interactions.position
    counts = sp.csr_array((catalog_size, catalog_size), dtype=np.float64)
    for steps in range(1, min(window, len(user) - 1) + 1):
        near = (user[steps:] == user[:-steps]) & (position[steps:] != position[:-steps])
        pairs = (position[:-steps][near], position[steps:][near])
        once = sp.coo_array((np.ones(len(pairs[0])), pairs), shape=counts.shape).tocsr()
        counts = counts + once
    return (counts + counts.T).tocsr()


def _positive_information(counts: sp.csr_array) -> sp.csr_array:
    """log of how much more often two items are together than by chance, where that is positive."""
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    totals = counts.sum(axis=1)
    by_chance = totals[rows] * totals[counts.indices] / totals.sum()
    information = counts.copy()
    information.data = np.maximum(np.log(counts.data / by_chance), 0.0)
    information.eliminate_zeros()
    return information
