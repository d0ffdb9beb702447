"""Popularity, plain and recent: shares worked by hand."""

import numpy as np
import pytest

from llmrec.baselines.popularity import Popularity, RecentPopularity
from llmrec.data.records import Interactions


def interactions(rows: list[tuple[int, int, int]]) -> Interactions:
    user, position, timestamp = np.array(rows).T
    ids = np.array([f"u{u}" for u in range(user.max() + 1)], dtype=object)
    return Interactions(
        user.astype(np.int32), position.astype(np.int32), timestamp, np.arange(len(rows)), ids
    )


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


TRAIN = interactions([(0, 0, 0), (0, 1, 10), (1, 0, 20), (1, 2, 20)])


def test_shares_are_smoothed_counts():
    fitted = Popularity(smoothing=0.5).fit(TRAIN, 4)
    # counts 2, 1, 1, 0 plus a half each, over 6
    expected = np.array([2.5, 1.5, 1.5, 0.5]) / 6
    np.testing.assert_allclose(fitted.probabilities([ints()], True), [expected])


def test_seen_items_are_exactly_zero_and_the_rest_is_renormalised():
    fitted = Popularity(smoothing=0.5).fit(TRAIN, 4)
    filtered = fitted.probabilities([ints(0), ints(1, 3, 1)])
    np.testing.assert_allclose(
        filtered, [[0, 1.5 / 3.5, 1.5 / 3.5, 0.5 / 3.5], [2.5 / 4, 0, 1.5 / 4, 0]]
    )
    assert filtered[0, 0] == 0
    assert filtered[1, 1] == 0
    unfiltered = fitted.probabilities([ints(0)], filter_seen=False)
    assert unfiltered[0, 0] == pytest.approx(2.5 / 6)


def test_half_life_halves():
    fitted = RecentPopularity(half_life=10.0, smoothing=1.0).fit(TRAIN, 4)
    # item 0: 1/4 (two half-lives old) + 1; item 1: 1/2; item 2: 1; smoothing 1 each; total 6.75
    expected = np.array([2.25, 1.5, 2.0, 1.0]) / 6.75
    np.testing.assert_allclose(fitted.probabilities([ints()]), [expected])


def test_a_huge_half_life_is_plain_popularity():
    recent = RecentPopularity(half_life=1e12).fit(TRAIN, 4).probabilities([ints(2)])
    np.testing.assert_allclose(recent, Popularity().fit(TRAIN, 4).probabilities([ints(2)]))


def test_a_user_who_has_seen_everything_gets_a_row_of_zeros():
    fitted = Popularity().fit(TRAIN, 4)
    assert fitted.probabilities([ints(0, 1, 2, 3)]).sum() == 0
    assert np.isneginf(fitted.scores([ints(0, 1, 2, 3)])).all()


def test_asking_does_not_change_the_model():
    fitted = Popularity().fit(TRAIN, 4)
    before = fitted.probabilities([ints(), ints(1)])
    np.testing.assert_array_equal(fitted.probabilities([ints(), ints(1)]), before)


@pytest.mark.parametrize("model", [Popularity(0.0), RecentPopularity(0.0), RecentPopularity(-1.0)])
def test_impossible_hyperparameters_are_refused(model):
    with pytest.raises(ValueError, match="positive"):
        model.fit(TRAIN, 4)
