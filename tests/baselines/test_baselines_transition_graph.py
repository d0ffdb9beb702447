"""The transition-graph heuristic against a plain loop, and titles as vectors."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines.title_vectors import title_vectors, unit_rows
from llmrec.baselines.transition_graph import TransitionGraph
from llmrec.data.records import Interactions

SIZE = 24
# Of full rank and in general position, so that no two cosines tie.
VECTORS = np.random.default_rng(3).normal(size=(SIZE, 5))


def sequences(users: list[list[int]]) -> Interactions:
    user = np.repeat(np.arange(len(users)), [len(u) for u in users]).astype(np.int32)
    position = np.array([p for u in users for p in u], np.int32)
    rows = np.arange(len(position))
    return Interactions(user, position, rows, rows, np.arange(len(users)).astype(object))


def naive_ring(users, item, hops):
    """Positions at exactly `hops` hops, best first."""
    count = {}
    for u in users:
        for a, b in itertools.pairwise(u):
            count[a, b] = count.get((a, b), 0) + 1
    distance = {item: 0}
    frontier = [item]
    for hop in range(1, hops + 1):
        reached = {b for a in frontier for (x, b) in count if x == a} - set(distance)
        distance |= dict.fromkeys(reached, hop)
        frontier = sorted(reached)
    scored = []
    for b in frontier:
        a_vector, b_vector = VECTORS[item], VECTORS[b]
        score = a_vector @ b_vector / math.sqrt((a_vector @ a_vector) * (b_vector @ b_vector))
        if hops == 1:
            most = max(math.log1p(n) for (x, y), n in count.items() if x == item and y != item)
            score += 0.5 * math.log1p(count[item, b]) / most
        scored.append((-score, b))
    return [b for _, b in sorted(scored)]


def naive_ranking(users, history, variant, filter_seen):
    seen = set(history) if filter_seen else set()
    flat = [p for u in users for p in u]
    popular = sorted(set(range(SIZE)) - seen, key=lambda i: (-flat.count(i), i))
    wanted = {
        1: [(1, 1, 7), (1, 2, 2), (1, 3, 1)],
        2: [(1, 1, 5), (1, 2, 1), (2, 1, 3), (2, 2, 1)],
    }[variant]
    rings = [
        naive_ring(users, history[-back], hops) if len(history) >= back else []
        for back, hops, _ in wanted
    ]
    result = []
    while len(result) < SIZE - len(seen):
        short = 0
        for ring, (_, _, budget) in zip([*rings, popular], [*wanted, (0, 0, 0)], strict=True):
            left = [i for i in ring if i not in seen and i not in result]
            short += budget
            result += left[:short]
            short -= len(left[:short])
    return result


logs = st.lists(st.lists(st.integers(0, SIZE - 1), max_size=12), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(logs, st.lists(st.integers(0, SIZE - 1), max_size=4), st.sampled_from([1, 2]), st.booleans())
def test_equals_a_naive_loop(users, history, variant, filter_seen):
    fitted = TransitionGraph(variant).fit(sequences(users), SIZE, VECTORS)
    scores = fitted.scores([np.array(history, np.int32)], filter_seen)[0]
    order = np.argsort(-scores, kind="stable")
    ranking = [int(i) for i in order if scores[i] > -np.inf]
    assert ranking == naive_ranking(users, history, variant, filter_seen)


@pytest.mark.parametrize(("advantage", "first"), [(0.24, 1), (0.26, 2)])
def test_counts_are_worth_half_a_cosine_at_most(advantage, first):
    # 0 -> 1 three times, 0 -> 2 once: log1p(3) / log1p(3) = 1 and log1p(1) / log1p(3) = 1/2,
    # so item 1 is a quarter ahead before the cosines are added.
    cosine = np.array([1.0, 0.5, 0.5 + advantage])
    vectors = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1)
    fitted = TransitionGraph().fit(sequences([[0, 1], [0, 1], [0, 1], [0, 2]]), 3, vectors)
    assert fitted.scores([np.array([0], np.int32)])[0].argmax() == first


def test_budgets_shortages_and_the_next_list_of_ten():
    # Out of 0: eight items, each once, so cosine alone orders them; each of those leads to 9.
    users = [[0, i, 9] for i in range(1, 9)]
    flat = np.ones((12, 1))  # all cosines equal: ties go by position
    fitted = TransitionGraph(1, depth=12).fit(sequences(users), 12, flat)
    scores = fitted.scores([np.array([0], np.int32)])[0]
    ranking = np.argsort(-scores, kind="stable")[:11].tolist()
    # 7 of the first ring; of the second 2, but it has 9 alone; the third has none, so popularity
    # fills 2 (8, seen once, before 10); then the next list: nothing is left in any ring.
    assert ranking == [1, 2, 3, 4, 5, 6, 7, 9, 8, 10, 11]
    assert scores[0] == -np.inf


def test_after_depth_comes_popularity():
    users = [[0, 3], [0, 2], [1], [1], [1], [4], [4]]
    flat = np.ones((5, 1))
    fitted = TransitionGraph(1, depth=1).fit(sequences(users), 5, flat)
    scores = fitted.scores([np.array([0], np.int32)])[0]
    assert np.argsort(-scores, kind="stable")[:4].tolist() == [2, 1, 4, 3]


def test_no_history_is_popularity():
    fitted = TransitionGraph().fit(sequences([[2, 1], [2]]), 3, np.ones((3, 1)))
    assert np.argsort(-fitted.scores([np.zeros(0, np.int32)])[0]).tolist() == [2, 1, 0]


def test_sparse_and_dense_vectors_agree():
    titles = ["Toy Story", "Toy Soldiers", "Heat", "Story of Us", "Alien", "Aliens"]
    users = [[0, 1, 2, 3], [3, 0, 4, 5], [1, 5, 2]]
    sparse = title_vectors(titles)
    histories = [np.array(h, np.int32) for h in ([0], [3, 1], [5])]
    one = TransitionGraph().fit(sequences(users), 6, sparse).scores(histories)
    two = TransitionGraph().fit(sequences(users), 6, sparse.toarray()).scores(histories)
    np.testing.assert_array_equal(one, two)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="variant 3"):
        TransitionGraph(3).fit(sequences([[0]]), 1, np.ones((1, 1)))
    with pytest.raises(ValueError, match="1 of 2 texts"):
        TransitionGraph().fit(sequences([[0]]), 2, np.ones((1, 1)))


def test_title_vectors_by_hand():
    vectors = title_vectors(["A B", "a"], lengths=())
    # b: log(3/2) + 1; a: log(3/3) + 1 = 1
    b = 1 + math.log(1.5)
    norm = math.hypot(1, b)
    np.testing.assert_allclose(vectors.toarray(), [[1 / norm, b / norm], [1, 0]])


def test_titles_alike_are_near():
    vectors = title_vectors(["Star Wars", "Star Trek", "Heat", "Wars of Stars", "", "..."])
    cosine = (vectors @ vectors.T).toarray()
    assert cosine[0, 1] > cosine[0, 2]
    assert cosine[0, 3] > cosine[0, 2]
    np.testing.assert_allclose(np.diag(cosine), [1, 1, 1, 1, 0, 0])
    assert title_vectors([]).shape[0] == 0


def test_unit_rows_leaves_zeros():
    np.testing.assert_allclose(unit_rows(np.array([[3.0, 4.0], [0, 0]])), [[0.6, 0.8], [0, 0]])


def test_items_that_nobody_chose_share_the_last_place():
    fitted = TransitionGraph(depth=3).fit(sequences([[0, 1, 2], [2, 1, 5]]), SIZE, VECTORS)
    [scores] = fitted.scores([np.array([0], np.int32)])
    never = [item for item in range(SIZE) if item not in (0, 1, 2, 5)]
    assert len(set(scores[never])) == 1
    assert scores[never[0]] < min(scores[[1, 2, 5]])
