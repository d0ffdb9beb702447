"""The transition model: counts and probabilities worked by hand, and its promises."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines.distribution import history_weights
from llmrec.baselines.markov import Markov, transitions
from llmrec.data.records import Interactions


def sequences(*users: list[int]) -> Interactions:
    user = np.repeat(np.arange(len(users)), [len(u) for u in users]).astype(np.int32)
    position = np.array([p for u in users for p in u], np.int32)
    rows = np.arange(len(position))
    return Interactions(user, position, rows, rows, np.arange(len(users)).astype(object))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_transitions_stay_within_a_user_and_keep_direction():
    counts = transitions(sequences([0, 1, 2], [0, 1], [2]), 4).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = 2
    expected[1, 2] = 1
    np.testing.assert_array_equal(counts, expected)


def test_pairs_further_apart_count_less():
    counts = transitions(sequences([0, 1, 0, 3]), 4, reach=2, decay=0.5).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = expected[0, 3] = 1
    expected[0, 0] += 0.5  # 0 -> 1 -> 0
    expected[1, 3] += 0.5  # 1 -> 0 -> 3
    np.testing.assert_array_equal(counts, expected)


def test_reach_beyond_the_data_is_harmless():
    np.testing.assert_array_equal(
        transitions(sequences([0, 1]), 2, reach=9).toarray(), [[0, 1], [0, 0]]
    )


def test_probabilities_of_one_step():
    train = sequences([0, 1, 2], [0, 1])
    fitted = Markov(reach=1, backward=0.0, prior=2.0, last=1).fit(train, 4)
    popularity = np.array([3, 3, 2, 1]) / 9  # counts 2, 2, 1, 0 and smoothing 1
    # out of 0: item 1 twice; (2 * popularity + counts) / (2 + 2)
    after_0 = (2 * popularity + np.array([0, 2, 0, 0])) / 4
    np.testing.assert_allclose(fitted.probabilities([ints(0)], False), [after_0])
    after_0[0] = 0
    np.testing.assert_allclose(fitted.probabilities([ints(0)]), [after_0 / after_0.sum()])
    # 3 was never seen: nothing leads out of it
    np.testing.assert_allclose(fitted.probabilities([ints(3)], False), [popularity])
    np.testing.assert_allclose(fitted.probabilities([ints()], False), [popularity])


def test_backward_counts_and_older_items():
    train = sequences([0, 1, 2])
    fitted = Markov(reach=1, backward=0.5, prior=1.0, last=2, history_decay=0.5).fit(train, 3)
    popularity = np.full(3, 1 / 3)
    row_1 = (popularity + np.array([0.5, 0, 1])) / 2.5
    row_2 = (popularity + np.array([0, 0.5, 0])) / 1.5
    expected = row_1 / 3 + row_2 * 2 / 3  # the newest item (2) weighs twice the one before
    np.testing.assert_allclose(fitted.probabilities([ints(0, 1, 2)], False), [expected])


def test_history_weights():
    weights = history_weights([ints(0, 2, 1, 2), ints()], 3, last=3, decay=0.5).toarray()
    # kept 2, 1, 2 with 1/4, 1/2, 1; repeats add up
    np.testing.assert_allclose(weights, [[0, 0.5 / 1.75, 1.25 / 1.75], [0, 0, 0]])
    whole = history_weights([ints(0, 1)], 3, last=None, decay=1.0).toarray()
    np.testing.assert_allclose(whole, [[0.5, 0.5, 0]])


logs = st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(logs, st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=4))
def test_rows_are_distributions(users, raw):
    histories = [np.array(h, np.int32) for h in raw]
    fitted = Markov(reach=3, half_life=2.0).fit(sequences(*users), 8)
    for filter_seen in (True, False):
        p = fitted.probabilities(histories, filter_seen)
        assert p.dtype == np.float64
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
        for row, history in zip(p, histories, strict=True):
            unseen = np.setdiff1d(np.arange(8), history)
            assert (row[unseen] > 0).all()
            if filter_seen:
                assert (row[history] == 0).all()


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=9), min_size=1, max_size=4),
    st.sampled_from([(1, 0.0, 1), (3, 0.5, 2), (20, 1.0, 5)]),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_weights_before_an_item_are_those_of_a_log_that_ended_there(users, shape, data):
    """Against fitting anew without the rows; popularity alone is that of the whole log."""
    reach, backward, last = shape
    model = Markov(reach, 0.7, backward, 2.0, last, 0.6)
    train = sequences(*users)
    fitted = model.fit(train, 8)
    user = data.draw(st.integers(0, len(users) - 1))
    end = data.draw(st.integers(0, len(users[user]) - 1))
    shorter = sequences(*(u[:end] if n == user else u for n, u in enumerate(users)))
    anew = model.from_counts(transitions(shorter, 8, reach, 0.7), fitted.popularity)
    found = fitted.weights_before([ints(*users[user])], [end])
    np.testing.assert_allclose(found, anew.weights([ints(*users[user][:end])]), atol=1e-12)
