"""Grounding by states equals sorting all distances, whatever the chunk, and obeys what is open."""

import numpy as np
import pytest

from llmrec.decoding.nearest import nearest, target_ranks

NOTHING = np.zeros(0, np.int32)
LINE = np.array([[1.0], [2.0], [3.0]], np.float32)  # distances 1, 2, 3 from 0
ORIGIN = np.zeros((1, 1), np.float32)


def by_sorting(states, table, closed, fusion, gamma):
    """For each user the open positions, nearest first, and their values, one distance at a time."""
    orders = []
    for u, state in enumerate(states.astype(np.float64)):
        left = [i for i in range(len(table)) if i not in set(closed[u].tolist())]
        d = np.array([np.sqrt(((row - state) ** 2).sum()) for row in table[left].astype(float)])
        if gamma and left:
            c = fusion[u][left]
            c = (c - c.min()) / (c.max() - c.min()) if c.max() > c.min() else c * 0
            d = (d - d.min()) / (d.max() - d.min()) if d.max() > d.min() else d * 0
            d = (1 + c) ** -gamma * d
        order = np.argsort(d, kind="stable")
        orders.append(([left[i] for i in order], d[order]))
    return orders


@pytest.fixture
def case():
    """Items on a coarse grid, so that many distances tie exactly; some closed, one user all."""
    rng = np.random.default_rng(3)
    table = rng.integers(-2, 3, (40, 3)).astype(np.float32)
    states = rng.integers(-2, 3, (9, 3)).astype(np.float32)
    states[0] = table[11]
    closed = [rng.permutation(40)[: rng.integers(0, 12)].astype(np.int32) for _ in range(8)]
    return states, table, [*closed, np.arange(40)], rng.integers(0, 4, (9, 40)).astype(np.float64)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_equals_sorting_all_distances(case, gamma, chunk):
    states, table, closed, fusion = case
    expected = by_sorting(states, table, closed, fusion, gamma)
    for top_k in (1, 7, 100):
        found = nearest(states, table, closed, top_k, fusion, gamma, chunk)
        for ranking, (order, values) in zip(found, expected, strict=True):
            assert ranking.positions.tolist() == order[:top_k]
            np.testing.assert_allclose(ranking.scores, -values[:top_k], rtol=1e-6)
            assert ranking.positions.dtype == np.int32
            assert ranking.scores.dtype == np.float32
    for target in range(len(table)):
        ranks = target_ranks(states, table, [target] * 9, closed, fusion, gamma, chunk)
        assert ranks.tolist() == [
            order.index(target) if target in order else len(table) for order, _ in expected
        ]


@pytest.mark.parametrize("chunk", [1, 3, 64, 1000])
def test_neither_users_nor_chunks_change_a_bit(chunk):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 577)).astype(np.float32)
    states = (table[:5] + 1e-6 * rng.normal(size=(5, 577))).astype(np.float32)
    together = nearest(states, table, [NOTHING] * 5, 200, chunk=chunk)
    for u in range(5):
        [alone] = nearest(states[u : u + 1], table, [NOTHING], 200, chunk=64)
        assert np.array_equal(alone.positions, together[u].positions)
        assert np.array_equal(alone.scores, together[u].scores)


def test_users_in_several_groups_are_ranked_as_in_one(case, monkeypatch):
    states, table, closed, fusion = case
    whole = target_ranks(states, table, np.arange(9), closed, fusion, 1.0)
    monkeypatch.setattr("llmrec.decoding.nearest.HELD", 2 * len(table) + 1)
    assert np.array_equal(target_ranks(states, table, np.arange(9), closed, fusion, 1.0), whole)


def test_a_title_written_exactly_is_at_distance_0_far_from_the_origin():
    table = (1e4 + np.random.default_rng(1).normal(size=(30, 64))).astype(np.float32)
    ranked = nearest(table, table, [NOTHING] * 30, 2)
    assert [r.positions[0] for r in ranked] == list(range(30))
    assert all(r.scores[0] == 0.0 and r.scores[1] < 0.0 for r in ranked)
    assert target_ranks(table, table, range(30), [NOTHING] * 30).tolist() == [0] * 30


def test_equal_titles_are_ranked_by_position():
    table = LINE[[1, 0, 1, 0]]
    [ranking] = nearest(ORIGIN, table, [NOTHING], 3)
    assert ranking.positions.tolist() == [1, 3, 0]
    ranks = [target_ranks(ORIGIN, table, [t], [NOTHING]).tolist() for t in range(4)]
    assert ranks == [[2], [0], [3], [1]]


@pytest.mark.parametrize(
    ("gamma", "order", "values"),
    [
        (0.0, [0, 1, 2], [1.0, 2.0, 3.0]),  # the distances as they are
        (0.5, [0, 1, 2], [0.0, 1 / 2, 2**-0.5]),
        (1.0, [0, 1, 2], [0.0, 1 / 2, 1 / 2]),  # a tie, by position
        (2.0, [0, 2, 1], [0.0, 1 / 4, 1 / 2]),
        (50.0, [0, 2, 1], [0.0, 2.0**-50, 1 / 2]),  # what is nearest stays first
    ],
)
def test_fusion_by_hand(gamma, order, values):
    scores = np.array([[10.0, 10.0, 30.0]])  # normalised 0, 0, 1; distances 0, 1/2, 1
    [ranking] = nearest(ORIGIN, LINE, [NOTHING], 3, scores, gamma)
    assert ranking.positions.tolist() == order
    np.testing.assert_allclose(-ranking.scores, values, rtol=1e-6)
    ranks = [target_ranks(ORIGIN, LINE, [t], [NOTHING], scores, gamma)[0] for t in order]
    assert ranks == [0, 1, 2]


def test_closed_items_do_not_move_the_others_under_fusion():
    table = np.array([[1.0], [2.0], [3.0], [1000.0]], np.float32)
    scores = np.array([[10.0, 10.0, 30.0, -np.inf]])
    [ranking] = nearest(ORIGIN, table, [np.array([3])], 4, scores, 2.0)
    assert ranking.positions.tolist() == [0, 2, 1]
    np.testing.assert_allclose(-ranking.scores, [0.0, 1 / 4, 1 / 2], rtol=1e-6)
    with pytest.raises(ValueError, match="user 0: fusion scores"):
        nearest(ORIGIN, table, [NOTHING], 4, scores, 2.0)


def test_equal_scores_leave_the_order_and_equal_distances_are_ties():
    [ranking] = nearest(ORIGIN, LINE, [NOTHING], 3, np.full((1, 3), 7.0), 2.0)
    assert ranking.positions.tolist() == [0, 1, 2]
    [ranking] = nearest(ORIGIN, LINE[[1, 1, 1]], [NOTHING], 3, np.array([[1.0, 2.0, 3.0]]), 2.0)
    assert ranking.positions.tolist() == [0, 1, 2]
    assert ranking.scores.tolist() == [0.0, 0.0, 0.0]


def test_the_table_may_lie_in_a_file(tmp_path, case):
    states, table, closed, _ = case
    np.save(tmp_path / "states.npy", table)
    stored = np.load(tmp_path / "states.npy", mmap_mode="r")
    ours, expected = (target_ranks(states, t, range(9), closed) for t in (stored, table))
    assert np.array_equal(ours, expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="target -1"):
        target_ranks(ORIGIN, LINE, [-1], [NOTHING])
    with pytest.raises(ValueError, match="target 3"):
        target_ranks(ORIGIN, LINE, [3], [NOTHING])
    with pytest.raises(ValueError, match="2 targets for 1 users"):
        target_ranks(ORIGIN, LINE, [0, 1], [NOTHING])
    with pytest.raises(ValueError, match="closed items for every user"):
        nearest(ORIGIN, LINE, [], 1)
    with pytest.raises(ValueError, match="of one width"):
        nearest(np.zeros((1, 2), np.float32), LINE, [NOTHING], 1)
    with pytest.raises(ValueError, match="there are none"):
        nearest(ORIGIN, LINE, [NOTHING], 1, None, 0.5)
    with pytest.raises(ValueError, match=r"must be \(1, 3\)"):
        nearest(ORIGIN, LINE, [NOTHING], 1, np.zeros((3, 1)), 0.5)
    with pytest.raises(ValueError, match="must be finite"):
        nearest(np.full((1, 1), np.nan, np.float32), LINE, [NOTHING], 1)
