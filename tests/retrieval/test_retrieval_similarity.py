"""The six measures against plain loops, and what holds for all of them."""

from itertools import pairwise

import numpy as np
import pytest

from llmrec.retrieval import similarity
from llmrec.retrieval.similarity import MEASURES, measured
from llmrec.retrieval.vectors import unit

ITEMS, LENGTH = 7, 6


def padded(*histories: list[int], length: int = LENGTH) -> np.ndarray:
    return np.array([[-1] * (length - len(h)) + list(h) for h in histories], np.int32)


def vectors_of(rng: np.random.Generator, dimensions: int = 4) -> np.ndarray:
    vectors = unit(rng.standard_normal((ITEMS, dimensions)))
    vectors[0] = 0.0  # an item nothing is known of
    return vectors


def cosine(a: list[int], b: list[int], vectors: np.ndarray) -> float:
    left, right = vectors[a].sum(axis=0), vectors[b].sum(axis=0)
    norm = np.linalg.norm(left) * np.linalg.norm(right)
    return max(0.0, float(left @ right / norm)) if norm > 1e-6 else 0.0


def jaccard(a: list[int], b: list[int]) -> float:
    return len(set(a) & set(b)) / len(set(a) | set(b))


def longest_common(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common(a[:-1], b[:-1])
    return max(longest_common(a[:-1], b), longest_common(a, b[:-1]))


def recency_weights(history: list[int]) -> dict[int, float]:
    weights = {}
    for steps, item in enumerate(reversed(history)):
        weights.setdefault(item, 1 / (1 + steps))
    return weights


def recency(a: list[int], b: list[int]) -> float:
    left, right = recency_weights(a), recency_weights(b)
    together = sum(left[i] * right[i] for i in left.keys() & right.keys())
    return together / np.sqrt(
        sum(w * w for w in left.values()) * sum(w * w for w in right.values())
    )


def transition(a: list[int], b: list[int]) -> float:
    left, right = set(pairwise(a)), set(pairwise(b))
    return len(left & right) / min(len(left), len(right)) if left and right else 0.0


def warping(a: list[int], b: list[int], vectors: np.ndarray) -> float:
    def cost(i: int, j: int) -> float:
        return 0.0 if a[i] == b[j] else (1 - float(vectors[a[i]] @ vectors[b[j]])) / 2

    table = {}
    for i in range(len(a)):
        for j in range(len(b)):
            ways = [table[w] for w in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if w in table]
            table[i, j] = cost(i, j) + (min(ways) if ways else 0.0)
    return 1 - table[len(a) - 1, len(b) - 1] / (len(a) + len(b))


def oracle(a: list[int], b: list[int], vectors: np.ndarray) -> list[float]:
    if not a or not b:
        return [0.0] * len(MEASURES)
    lcs = longest_common(a, b) / min(len(a), len(b))
    return [
        cosine(a, b, vectors),
        jaccard(a, b),
        lcs,
        recency(a, b),
        transition(a, b),
        warping(a, b, vectors),
    ]


def test_every_measure_equals_a_loop():
    rng = np.random.default_rng(1)
    vectors = vectors_of(rng)

    def drawn(count: int) -> list[list[int]]:
        return [rng.integers(0, ITEMS, rng.integers(0, LENGTH + 1)).tolist() for _ in range(count)]

    queries, windows = drawn(40), [drawn(25) for _ in range(40)]
    queries[0], windows[1][0] = [], []
    found = measured(padded(*queries), np.stack([padded(*w) for w in windows]), vectors)
    expected = [
        [oracle(q, w, vectors) for w in row] for q, row in zip(queries, windows, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (found > 0).any(axis=(0, 1)).all()


def test_values_by_hand():
    vectors = unit(np.array([[1, 0], [0, 1], [-1, 0], [1, 0]], np.float64))
    # 0 0 1 against 0 1 2: a path over (0,0) (0,0) (1,1) (1,2) costs the last, (1 - 0) / 2
    found = measured(padded([0, 0, 1]), padded([0, 1, 2])[None], vectors)[0, 0]
    weights = (1 / 2) * (1 / 3) + 1 * (1 / 2)
    norm = np.sqrt((1 + 1 / 4) * (1 + 1 / 4 + 1 / 9))
    np.testing.assert_allclose(
        found, [1 / np.sqrt(5), 2 / 3, 2 / 3, weights / norm, 1 / 2, 1 - 0.5 / 6], rtol=1e-6
    )
    # another item with the same vector is as good for cosine and dtw, and for nothing else
    same = measured(padded([0]), padded([3])[None], vectors)[0, 0]
    np.testing.assert_allclose(same, [1, 0, 0, 0, 0, 1], atol=1e-6)


def test_a_window_is_like_itself_and_measures_are_symmetric():
    rng = np.random.default_rng(2)
    vectors = vectors_of(rng)[1:]
    windows = padded(*[rng.integers(0, ITEMS - 1, rng.integers(2, 7)).tolist() for _ in range(50)])
    itself = measured(windows, windows[:, None], vectors)[:, 0]
    np.testing.assert_allclose(itself, 1, atol=1e-6)
    others = np.roll(windows, 1, axis=0)
    np.testing.assert_allclose(
        measured(windows, others[:, None], vectors),
        measured(others, windows[:, None], vectors),
        atol=1e-6,
    )


def test_batches_of_queries_change_no_bit():
    rng = np.random.default_rng(3)
    vectors = unit(rng.standard_normal((300, 48)))
    queries = rng.integers(-1, 300, (30, 10)).astype(np.int32)
    queries.sort(axis=1)  # padding on the left
    windows = np.sort(rng.integers(-1, 300, (30, 200, 10)).astype(np.int32), axis=2)
    whole = measured(queries, windows, vectors)
    for row in range(30):
        alone = measured(queries[row : row + 1], windows[row : row + 1], vectors)
        np.testing.assert_array_equal(alone[0], whole[row])


def test_blocks_of_candidates_do_not_matter(monkeypatch):
    rng = np.random.default_rng(4)
    vectors = vectors_of(rng)
    queries = padded(*[rng.integers(0, ITEMS, 5).tolist() for _ in range(9)])
    windows = np.stack([padded(*rng.integers(0, ITEMS, (11, 4)).tolist()) for _ in range(9)])
    whole = measured(queries, windows, vectors)
    for pairs, gathered in ((4, 2**22), (50, 2**22), (4096, 1)):
        monkeypatch.setattr(similarity, "PAIRS", pairs)
        monkeypatch.setattr(similarity, "GATHERED", gathered)
        np.testing.assert_allclose(measured(queries, windows, vectors), whole, atol=1e-6)


def test_nothing_to_compare():
    vectors = vectors_of(np.random.default_rng(5))
    empty = np.zeros((0, LENGTH), np.int32)
    assert measured(empty, np.zeros((0, 3, LENGTH), np.int32), vectors).shape == (0, 3, 6)
    assert measured(padded([1]), np.zeros((1, 0, LENGTH), np.int32), vectors).shape == (1, 0, 6)
    with pytest.raises(ValueError, match=r"\(Q, L\)"):
        measured(padded([1]), padded([1]), vectors)
    with pytest.raises(ValueError, match="above 6"):
        measured(padded([1]), padded([ITEMS])[None], vectors)
