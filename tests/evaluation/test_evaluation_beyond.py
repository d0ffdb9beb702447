"""Beyond accuracy, worked by hand on a catalog of five items."""

from math import log2

import numpy as np
import pytest

from llmrec.evaluation import beyond_accuracy
from llmrec.evaluation.beyond import gini, head
from llmrec.evaluation.rankings import answer_counts, padded

COUNTS = np.array([5, 3, 1, 1, 0])  # 10 interactions; the head is items 0 and 1 (8 of 10)
NONE = np.zeros(0, np.int32)


def arrays(*rows):
    return [np.array(row, np.int32) for row in rows]


def test_by_hand():
    # User 0: item 0 (seen), item 2, item 0 again, invalid. User 1: item 1, item beyond the catalog.
    rankings = arrays([0, 2, 0, -1], [1, 5])
    figures = beyond_accuracy(rankings, COUNTS, arrays([0, 4], [0]), k=10)
    assert figures.answers == 6
    assert figures.coverage == 3 / 5
    assert figures.popularity == ((5 + 1) / 2 + 3) / 2
    assert figures.long_tail_share == (1 / 2 + 0) / 2
    bits = [-log2((c + 1) / 15) for c in COUNTS]
    assert figures.novelty == pytest.approx(((bits[0] + bits[2]) / 2 + bits[1]) / 2)
    assert figures.invalid_share == 2 / 6
    assert figures.repeated_share == 1 / 6
    assert figures.seen_share == 1 / 6
    # Items 0, 1, 2 once, 3 and 4 never: sorted 0 0 1 1 1, weights -4 -2 0 2 4 over 5 * 3.
    assert figures.gini == pytest.approx(6 / 15)


def test_cut_off():
    figures = beyond_accuracy(arrays([0, 2, 0, -1], [1, 5]), COUNTS, [NONE, NONE], k=1)
    assert (figures.answers, figures.coverage, figures.invalid_share) == (2, 2 / 5, 0)
    assert (figures.repeated_share, figures.seen_share) == (0, 0)


def test_seen_is_of_the_user_not_of_anyone():
    figures = beyond_accuracy(arrays([1], [2]), COUNTS, arrays([2], [1]), k=1)
    assert figures.seen_share == 0
    figures = beyond_accuracy(arrays([1], [2]), COUNTS, arrays([1], [1, 2]), k=1)
    assert figures.seen_share == 1


def test_matrix_padding_is_no_answer():
    matrix = np.array([[0, 1, -1, -1], [-1, 3, -1, -1], [-1, -1, -1, -1]])
    figures = beyond_accuracy(matrix, COUNTS, [NONE] * 3, k=4)
    assert figures.answers == 4
    assert figures.invalid_share == 1 / 4
    assert answer_counts(matrix).tolist() == [2, 2, 0]


def test_nothing_recommended():
    figures = beyond_accuracy([NONE, NONE], COUNTS, [NONE, NONE], k=5)
    assert (figures.answers, figures.coverage) == (0, 0)
    assert np.isnan([figures.popularity, figures.novelty, figures.gini, figures.seen_share]).all()
    only_invalid = beyond_accuracy(arrays([-1]), COUNTS, [NONE], k=5)
    assert only_invalid.invalid_share == 1
    assert np.isnan(only_invalid.popularity)


def test_gini_ends():
    assert gini(np.array([2, 2, 2, 2])) == 0
    assert gini(np.array([0, 0, 0, 7])) == 1 - 1 / 4


def test_head_is_the_fewest_items_with_four_fifths():
    assert head(COUNTS).tolist() == [True, True, False, False, False]
    assert head(np.array([1, 1, 1, 1, 1])).tolist() == [True] * 4 + [False]
    assert head(np.array([0, 9])).tolist() == [False, True]


def test_misuse_is_named():
    with pytest.raises(ValueError, match="at least 1"):
        beyond_accuracy([NONE], COUNTS, [NONE], k=0)
    with pytest.raises(ValueError, match="histories of 2"):
        beyond_accuracy([NONE], COUNTS, [NONE, NONE], k=1)


def test_padded_keeps_order_and_length():
    assert padded(arrays([3, 1], [], [-1])).tolist() == [[3, 1], [-1, -1], [-1, -1]]
    assert padded([]).shape == (0, 0)
