"""The three gates, and whose history stands in for whose."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.errors import DataError
from llmrec.evaluation.gates import Gates, another_user, distinct_share
from llmrec.evaluation.intervals import Interval


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=12), st.integers(0, 99))
def test_everyone_gets_one_of_another_user_once(counts, seed):
    users = np.repeat([f"u{i}" for i in range(len(counts))], counts).astype(object)
    np.random.default_rng(seed).shuffle(users)
    if 2 * max(counts) > len(users):
        with pytest.raises(DataError, match=r"another user's history"):
            another_user(users, seed)
        return
    other = another_user(users, seed)
    assert sorted(other.tolist()) == list(range(len(users)))
    assert all(a != b for a, b in zip(users, users[other], strict=True))
    assert other.tolist() == another_user(users, seed).tolist()


def test_seeds_draw_other_histories():
    users = np.array([f"u{i}" for i in range(50)], object)
    assert another_user(users, 0).tolist() != another_user(users, 1).tolist()


def test_distinct_first_answers_are_counted_over_the_lists_there_are():
    lists = [np.array(one, np.int32) for one in ([3, 1], [3, 2], [1], [], [2])]
    assert distinct_share(lists) == (0.75, 4)
    # Of 4 lists 3 users at a time: every subset by hand.
    firsts = [3, 3, 1, 2]
    subsets = [len(set(one)) / 3 for one in itertools.combinations(firsts, 3)]
    share, answers = distinct_share(lists, asked=3)
    assert answers == 3
    assert share == pytest.approx(sum(subsets) / len(subsets))
    share, answers = distinct_share([])
    assert np.isnan(share)
    assert answers == 0


@pytest.mark.parametrize(
    ("over", "sensitivity", "distinct", "failed"),
    [
        (-0.1, 0.2, 0.2, 0),
        (0.0, 0.2, 0.2, 1),
        (-0.1, 0.199, 0.2, 1),
        (-0.1, 0.2, 0.199, 1),
        (None, None, float("nan"), 3),
    ],
)
def test_a_gate_that_is_not_reached_or_not_measured_fails(over, sensitivity, distinct, failed):
    def interval(mean):
        return None if mean is None else Interval(mean, mean - 1, mean + 1, 9, 0)

    gates = Gates(interval(over), interval(sensitivity), distinct, 9)
    assert len(gates.failed) == failed
