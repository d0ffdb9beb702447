"""Vectors of items against a dense computation, of windows against a loop."""

import numpy as np
import pytest

from llmrec.data.records import Interactions
from llmrec.retrieval.vectors import cooccurrence_factors, unit, window_vectors


def log_of(*users: list[int]) -> Interactions:
    user = np.repeat(np.arange(len(users)), [len(u) for u in users]).astype(np.int32)
    position = np.array([p for u in users for p in u], np.int32)
    rows = np.arange(len(user))
    return Interactions(user, position, rows, rows, np.arange(len(users)).astype(object))


def information(users: list[list[int]], size: int, window: int) -> np.ndarray:
    counts = np.zeros((size, size))
    for items in users:
        for i in range(len(items)):
            for j in range(i + 1, min(i + window, len(items) - 1) + 1):
                if items[i] != items[j]:
                    counts[items[i], items[j]] += 1
                    counts[items[j], items[i]] += 1
    totals, found = counts.sum(axis=1), np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            if counts[i, j]:
                by_chance = totals[i] * totals[j] / counts.sum()
                found[i, j] = max(0.0, np.log(counts[i, j] / by_chance))
    return found


def test_factors_equal_a_dense_decomposition():
    rng = np.random.default_rng(0)
    users = [rng.integers(0, 14, rng.integers(0, 9)).tolist() for _ in range(25)]  # 14 is unseen
    for window in (1, 3):
        found = cooccurrence_factors(log_of(*users), 15, 6, window)
        left, strength, _ = np.linalg.svd(information(users, 15, window))
        factors = unit(left[:, :6] * np.sqrt(strength[:6]))
        assert found.shape == (15, 6)
        # Products do not depend on the signs; gaps between these singular values are wide.
        np.testing.assert_allclose(found @ found.T, factors @ factors.T, atol=1e-4)
        assert (found[14] == 0).all()
        np.testing.assert_allclose(np.linalg.norm(found[:14], axis=1), 1, atol=1e-6)


def test_the_same_log_gives_the_same_bytes_and_tastes_lie_apart():
    rng = np.random.default_rng(1)
    users = [(rng.integers(0, 10, 12) + 10 * (u % 2)).tolist() for u in range(40)]
    first = cooccurrence_factors(log_of(*users), 20, 8)
    assert first.tobytes() == cooccurrence_factors(log_of(*users), 20, 8).tobytes()
    products = first @ first.T
    assert products[:10, :10].mean() > products[:10, 10:].mean() + 0.2


def test_small_catalogs_and_logs_without_pairs():
    assert cooccurrence_factors(log_of([0, 1, 0]), 2).shape == (2, 1)
    assert cooccurrence_factors(log_of([0, 0], [0]), 1).tolist() == [[0.0]]
    assert (cooccurrence_factors(log_of([0], [1]), 9, 4) == np.zeros((9, 4))).all()
    assert (cooccurrence_factors(log_of([]), 9, 4) == 0).all()
    with pytest.raises(ValueError, match="at least 1"):
        cooccurrence_factors(log_of([0, 1]), 2, 0)


def test_a_lower_rank_leaves_zero_columns():
    found = cooccurrence_factors(log_of([0, 1], [2, 3]), 12, 8)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found[:4], axis=1), 1, atol=1e-6)
    assert (found[4:] == 0).all()
    assert (np.abs(found).max(axis=0) > 0).sum() <= 4


def test_window_vectors_equal_a_loop():
    rng = np.random.default_rng(2)
    vectors = 3 * rng.standard_normal((9, 5)).astype(np.float32)
    vectors[4] = 0
    windows = np.sort(rng.integers(-1, 9, (6, 7, 3)).astype(np.int32), axis=2)
    windows[0, 0] = -1
    windows[0, 1] = [-1, -1, 4]
    found = window_vectors(windows, vectors)
    for at in np.ndindex(6, 7):
        mean = sum((unit(vectors[p]) for p in windows[at] if p >= 0), np.zeros(5))
        length = np.linalg.norm(mean)
        np.testing.assert_allclose(found[at], mean / length if length else mean, atol=1e-6)
    np.testing.assert_array_equal(window_vectors(windows, vectors, chunk=4), found)
    assert (found[0, :2] == 0).all()


def test_directions_that_cancel_are_no_direction():
    vectors = unit(np.array([[0.1, 0.7], [-0.1, -0.7]]))
    assert window_vectors(np.array([[0, 1]], np.int32), vectors).tolist() == [[0, 0]]
