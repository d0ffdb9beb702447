"""Ranking from scores: ties, exclusions, padding, and chunks of users."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines import ranking
from llmrec.baselines.popularity import FittedPopularity
from llmrec.baselines.ranking import chunks, places_among, predict, top_k, top_k_of

INF = np.inf


def test_ties_go_to_the_lower_position():
    positions, scores = top_k(np.array([[1.0, 3.0, 1.0, 3.0, 1.0]]), 4)
    assert positions.tolist() == [[1, 3, 0, 2]]
    assert scores.tolist() == [[3, 3, 1, 1]]
    assert positions.dtype == np.int32
    assert scores.dtype == np.float32


def test_excluded_items_are_not_used_to_fill_up():
    positions, scores = top_k(np.array([[-INF, -2.0, np.nan], [-INF, -INF, -INF]]), 2)
    assert positions.tolist() == [[1, -1], [-1, -1]]
    assert scores.tolist() == [[-2, -INF], [-INF, -INF]]


def test_k_beyond_the_catalog():
    assert top_k(np.array([[0.0, 1.0]]), 4)[0].tolist() == [[1, 0, -1, -1]]


def test_order_is_that_of_the_given_precision():
    # equal in float32, not in float64
    assert top_k(np.array([[1.0, 1.0 + 1e-12]]), 1)[0].tolist() == [[1]]


values = st.sampled_from([-INF, -1.0, 0.0, 0.5, 2.0])


@settings(max_examples=100, deadline=None)
@given(st.lists(values, min_size=1, max_size=12), st.integers(1, 14))
def test_equals_a_plain_sort(row, k):
    order = sorted((-v, i) for i, v in enumerate(row) if v > -INF)[:k]
    expected = [i for _, i in order] + [-1] * (k - len(order))
    assert top_k(np.array([row]), k)[0].tolist() == [expected]


def test_chunks_cover_all_users_once():
    assert [list(range(9))[part] for part in chunks(9, 5, cells=20)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8],
    ]
    assert len(list(chunks(3, 100, cells=10))) == 3
    assert list(chunks(0, 100)) == []


def test_predict_in_chunks_equals_predict_at_once(monkeypatch):
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    histories = [np.array(h, np.int32) for h in ([3], [], [0, 1], [2], [1])]
    targets = np.array([2, 3, 2, 2, 0], np.int32)
    whole = predict(FittedPopularity(shares), histories, targets, 4, 2)
    monkeypatch.setattr(ranking, "chunks", lambda users, n: chunks(users, n, cells=8))
    parts = predict(FittedPopularity(shares), histories, targets, 4, 2)
    for name in ("positions", "scores", "nll"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    np.testing.assert_array_equal(whole.positions[0], [2, 1])
    np.testing.assert_allclose(whole.nll[:3], -np.log([0.3 / 0.6, 0.4, 0.3 / 0.7]))
    assert whole.nll[3] == INF  # the target was already seen


def test_a_scorer_without_probabilities_has_no_likelihood():
    class Flat:
        def scores(self, histories, filter_seen=True):
            return np.zeros((len(histories), 3))

    result = predict(Flat(), [np.zeros(0, np.int32)], np.array([1], np.int32), 3, 2)
    assert result.positions.tolist() == [[0, 1]]
    assert np.isnan(result.nll).all()


def test_only_the_candidates_are_ranked_and_share_the_probability():
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    histories = [np.array(h, np.int32) for h in ([3], [], [0, 1], [2])]
    candidates = np.array([[2, 0, 1], [3, 1, 0], [1, 3, 0], [3, 2, 1]], np.int32)
    targets = np.array([0, 3, 3, 2], np.int32)
    found = predict(FittedPopularity(shares), histories, targets, 4, 2, candidates=candidates)
    assert found.positions.tolist() == [[2, 1], [3, 1], [3, 0], [3, 1]]
    np.testing.assert_allclose(found.nll[:3], -np.log([0.1 / 0.6, 0.4 / 0.7, 1.0]), atol=1e-12)
    assert found.nll[3] == INF  # already seen
    np.testing.assert_allclose(found.scores[0], np.log([0.3 / 0.6, 0.2 / 0.6]), rtol=1e-6)
    without = predict(FittedPopularity(shares), histories, None, 4, 2, candidates=candidates)
    np.testing.assert_array_equal(without.positions, found.positions)
    assert np.isnan(without.nll).all()


def test_candidates_that_cannot_be_recommended_come_last_and_are_listed():
    candidates = np.array([[5, 3, 9, 1, 4]], np.int32)
    scores = np.array([[-INF, -2.0, np.nan, -INF, -1.0]])
    positions, best = top_k_of(candidates, scores, 5)
    assert positions.tolist() == [[4, 3, 1, 5, 9]]
    assert best.tolist() == [[-1, -2, -INF, -INF, -INF]]
    positions, best = top_k_of(candidates, scores, 7)
    assert positions.tolist() == [[4, 3, 1, 5, 9, -1, -1]]
    assert best.tolist()[0][5:] == [-INF, -INF]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), values), min_size=1, unique_by=lambda x: x[0]),
    st.integers(1, 22),
)
def test_candidates_equal_a_plain_sort(pairs, k):
    order = [position for _, position in sorted((-v, p) for p, v in pairs)]
    positions, scores = top_k_of(
        np.array([[p for p, _ in pairs]], np.int32), np.array([[v for _, v in pairs]]), k
    )
    assert positions.tolist() == [(order + [-1] * k)[:k]]
    assert positions.dtype == np.int32
    assert scores.dtype == np.float32


def test_candidates_in_chunks_equal_candidates_at_once(monkeypatch):
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.ones(12))
    histories = [rng.integers(0, 12, 2).astype(np.int32) for _ in range(7)]
    candidates = np.stack([rng.permutation(12)[:5] for _ in histories]).astype(np.int32)
    whole = predict(
        FittedPopularity(shares), histories, candidates[:, 2], 12, 4, candidates=candidates
    )
    monkeypatch.setattr(ranking, "chunks", lambda users, n: chunks(users, n, cells=30))
    parts = predict(
        FittedPopularity(shares), histories, candidates[:, 2], 12, 4, candidates=candidates
    )
    for name in ("positions", "scores", "nll"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


class _Fixed:
    """Scores that are given; seen items cannot be recommended."""

    def __init__(self, values):
        self.values = values

    def scores(self, histories, filter_seen=True):
        found = np.array([self.values[int(h[0])] for h in histories], float)
        if filter_seen:
            for row, history in enumerate(histories):
                found[row, history] = -np.inf
        return found


@pytest.mark.parametrize("filter_seen", [True, False])
def test_places_among_some_items_equal_a_loop(filter_seen):
    rng = np.random.default_rng(0)
    users, items = 40, 9
    values = rng.integers(0, 3, size=(users, items))  # ties
    histories = [
        np.array([u % items, *rng.integers(items, size=2)], np.int32) for u in range(users)
    ]
    targets = rng.integers(items, size=users).astype(np.int32)
    among = np.array([1, 2, 5, 6, 8], np.int32)
    found = np.array(
        [
            places_among(_Fixed(values), histories, targets, items, among, filter_seen, seed)
            for seed in range(60)
        ]
    )
    kinds = set()
    for user, history in enumerate(histories):
        scores = {i: values[int(history[0])][i] for i in among.tolist()}
        target, mine = int(targets[user]), found[:, user]
        if target not in scores:
            assert np.isnan(mine).all()
            kinds.add("other")
        elif filter_seen and target in history:
            assert np.isinf(mine).all()
            kinds.add("seen")
        else:
            left = [i for i in scores if not (filter_seen and i in history) and i != target]
            better = sum(scores[i] > scores[target] for i in left)
            equal = sum(scores[i] == scores[target] for i in left)
            assert set(mine) == set(range(better, better + equal + 1))  # each of them is drawn
            kinds.add("placed")
    assert kinds == {"other", "placed"} | ({"seen"} if filter_seen else set())


def test_who_cannot_tell_items_apart_gets_what_chance_gives():
    users, items = 200, 400
    histories = [np.zeros(1, np.int32)] * users
    targets = np.random.default_rng(1).integers(items, size=users).astype(np.int32)
    given = (np.zeros((1, items)), histories, targets, items, np.arange(items))
    for seed in range(5):
        places = places_among(_Fixed(given[0]), *given[1:], filter_seen=False, seed=seed)
        for k in (10, 50, 200):
            assert (places < k).mean() == pytest.approx(k / items, abs=1.01 / users)
