"""Random candidates in proportion to how often an item was chosen."""

from collections import Counter

import numpy as np
import pytest

from llmrec.methods.conformal import drawn_by_weight

WEIGHTS = np.log(np.array([8.0, 4.0, 2.0, 1.0, 1.0]))


def draws(closed, count, times=4000):
    rng = np.random.default_rng(0)
    return [drawn_by_weight(WEIGHTS, np.array(closed, np.int32), count, rng) for _ in range(times)]


def test_first_and_second_items_come_by_weight():
    found = draws([1], 2)
    first = Counter(items[0] for items in found)
    for item, share in {0: 8 / 12, 2: 2 / 12, 3: 1 / 12, 4: 1 / 12}.items():
        assert first[item] / len(found) == pytest.approx(share, abs=0.03)
    after_0 = Counter(items[1] for items in found if items[0] == 0)
    assert after_0[2] / sum(after_0.values()) == pytest.approx(2 / 4, abs=0.03)


def test_closed_items_and_repeats_never_come():
    for items in draws([0, 3], 9, 50):
        assert sorted(items) == [1, 2, 4]
