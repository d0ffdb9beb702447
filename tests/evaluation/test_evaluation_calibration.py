"""Temperature, reliability, ECE, Brier score and NLL: by hand, by plain loops, by recovery."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmrec.errors import DataError
from llmrec.evaluation.calibration import (
    Listed,
    brier,
    ece_intervals,
    fit_temperature,
    listed,
    nll,
    reliability,
    temperature_scaled,
    top_k_mass,
)

# Two whole lists of three items, one cut off after two of them, one that ended after one.
GIVEN = Listed(
    np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.4, 0.2, 0.0], [0.25, 0.0, 0.0]]),
    np.array([0.0, 0.0, 0.4, 0.75]),
    np.array([0, 2, -1, 0]),
)


def drawn(examples, items, rng, kept=None, spread=1.5):
    """Lists of random distributions over `items` with targets drawn from them; `kept` are kept."""
    logits = rng.normal(0, spread, (examples, items))
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.array([rng.choice(items, p=np.exp(row)) for row in logs])
    order = np.argsort(-logs, axis=1, kind="stable")[:, :kept]
    return order, np.take_along_axis(logs, order, axis=1), targets


def random_listed(examples=200, items=12, kept=None, seed=0):
    return listed(*drawn(examples, items, np.random.default_rng(seed), kept))


def test_lists_targets_and_what_is_left_over():
    found = listed(
        [np.array([4, 1, 0]), np.array([2]), np.array([], np.int64), np.array([3, 5])],
        [np.log([0.5, 0.3, 0.2]), np.log([0.25]), np.array([]), np.array([0.0, -np.inf])],
        np.array([0, 7, 1, 5]),
    )
    assert found.probabilities == pytest.approx(
        np.array([[0.5, 0.3, 0.2], [0.25, 0, 0], [0, 0, 0], [1, 0, 0]])
    )
    assert found.rest == pytest.approx([0, 0.75, 1, 0])
    # The last target stands in its list with probability 0, which is not listed.
    assert found.place.tolist() == [2, -1, -1, -1]
    assert found.lengths.tolist() == [3, 1, 0, 1]
    assert found.of_target == pytest.approx([0.2, 0.75, 1, 0])


def test_rounding_noise_is_no_rest_and_a_sum_above_one_no_negative_one():
    scores = [np.log(np.array([0.6, 0.4 - 4e-6])), np.log(np.array([0.6, 0.4 + 4e-6]))]
    found = listed([np.array([0, 1])] * 2, scores, np.array([0, 5]))
    assert found.rest.tolist() == [0, 0]
    assert np.isinf(nll(found)[1])


def test_scores_that_are_no_probabilities_or_out_of_order_are_refused():
    with pytest.raises(DataError, match=r"list 0: its probabilities add up to 1\.2"):
        listed([np.array([0, 1])], [np.log([0.7, 0.5])], np.array([0]))
    with pytest.raises(DataError, match="nan"):
        listed([np.array([0, 1])], [np.array([-0.5, np.nan])], np.array([0]))
    with pytest.raises(DataError, match=r"list 1.*not best first"):
        listed([np.array([0, 1])] * 2, [np.log([0.5, 0.2]), np.log([0.2, 0.5])], np.array([0, 0]))


def test_nll_and_brier_by_hand():
    assert nll(GIVEN) == pytest.approx([math.log(2), math.log(5), math.log(2.5), math.log(4)])
    # The rest is one outcome: of the third it came true, of the fourth it did not.
    assert brier(GIVEN) == pytest.approx(
        [0.25 + 0.09 + 0.04, 0.25 + 0.09 + 0.64, 0.16 + 0.04 + 0.36, 0.5625 + 0.5625]
    )


def test_brier_is_the_plain_sum_over_outcomes():
    given_ = random_listed(kept=5)
    for row, value in enumerate(brier(given_)):
        outcomes = [*given_.probabilities[row], given_.rest[row]]
        true = given_.place[row] if given_.place[row] >= 0 else len(outcomes) - 1
        plain = sum((p - (i == true)) ** 2 for i, p in enumerate(outcomes))
        assert value == pytest.approx(plain)


def test_scaling_by_hand():
    scaled = temperature_scaled(GIVEN, 0.5)
    assert scaled.probabilities[0] == pytest.approx(np.array([25, 9, 4]) / 38)
    assert scaled.rest[0] == 0
    assert scaled.probabilities[2] == pytest.approx(np.array([16, 4, 0]) / 36)
    assert scaled.rest[2] == pytest.approx(16 / 36)
    assert scaled.lengths.tolist() == GIVEN.lengths.tolist()
    same = temperature_scaled(GIVEN, 1.0)
    assert same.probabilities == pytest.approx(GIVEN.probabilities)
    assert same.rest == pytest.approx(GIVEN.rest)


def test_what_was_listed_stays_listed_at_the_coldest():
    given_ = Listed(np.array([[0.9, 1e-30]]), np.array([0.1]), np.array([1]))
    cold = temperature_scaled(given_, 0.05)
    assert cold.lengths.tolist() == [2]
    assert np.isfinite(nll(cold)).all()


@pytest.mark.parametrize("factor", [0.3, 0.8, 1.0, 2.5, 6.0])
def test_temperature_that_scores_were_multiplied_by_is_recovered(factor):
    order, logs, targets = drawn(4000, 8, np.random.default_rng(1))
    wrong = logs * factor
    wrong -= np.log(np.exp(wrong).sum(axis=1, keepdims=True))
    right, biased = listed(order, logs, targets), listed(order, wrong, targets)
    own = fit_temperature(right)
    assert own == pytest.approx(1, abs=0.05)
    assert fit_temperature(biased) == pytest.approx(factor * own, rel=1e-6)
    assert temperature_scaled(biased, factor).probabilities == pytest.approx(right.probabilities)


@pytest.mark.parametrize("kept", [None, 4])
def test_no_temperature_of_a_grid_has_a_lower_nll(kept):
    given_ = random_listed(kept=kept, seed=2)
    best = nll(temperature_scaled(given_, fit_temperature(given_))).mean()
    for temperature in np.geomspace(0.05, 20, 200):
        assert nll(temperature_scaled(given_, temperature)).mean() >= best - 1e-9


def test_temperature_at_its_bounds_and_where_there_is_nothing_to_fit():
    sure = Listed(np.array([[0.6, 0.4]]), np.zeros(1), np.array([0]))
    assert fit_temperature(sure) == 0.05
    wrong = Listed(np.array([[0.6, 0.4]]), np.zeros(1), np.array([1]))
    assert fit_temperature(wrong) == 20.0
    assert fit_temperature(wrong.take(np.array([], np.int64))) == 1.0
    ruled_out = Listed(np.array([[0.6, 0.4]]), np.zeros(1), np.array([-1]))
    assert fit_temperature(ruled_out) == 1.0
    uniform = Listed(np.full((3, 4), 0.25), np.zeros(3), np.array([0, 1, 1]))
    assert fit_temperature(uniform) == 1.0


def test_reliability_by_hand():
    confidence = np.array([0.1, 0.2, 0.25, 0.4, 0.9])
    correct = np.array([True, False, True, True, False])
    found = reliability(confidence, correct, bins=4)
    assert found.count.tolist() == [3, 1, 0, 1]
    assert found.confidence[[0, 1, 3]] == pytest.approx([0.55 / 3, 0.4, 0.9])
    assert found.accuracy[[0, 1, 3]] == pytest.approx([2 / 3, 1, 0])
    assert np.isnan([found.confidence[2], found.accuracy[2]]).all()
    assert (found.low.tolist(), found.high.tolist()) == ([0, 0.25, 0.5, 0.75], [0.25, 0.5, 0.75, 1])
    assert found.ece == pytest.approx((2 - 0.55) / 5 + 0.6 / 5 + 0.9 / 5)


def test_equal_mass_by_hand():
    confidence = np.array([0.9, 0.1, 0.2, 0.3, 0.4, 0.5])
    found = reliability(confidence, confidence > 0.35, bins=3, by="mass")
    assert found.count.tolist() == [2, 2, 2]
    assert (found.low.tolist(), found.high.tolist()) == ([0.1, 0.3, 0.5], [0.2, 0.4, 0.9])
    assert found.accuracy.tolist() == [0, 0.5, 1]
    assert found.ece == pytest.approx((0.15 + 0.15 + 0.3) / 3)


def test_no_example_has_no_ece():
    for by in ("width", "mass"):
        found = reliability(np.zeros(0), np.zeros(0, np.bool_), bins=3, by=by)
        assert np.isnan(found.ece)
        assert found.count.tolist() == [0, 0, 0]


CONFIDENCES = hnp.arrays(
    np.float64,
    st.integers(1, 40),
    elements=st.one_of(st.sampled_from([0, 0.2, 0.25, 1 / 3, 0.6, 1]), st.floats(0, 1)),
)


@given(confidence=CONFIDENCES, bins=st.integers(1, 15), data=st.data())
@settings(max_examples=100, deadline=None)
def test_equal_width_bins_against_a_plain_loop(confidence, bins, data):
    correct = data.draw(hnp.arrays(np.bool_, len(confidence)))
    found, edges, ece = reliability(confidence, correct, bins), np.linspace(0, 1, bins + 1), 0.0
    for b in range(bins):
        inside = [
            i
            for i, c in enumerate(confidence)
            if edges[b] < c <= edges[b + 1] or (b == 0 and c == 0)
        ]
        assert found.count[b] == len(inside)
        if inside:
            gap = sum(float(correct[i]) - confidence[i] for i in inside)
            ece += abs(gap) / len(confidence)
    assert found.ece == pytest.approx(ece)


@given(confidence=CONFIDENCES, bins=st.integers(1, 15))
@settings(max_examples=100, deadline=None)
def test_equal_mass_bins_part_no_equal_confidences_and_are_even_without_them(confidence, bins):
    found = reliability(confidence, confidence > 0.5, bins, by="mass")
    assert found.count.sum() == len(confidence)
    filled = np.flatnonzero(found.count)
    for a, b in itertools.pairwise(filled):
        assert found.high[a] < found.low[b]
    for b in filled:
        inside = (confidence >= found.low[b]) & (confidence <= found.high[b])
        assert found.count[b] == inside.sum()
    if len(np.unique(confidence)) == len(confidence):
        assert found.count.max() - found.count.min() <= 1


def test_mass_of_the_first_items():
    mass, hit = top_k_mass(GIVEN, 2)
    assert mass == pytest.approx([0.8, 0.8, 0.6, 0.25])
    assert hit.tolist() == [True, False, False, True]
    mass, hit = top_k_mass(GIVEN, 50)
    assert mass == pytest.approx([1, 1, 0.6, 0.25])
    assert hit.tolist() == [True, True, False, True]


def test_intervals_of_ece_are_those_of_resampled_users():
    rng = np.random.default_rng(3)
    confidence, users = rng.random(60), np.repeat(np.arange(20), 3)
    correct = rng.random(60) < confidence / 2
    asked = [(confidence, correct, "width"), (confidence, correct, "mass")]
    found = ece_intervals(asked, users, bins=4, samples=400, confidence=0.8, seed=5)
    draws, plain = np.random.default_rng(5), []
    edges = np.linspace(0, 1, 5)
    for _ in range(400):
        chosen = draws.integers(0, 20, 20)
        rows = np.concatenate([np.flatnonzero(users == user) for user in chosen])
        ece = 0.0
        for b in range(4):
            inside = rows[(confidence[rows] > edges[b]) & (confidence[rows] <= edges[b + 1])]
            ece += abs((confidence[inside] - correct[inside]).sum()) / len(rows)
        plain.append(ece)
    assert [found[0].low, found[0].high] == pytest.approx(np.quantile(plain, [0.1, 0.9]).tolist())
    assert found[0].mean == reliability(confidence, correct, 4).ece
    assert found[1].mean == reliability(confidence, correct, 4, "mass").ece
    assert found[1].low < found[1].mean < found[1].high
    alone = ece_intervals(asked, np.zeros(60, np.int64), bins=4)
    assert np.isnan([alone[0].low, alone[0].high]).all()
