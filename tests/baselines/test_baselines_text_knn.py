"""Text-kNN: cosines by hand, cold items, empty histories, dense and sparse vectors."""

import math

import numpy as np
import pytest
import scipy.sparse as sp

from llmrec.baselines.text_knn import TextKNN

# Two directions and one between them; the last item has no text.
VECTORS = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [0.0, 0.0]])
HISTORIES = [np.array(h, np.int32) for h in ([0], [1, 0], [])]


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
def test_probabilities_by_hand(make):
    fitted = TextKNN(last=2, history_decay=0.5, temperature=0.5).fit(make(VECTORS))
    p = fitted.probabilities(HISTORIES, filter_seen=False)
    half = math.sqrt(0.5)
    # After [1, 0] the wanted direction is (2, 1) / 3 of length sqrt(5) / 3.
    two, one = 2 / math.sqrt(5), 1 / math.sqrt(5)
    cosines = [[1, 0, half, 0], [two, one, (two + one) * half, 0], [0, 0, 0, 0]]
    expected = np.exp(np.array(cosines) / 0.5)
    np.testing.assert_allclose(p, expected / expected.sum(axis=1, keepdims=True), atol=1e-12)


def test_only_the_last_items_speak_and_seen_ones_are_left_out():
    fitted = TextKNN(last=1, temperature=0.1).fit(VECTORS)
    longer, shorter = (np.array(h, np.int32) for h in ([1, 1, 0], [0]))
    one, other = (fitted.probabilities([h], filter_seen=False) for h in (longer, shorter))
    np.testing.assert_array_equal(one, other)
    p = fitted.probabilities([np.array([1, 0], np.int32)])[0]
    assert p[:2].tolist() == [0, 0]
    assert p[2] > 0.99


@pytest.mark.parametrize("wrong", [{"last": 0}, {"temperature": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="TextKNN needs"):
        TextKNN(**wrong).fit(VECTORS)
