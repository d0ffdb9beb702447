"""Candidates: who may be drawn, that nothing but the row decides, the file, and the likelihood."""

import re
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.candidates import candidate_nll, draw_candidates, read_candidates, write_candidates
from llmrec.data.records import Examples, concatenated, offsets_of
from llmrec.errors import DataError


def examples_of(histories, targets, users=None, timestamps=None):
    """Examples of the given histories and targets."""
    count = len(targets)
    users = [f"u{i}" for i in range(count)] if users is None else users
    arrays = [np.array(h, np.int32) for h in histories]
    return Examples(
        np.array(users, object),
        offsets_of(arrays),
        concatenated(arrays),
        np.array(targets, np.int32),
        np.arange(count) if timestamps is None else np.array(timestamps, np.int64),
        np.zeros(count, bool),
        np.zeros(count, bool),
    )


@st.composite
def draws(draw):
    """A catalog, examples that leave enough unseen items, and a count."""
    size = draw(st.integers(1, 30))
    item = st.integers(0, size - 1)
    rows = draw(st.lists(st.tuples(st.lists(item, max_size=12), item), max_size=5))
    unseen = [size - len({*history, target}) for history, target in rows]
    return size, rows, draw(st.integers(1, min(unseen, default=size - 1) + 1))


@settings(max_examples=200, deadline=None)
@given(draws(), st.integers(0, 3), st.integers(0, 2))
def test_the_target_and_distinct_unseen_items(drawn, seed, purpose):
    size, rows, count = drawn
    examples = examples_of([h for h, _ in rows], [t for _, t in rows])
    candidates = draw_candidates(examples, size, count, seed, purpose)
    assert candidates.dtype == np.int32
    assert candidates.shape == (len(rows), count)
    for row, (history, target) in zip(candidates.tolist(), rows, strict=True):
        assert row.count(target) == 1
        assert len(set(row)) == count
        for position in row:
            assert 0 <= position < size
            assert position == target or position not in history


def test_a_row_is_drawn_the_same_whatever_the_other_rows_are():
    rng = np.random.default_rng(5)
    examples = examples_of(rng.integers(0, 50, (30, 6)), rng.integers(0, 50, 30))
    whole = draw_candidates(examples, 50, 10, 3, 1)
    some = rng.permutation(30)[:11]
    np.testing.assert_array_equal(draw_candidates(examples.take(some), 50, 10, 3, 1), whole[some])


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"purpose": 2}, {"users": ["u1"]}, {"timestamps": [9]}, {"targets": [8]}],
    ids=lambda other: next(iter(other)),
)
def test_seed_purpose_user_time_and_target_each_change_the_draw(other):
    def drawn(seed=3, purpose=1, targets=(7,), **rest):
        examples = examples_of([[1, 2]], targets, **{"users": ["u0"], "timestamps": [5]} | rest)
        return draw_candidates(examples, 10_000, 20, seed, purpose)

    np.testing.assert_array_equal(drawn(), drawn())
    assert len(np.intersect1d(drawn(), drawn(**other))) < 5


def test_every_unseen_item_and_every_place_is_as_likely():
    count, size, rows = 4, 9, 6000
    history, target = [0, 3, 3, 8], 5
    examples = examples_of([history] * rows, [target] * rows)
    candidates = draw_candidates(examples, size, count, 0, 0)
    # 3 of the 5 unseen items in each row; 4 places for the target. 5 standard deviations.
    times = np.bincount(candidates.ravel(), minlength=size)
    for item in (1, 2, 4, 6, 7):
        assert abs(times[item] - rows * 3 / 5) < 5 * (rows * 3 / 5 * 2 / 5) ** 0.5
    for item in (1, 2, 4, 5, 6, 7):  # no item has a place of its own either
        places = np.bincount(np.nonzero(candidates == item)[1], minlength=count)
        assert (abs(places - times[item] / 4) < 5 * (times[item] * 3 / 16) ** 0.5).all()


def test_too_few_unseen_items_are_refused_with_the_user_and_the_numbers():
    examples = examples_of([[0], [0, 1, 2, 3]], [4, 4], users=["ann", "bob"])
    assert draw_candidates(examples, 7, 3, 0, 0).shape == (2, 3)
    message = "user 'bob' has 2 unseen items besides the target, of 7 in the catalog; 4 candidates"
    with pytest.raises(DataError, match=re.escape(message)):
        draw_candidates(examples, 7, 4, 0, 0)
    with pytest.raises(ValueError, match="0 candidates"):
        draw_candidates(examples, 7, 0, 0, 0)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_file_gives_back_what_was_drawn(tmp_path, rows):
    examples = examples_of([[0, 1]] * rows, [2] * rows)
    candidates = draw_candidates(examples, 40, 20, 0, 0)
    path = tmp_path / "data" / "candidates.parquet"
    write_candidates(path, candidates)
    found = read_candidates(path)
    assert found.dtype == np.int32
    assert found.shape == (rows, 20)
    np.testing.assert_array_equal(found, candidates)


def test_likelihood_is_a_softmax_over_the_candidates_alone():
    scores = np.array([[-1.0, -2.0, -900.0], [-1e4, -1e4 - log(3), -inf], [-inf, -1.0, -2.0]])
    candidates = np.array([[4, 7, 0], [1, 2, 3], [5, 6, 9]], np.int32)
    nll = candidate_nll(scores, candidates, np.array([7, 2, 5], np.int32))
    assert nll[0] == pytest.approx(-log(exp(-2) / (exp(-1) + exp(-2))))
    assert nll[1] == pytest.approx(log(4))
    assert nll[2] == inf
    nothing = candidate_nll(np.full((1, 2), -inf), np.array([[0, 1]]), np.array([1]))
    assert nothing.tolist() == [inf]


def test_a_target_that_is_there_twice_is_refused_and_one_that_is_not_there_a_miss():
    candidates = np.array([[5, 6, 7], [4, 4, 5]], np.int32)
    with pytest.raises(ValueError, match=r"target 4 stands 2 times .* row 1"):
        candidate_nll(np.zeros((2, 3)), candidates, np.array([6, 4]))
    found = candidate_nll(np.zeros((2, 3)), candidates, np.array([6, 9]))
    assert found.tolist() == [pytest.approx(log(3)), inf]
