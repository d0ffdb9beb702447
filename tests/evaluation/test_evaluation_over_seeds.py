"""Intervals and tests over users and seeds, against plain arithmetic and simulation."""

import numpy as np
import pytest

from llmrec.evaluation.intervals import mean_interval
from llmrec.evaluation.over_seeds import seeded_comparisons, seeded_intervals


def crossed(rng, users, seeds, between_users, between_seeds, nested=False):
    """Values of every user in every seed, (users * seeds,), with their users and seeds."""
    who, which = np.repeat(np.arange(users), seeds), np.tile(np.arange(seeds), users)
    if nested:
        who = np.arange(users * seeds)
    values = between_users * rng.normal(size=who.max() + 1)[who]
    return values + between_seeds * rng.normal(size=seeds)[which] + rng.normal(size=len(who)), (
        who,
        which,
    )


def test_with_one_seed_it_is_the_bootstrap_over_users():
    values = np.random.default_rng(0).normal(size=200)
    who = np.repeat(np.arange(50), 4)
    found = seeded_intervals(values[:, None], who, np.zeros(200, int))[0]
    plain = mean_interval(values, who)
    assert found.mean == pytest.approx(plain.mean)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.03)


@pytest.mark.parametrize("nested", [False, True])
def test_intervals_hold_what_they_promise_over_users_and_seeds(nested):
    rng, held, narrow = np.random.default_rng(1), 0, 0
    for _ in range(150):
        values, (who, which) = crossed(rng, 40, 10, 0.5, 0.5, nested)
        one = seeded_intervals(values[:, None], who, which, samples=300)[0]
        held += one.low <= 0 <= one.high
        plain = mean_interval(values, who, samples=300)
        narrow += plain.low <= 0 <= plain.high
    assert held / 150 > 0.86  # ten seeds hold nine tenths of the variance among them
    assert narrow / 150 < 0.7  # what users alone would have said


def test_columns_do_not_depend_on_each_other_and_gaps_are_left_out():
    rng = np.random.default_rng(2)
    values, (who, which) = crossed(rng, 30, 3, 0.5, 0.2)
    gaps = np.where(rng.random(len(values)) < 0.3, np.nan, values)
    together = seeded_intervals(np.stack([values, gaps], axis=1), who, which)
    assert together == [seeded_intervals(v[:, None], who, which)[0] for v in (values, gaps)]
    kept = np.isfinite(gaps)
    assert (together[1].n, together[1].excluded) == (kept.sum(), (~kept).sum())
    assert together[1].mean == pytest.approx(gaps[kept].mean())


def test_fewer_than_two_users_have_no_interval():
    one = seeded_intervals(np.ones((3, 1)), np.zeros(3, int), np.arange(3))[0]
    assert one.mean == 1.0
    assert np.isnan([one.low, one.high]).all()


def test_a_gain_of_one_seed_alone_stands_for_nothing():
    """All users gain in one seed of three and lose a little in the others."""
    rng = np.random.default_rng(3)
    who, which = np.repeat(np.arange(200), 3), np.tile(np.arange(3), 200)
    gain = np.where(which == 0, 1.0, -0.1) + 0.1 * rng.normal(size=600)
    values = {"a": gain, "b": np.zeros(600), "c": gain + 1.0}
    pairs = [("a", "b"), ("c", "b")]
    unsure, sure = seeded_comparisons("NDCG@10", pairs, values, who, which)
    assert unsure.p_holm < 0.05
    assert unsure.test.low < 0 < unsure.test.high
    assert unsure.standing == "level"
    assert sure.standing == "above"
    assert seeded_comparisons("NLL", pairs, values, who, which)[1].standing == "below"
