"""What a token of a TokenTree sees, where it stands, and what predicts it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.text.tree import Segment, TokenTree


def ids(*values):
    return np.array(values, np.int32)


def test_two_branches_on_a_trunk_worked_by_hand():
    flat = TokenTree(
        (Segment(ids(10, 11)), Segment(ids(20, 21), 0, target=4), Segment(ids(30), 0, target=6))
    ).flatten()
    assert flat.input_ids.tolist() == [10, 11, 20, 21, 30]
    assert flat.position_ids.tolist() == [0, 1, 2, 3, 2]
    assert flat.mask.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert flat.labels.tolist() == [20, 21, 30]
    assert flat.predictors.tolist() == [1, 2, 1]
    assert flat.branches.tolist() == [0, 0, 1]
    assert flat.targets.tolist() == [4, 4, 6]
    assert flat.steps.tolist() == [0, 1, 0]
    assert flat.branch_count == 2


@given(st.data())
def test_a_token_sees_exactly_its_path(data):
    segments = [Segment(ids(*range(data.draw(st.integers(1, 3)))))]
    for number in range(1, data.draw(st.integers(1, 8))):
        length = data.draw(st.integers(0, 3))
        segments.append(Segment(ids(*range(length)), data.draw(st.integers(-1, number - 1))))
    tree = TokenTree(tuple(segments))
    flat = tree.flatten()
    starts = np.cumsum([0] + [len(s.ids) for s in segments])
    for path in tree.paths():
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in path])
        assert np.array_equal(flat.mask[np.ix_(rows, rows)], np.tri(len(rows), dtype=bool))
        assert flat.position_ids[rows].tolist() == list(range(len(rows)))
        others = np.setdiff1d(np.arange(len(flat.input_ids)), rows)
        assert not flat.mask[np.ix_(rows, others)].any()


def test_an_empty_segment_leaves_the_predictor_to_its_parent():
    flat = TokenTree(
        (Segment(ids(1, 2)), Segment(ids(), 0), Segment(ids(3), 1, target=0))
    ).flatten()
    assert flat.predictors.tolist() == [1]


def test_a_parent_must_stand_before_its_child():
    with pytest.raises(ValueError, match="segment 1 has parent 1"):
        TokenTree((Segment(ids(1)), Segment(ids(2), 1)))
    with pytest.raises(ValueError, match="nothing stands before it"):
        TokenTree((Segment(ids(1), target=0),))
