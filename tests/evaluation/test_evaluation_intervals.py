"""Intervals and tests: by hand where possible, by simulation where it counts."""

import numpy as np
import pytest

from llmrec.evaluation import holm, mean_interval, mean_intervals, paired_test, paired_tests
from llmrec.evaluation.intervals import difference, sign_flip_p_values


def test_mean_and_counts():
    interval = mean_interval(np.array([1.0, 2.0, np.nan, 3.0, np.inf]))
    assert (interval.mean, interval.n, interval.excluded) == (2.0, 3, 2)
    assert 1 <= interval.low < 2 < interval.high <= 3


def test_nothing_to_say_is_nan():
    none = mean_interval(np.array([np.nan, np.nan]))
    assert (none.n, none.excluded) == (0, 2)
    assert np.isnan([none.mean, none.low, none.high]).all()
    single = mean_interval(np.array([0.5]))
    assert single.mean == 0.5
    assert np.isnan([single.low, single.high]).all()
    empty = mean_interval(np.zeros(0))
    assert (empty.n, empty.excluded) == (0, 0)
    test = paired_test(np.array([np.nan]), np.array([1.0]))
    assert np.isnan(test.p_value)
    assert test.excluded == 1


def test_equal_values_have_no_width():
    interval = mean_interval(np.full(50, 0.25))
    assert (interval.low, interval.mean, interval.high) == (0.25, 0.25, 0.25)


def test_interval_is_that_of_all_resamples():
    # Two users, values 0 and 1: a resample's mean is 0, 1/2, 1 with 1/4, 1/2, 1/4.
    wide = mean_interval(np.array([0.0, 1.0]), samples=4000, confidence=0.6)
    narrow = mean_interval(np.array([0.0, 1.0]), samples=4000, confidence=0.4)
    assert (wide.low, wide.high) == (0, 1)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_same_seed_same_numbers_whatever_stands_beside():
    rng = np.random.default_rng(1)
    values = rng.random((40, 3))
    values[5, 1] = np.nan
    together = mean_intervals(values, seed=3)
    for column in range(3):
        alone = mean_interval(values[:, column], seed=3)
        assert (alone.n, alone.excluded) == (together[column].n, together[column].excluded)
        assert [alone.mean, alone.low, alone.high] == pytest.approx(
            [together[column].mean, together[column].low, together[column].high], abs=1e-14
        )
    assert mean_intervals(values, seed=3) == together
    assert mean_intervals(values, seed=4) != together


def test_chunks_do_not_change_the_numbers(monkeypatch):
    values = np.random.default_rng(2).random((30, 2))
    whole = mean_intervals(values), sign_flip_p_values(values - 0.4)
    monkeypatch.setattr("llmrec.evaluation.intervals._CHUNK", 77)
    parts = mean_intervals(values), sign_flip_p_values(values - 0.4)
    assert parts[1].tolist() == whole[1].tolist()
    for a, b in zip(whole[0], parts[0], strict=True):
        assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-14)


def test_examples_of_one_user_move_together():
    rng = np.random.default_rng(0)
    users = rng.normal(size=60)
    values, clusters = np.repeat(users, 10), np.repeat(np.arange(60), 10)
    alone = mean_interval(users, seed=5)
    together = mean_interval(values, clusters, seed=5)
    naive = mean_interval(values, seed=5)
    assert together.n == 600
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert naive.high - naive.low < 0.5 * (together.high - together.low)
    shifted = users + 0.1
    assert paired_test(np.repeat(shifted, 10), np.zeros(600), clusters).p_value == (
        paired_test(shifted, np.zeros(60)).p_value
    )


def test_paired_test_by_hand():
    # Two users, differences 1 and 1: of the four flips, two are as far from 0 as observed.
    test = paired_test(np.array([1.0, 2.0]), np.array([0.0, 1.0]), samples=4000)
    assert test.difference == 1
    assert test.p_value == pytest.approx(0.5, abs=0.03)
    # Ten users, all +1: 2 of 1024 flips.
    sure = paired_test(np.ones(10), np.zeros(10), samples=50_000)
    assert sure.p_value == pytest.approx(2 / 1024, abs=0.0008)


def test_no_difference_is_p_one():
    test = paired_test(np.array([0.3, 0.1, 0.2]), np.array([0.3, 0.1, 0.2]))
    assert (test.difference, test.p_value) == (0, 1)


def test_pairs_are_excluded_together():
    a, b = np.array([1.0, np.nan, np.inf, 4.0, 2.0]), np.array([0.0, 0.0, np.inf, np.nan, 1.0])
    test = paired_test(a, b)
    assert (test.n, test.excluded, test.difference) == (2, 3, 1.0)
    assert difference(a, b).tolist()[0] == 1
    with pytest.raises(ValueError, match="one shape"):
        paired_test(a, b[:2])


def test_direction_is_first_minus_second():
    rng = np.random.default_rng(0)
    b = rng.normal(size=200)
    better, worse = paired_tests(np.stack([0.2 + 0 * b, -0.2 + 0 * b], axis=1) + 0.1 * b[:, None])
    assert better.low > 0 > worse.high
    assert better.p_value < 0.01
    assert worse.p_value < 0.01


def test_holm_by_hand():
    # Sorted .005 .011 .02 .04 times 4 3 2 1 = .02 .033 .04 .04.
    assert holm([0.04, 0.005, np.nan, 0.02, 0.011]) == pytest.approx(
        [0.04, 0.02, np.nan, 0.04, 0.033], nan_ok=True
    )
    # An adjusted value is never below that of a smaller p, and never above 1.
    assert holm([0.3, 0.31, 0.6]) == pytest.approx([0.9, 0.9, 0.9])
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert holm([]).tolist() == []


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (np.zeros((2, 2, 2)), {}, "shape"),
        (np.zeros((2, 2)), {"samples": 0}, "samples"),
        (np.zeros((2, 2)), {"confidence": 1.0}, "confidence"),
        (np.zeros((2, 2)), {"clusters": np.zeros(3, int)}, "each of 2 examples"),
    ],
)
def test_misuse_is_named(values, options, said):
    with pytest.raises(ValueError, match=said):
        mean_intervals(values, **options)


@pytest.mark.parametrize("shape", ["hits", "nll", "ndcg"])
def test_coverage_under_simulation(shape):
    """2,000 experiments with 200 users each: the 95 % interval holds the true mean 93 to 97 %."""
    rng, size = np.random.default_rng(7), (200, 2000)
    if shape == "hits":
        values, truth = (rng.random(size) < 0.2).astype(float), 0.2
    elif shape == "nll":
        values, truth = rng.gamma(4.0, 1.5, size), 6.0
    else:
        gains = np.append(1 / np.log2(np.arange(10) + 2), 0)
        chances = np.append(np.full(10, 0.03), 0.7)
        values, truth = gains[rng.choice(11, size, p=chances)], float(gains @ chances)
    intervals = mean_intervals(values, samples=1000)
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("shape", ["hits", "nll"])
def test_false_positives_and_power_under_simulation(shape):
    """2,000 pairs of equally good systems: 3 to 7 % are called different at 0.05; real ones are."""
    rng, size = np.random.default_rng(11), (200, 2000)
    if shape == "hits":
        ease = rng.beta(1, 3, size)
        a, b = (rng.random(size) < ease) * 1.0, (rng.random(size) < ease) * 1.0
    else:
        ease = rng.gamma(4.0, 1.5, size)
        a, b = ease + rng.normal(0, 0.5, size), ease + rng.normal(0, 0.5, size)
    p_values = sign_flip_p_values(difference(a, b), samples=1000)
    assert 0.03 <= np.mean(p_values <= 0.05) <= 0.07
    # 0.2 is at least four standard errors of the mean difference: a power of 0.98 or more.
    found = sign_flip_p_values(difference(a + 0.2, b), samples=1000)
    assert np.mean(found <= 0.05) > 0.95
    below_zero = [t.low > 0 or t.high < 0 for t in paired_tests(difference(a, b), samples=1000)]
    assert 0.03 <= np.mean(below_zero) <= 0.07
