"""Votes against a count by hand."""

from collections import Counter

import numpy as np
import pytest

from llmrec.retrieval.votes import tally

rng = np.random.default_rng(0)


def arrays(*lists):
    return [np.array(one, np.int32) for one in lists]


def test_votes_counted_by_hand():
    found = tally(arrays([1, 2, 2, 3], [3, 4], [4, 3, 9]), seen=[9])
    assert found.items.tolist() == [3, 4, 2, 1]  # of one vote: the first user's later choice first
    assert found.votes.tolist() == [3, 2, 1, 1]
    assert tally([]).items.tolist() == []
    assert tally(arrays([5]), seen=[5]).items.tolist() == []


@pytest.mark.parametrize("times", range(20))
def test_a_user_has_one_vote_for_an_item_and_most_votes_come_first(times):
    chosen = [rng.integers(0, 12, rng.integers(1, 9)).astype(np.int32) for _ in range(7)]
    seen = rng.integers(0, 12, 3)
    found = tally(chosen, seen)
    by_hand = Counter(item for one in chosen for item in set(one.tolist()) - set(seen.tolist()))
    assert dict(zip(found.items.tolist(), found.votes.tolist(), strict=True)) == by_hand
    assert found.votes.tolist() == sorted(found.votes.tolist(), reverse=True)
