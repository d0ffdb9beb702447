"""Titles as vectors without a model: TF-IDF of their words and character n-grams.

Knows nothing of users. Rows are unit vectors, so that a dot product is a cosine.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Vectors = npt.NDArray[np.floating] | sp.csr_array

_WORD, _GENRE = re.compile(r"\w+"), re.compile(r"[\w'&-]+")


def title_vectors(titles: Sequence[str], lengths: tuple[int, ...] = (3, 4)) -> sp.csr_array:
    """(N, D) unit TF-IDF rows of N titles: words and, inside them, n-grams of `lengths`.

    A feature's weight is (1 + log count) * (1 + log((1 + N) / (1 + titles that have it))).
    Columns stand in the order of first appearance, so the same titles give the same bytes.
    """
    return _weighed([_features(title, lengths) for title in titles])


def _weighed(features: Sequence[Iterable[str]]) -> sp.csr_array:
    columns: dict[str, int] = {}
    entries = [
        (row, columns.setdefault(feature, len(columns)), count)
        for row, of_row in enumerate(features)
        for feature, count in Counter(of_row).items()
    ]
    rows, cols, counts = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    having = np.bincount(cols, minlength=len(columns))
    rarity = 1.0 + np.log((1 + len(features)) / (1 + having))
    values = (1.0 + np.log(counts)) * rarity[cols]
    shape = (len(features), len(columns))
    return unit_rows(sp.coo_array((values, (rows, cols)), shape=shape).tocsr())


def genre_vectors(genres: Sequence[str]) -> sp.csr_array:
    """(N, D) unit TF-IDF rows of what is said of N items, such as "Comedy|Sci-Fi"; see above."""
    return _weighed([_GENRE.findall(text.casefold()) for text in genres])


def side_by_side(titles: sp.csr_array, genres: sp.csr_array, share: float) -> sp.csr_array:
    """(N, D) rows whose dot product is `share` times that of genres plus the rest of titles'."""
    both = [titles * np.sqrt(1.0 - share), genres * np.sqrt(share)]
    return sp.csr_array(sp.hstack(both, format="csr"))


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
