"""Titles as vectors without a model: TF-IDF of their words and character n-grams.

Knows nothing of users. Rows are unit vectors, so that a dot product is a cosine.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Vectors = npt.NDArray[np.floating] | sp.csr_array

_WORD = re.compile(r"\w+")


def title_vectors(titles: Sequence[str], lengths: tuple[int, ...] = (3, 4)) -> sp.csr_array:
    """(N, D) unit TF-IDF rows of N titles: words and, inside them, n-grams of `lengths`.

    A feature's weight is (1 + log count) * (1 + log((1 + N) / (1 + titles that have it))).
    Columns stand in the order of first appearance, so the same titles give the same bytes.
    """
    columns: dict[str, int] = {}
    entries = [
        (row, columns.setdefault(feature, len(columns)), count)
        for row, title in enumerate(titles)
        for feature, count in Counter(_features(title, lengths)).items()
    ]
    rows, cols, counts = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    having = np.bincount(cols, minlength=len(columns))
    rarity = 1.0 + np.log((1 + len(titles)) / (1 + having))
    values = (1.0 + np.log(counts)) * rarity[cols]
    shape = (len(titles), len(columns))
    return unit_rows(sp.coo_array((values, (rows, cols)), shape=shape).tocsr())


def unit_rows(vectors: Vectors) -> Vectors:
    """The rows scaled to length 1; rows of zeros stay as they are."""
    if sp.issparse(vectors):
        norm = np.sqrt(vectors.multiply(vectors).sum(axis=1))
        return (sp.diags_array(1.0 / np.where(norm > 0, norm, 1.0)) @ vectors).tocsr()
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1.0)


def _features(title: str, lengths: tuple[int, ...]) -> Iterator[str]:
    """Words as they are; n-grams of each word between its two marks, as in `<toy>`."""
    for word in _WORD.findall(title.casefold()):
        yield word
        marked = f"<{word}>"
        for n in lengths:
            yield from (f"#{marked[i : i + n]}" for i in range(len(marked) - n + 1))
