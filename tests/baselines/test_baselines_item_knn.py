"""Item-kNN against a naive loop, and its promises."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines import item_knn
from llmrec.baselines.item_knn import ItemKNN, neighbourhood
from llmrec.baselines.ranking import chunks
from llmrec.data.records import Interactions


def sequences(*users: list[int]) -> Interactions:
    user = np.repeat(np.arange(len(users)), [len(u) for u in users]).astype(np.int32)
    position = np.array([p for u in users for p in u], np.int32)
    rows = np.arange(len(position))
    return Interactions(user, position, rows, rows, np.arange(len(users)).astype(object))


def naive_similarity(users: list[list[int]], size: int, keep: int, shrinkage: float) -> np.ndarray:
    chosen_by = [{u for u, items in enumerate(users) if i in items} for i in range(size)]
    result = np.zeros((size, size))
    for i in range(size):
        scored = []
        for j in range(size):
            together = len(chosen_by[i] & chosen_by[j])
            if i != j and together:
                norm = math.sqrt(len(chosen_by[i]) * len(chosen_by[j]))
                scored.append((-together / (norm + shrinkage), j))
        for value, j in sorted(scored)[:keep]:
            result[i, j] = -value
    return result


logs = st.lists(st.lists(st.integers(0, 6), max_size=7), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(logs, st.integers(1, 5), st.sampled_from([0.0, 2.5]))
def test_neighbourhood_equals_a_naive_loop(users, keep, shrinkage):
    found = neighbourhood(sequences(*users), 8, keep, shrinkage).toarray()
    expected = naive_similarity(users, 8, keep, shrinkage)
    # Nearly equal similarities may be cut either way by rounding; compare the values kept.
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(expected, axis=1), atol=1e-12)
    everything = neighbourhood(sequences(*users), 8, 8, shrinkage).toarray()
    np.testing.assert_allclose(everything, naive_similarity(users, 8, 8, shrinkage), atol=1e-12)


def test_exact_ties_keep_the_lower_position():
    found = neighbourhood(sequences([0, 1, 2, 3]), 4, 2, 0.0).toarray()
    np.testing.assert_allclose(found, [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]])


def test_blocks_of_items_do_not_matter(monkeypatch):
    train = sequences([0, 1, 2], [2, 3], [1, 3, 4], [0, 4])
    whole = neighbourhood(train, 5, 2, 1.0).toarray()
    monkeypatch.setattr(item_knn, "chunks", lambda n, width: chunks(n, width, cells=10))
    np.testing.assert_array_equal(neighbourhood(train, 5, 2, 1.0).toarray(), whole)


def test_probabilities_by_hand():
    # together: (0,1) twice, (0,2) once, (1,2) once; users: 2, 2, 1, 0
    fitted = ItemKNN(
        neighbours=5, shrinkage=0.0, last=1, history_decay=1.0, sharpness=2.0, share=0.25
    ).fit(sequences([0, 1, 2], [0, 1]), 4)
    near = np.array([0, 1.0, 1 / math.sqrt(2), 0]) ** 2  # from item 0
    popularity = np.array([3, 3, 2, 1]) / 9
    expected = 0.75 * near / near.sum() + 0.25 * popularity
    unfiltered = fitted.probabilities([np.array([1, 0], np.int32)], False)
    np.testing.assert_allclose(unfiltered, [expected])
    expected[:2] = 0
    filtered = fitted.probabilities([np.array([1, 0], np.int32)])
    np.testing.assert_allclose(filtered, [expected / expected.sum()])
    nothing_near = fitted.probabilities([np.array([3], np.int32), np.zeros(0, np.int32)], False)
    np.testing.assert_allclose(nothing_near, [popularity, popularity])


@settings(max_examples=40, deadline=None)
@given(logs, st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=4))
def test_rows_are_distributions(users, raw):
    histories = [np.array(h, np.int32) for h in raw]
    p = ItemKNN().fit(sequences(*users), 8).probabilities(histories)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    for row, history in zip(p, histories, strict=True):
        assert (row[history] == 0).all()
        assert (np.delete(row, history) > 0).all()


def test_no_popularity_at_all_is_refused():
    with pytest.raises(ValueError, match="share"):
        ItemKNN(share=0.0).fit(sequences([0, 1]), 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=7), min_size=1, max_size=5),
    st.sampled_from([(1, 0.0, 1.0), (2, 2.5, 1.5), (9, 1.0, 1.0)]),
    st.data(),
)
def test_weights_before_an_item_are_those_of_a_log_that_ended_there(users, shape, data):
    """Against fitting anew without the rows; popularity alone is that of the whole log."""
    keep, shrinkage, sharpness = shape
    model = ItemKNN(keep, shrinkage, last=3, history_decay=0.7, sharpness=sharpness)
    fitted = model.fit(sequences(*users), 8)
    user = data.draw(st.integers(0, len(users) - 1))
    end = data.draw(st.integers(0, len(users[user]) - 1))
    shorter = sequences(*(u[:end] if n == user else u for n, u in enumerate(users)))
    similarity = neighbourhood(shorter, 8, keep, shrinkage)
    anew = model.from_neighbours(similarity, fitted.popularity, fitted.chosen)
    whole = np.array(users[user], np.int32)
    found = fitted.weights_before([whole], [end])
    np.testing.assert_allclose(found, anew.weights([whole[:end]]), atol=1e-12)
