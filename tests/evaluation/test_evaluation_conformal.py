"""Prediction sets: the promise in simulated draws, sets by plain loops, and against crepes."""

import math

import numpy as np
import pytest
from crepes import ConformalClassifier
from crepes.extras import hinge

from llmrec.evaluation.calibration import Listed, listed
from llmrec.evaluation.conformal import (
    ALL,
    LONG,
    MARGINAL,
    MIDDLE,
    OUTSIDE,
    RULES,
    SHORT,
    TOO_FEW,
    Group,
    Rule,
    activity_cuts,
    activity_groups,
    coverages,
    covered,
    item_scores,
    needed,
    set_sizes,
    size_curve,
    target_scores,
    threshold,
)

HAND = Listed(np.array([[0.5, 0.3, 0.2], [0.4, 0.2, 0.0]]), np.array([0.0, 0.4]), np.array([1, -1]))


def population(examples, items=20, kept=None, seed=0):
    """Overconfident lists: targets are drawn from flatter distributions than are stated."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (examples, items))
    stated = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    noise = rng.gumbel(size=(examples, items))
    targets = (logits * 0.6 + noise).argmax(axis=1)
    order = np.argsort(-stated, axis=1, kind="stable")[:, :kept]
    return listed(order, np.take_along_axis(stated, order, axis=1), targets)


def test_scores_by_hand():
    assert item_scores(HAND, Rule("lac"))[0] == pytest.approx([0.5, 0.7, 0.8])
    assert item_scores(HAND, Rule("aps"))[0] == pytest.approx([0.5, 0.8, 1.0])
    raps = item_scores(HAND, Rule("raps", penalty=0.1, free=1))
    assert raps[0] == pytest.approx([0.5, 0.9, 1.2])
    assert raps[1] == pytest.approx([0.4, 0.7, np.inf])
    assert target_scores(HAND, Rule("aps")) == pytest.approx([0.8, np.inf])
    nothing = Listed(np.zeros((2, 0)), np.ones(2), np.array([-1, -1]))
    assert target_scores(nothing, Rule("aps")).tolist() == [np.inf, np.inf]
    assert set_sizes(nothing, Rule("aps"), 0.5).tolist() == [0, 0]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.method)
def test_scores_never_fall_so_that_every_set_begins_its_list(rule):
    scores = item_scores(population(300, kept=12), rule)
    assert (np.diff(scores, axis=1) >= 0).all()


@pytest.mark.parametrize("limit", [-1.0, 0.3, 0.8, 1.01, 9.0])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.method)
def test_sets_against_a_plain_loop(rule, limit):
    given = population(80, kept=12)
    sizes, held = set_sizes(given, rule, limit), covered(given, rule, limit)
    for row in range(len(given)):
        total, inside = 0.0, []
        for place, p in enumerate(given.probabilities[row]):
            total += p
            score = 1 - p if rule.method == "lac" else total
            if rule.method == "raps":
                score += rule.penalty * max(0, place + 1 - rule.free)
            if score <= limit:
                inside.append(place)
        assert inside == list(range(sizes[row]))
        assert held[row] == (given.place[row] in inside)


def test_without_a_finite_threshold_a_set_is_the_whole_list():
    assert set_sizes(HAND, Rule("raps"), math.inf).tolist() == [3, 2]
    assert covered(HAND, Rule("raps"), math.inf).tolist() == [True, False]


def test_threshold_by_hand():
    scores = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.4, 0.6, 0.8])
    # (9 + 1) * 0.9 is the ninth, whatever floating point makes of it.
    assert threshold(scores, 0.1) == 0.9
    assert threshold(scores, 0.3) == 0.7
    assert threshold(scores, 0.35) == 0.7
    assert threshold(scores[:8], 0.1) == math.inf
    assert threshold(np.append(scores[1:], np.inf), 0.1) == math.inf
    assert threshold(np.zeros(0), 0.5) == math.inf


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.35, 0.5, 0.7, 0.9])
def test_needed_is_the_first_number_with_a_finite_threshold(alpha):
    first = next(n for n in range(1, 1000) if math.isfinite(threshold(np.zeros(n), alpha)))
    assert needed(alpha) == first


@pytest.mark.parametrize("seed", range(5))
def test_lac_sets_are_those_of_crepes(seed):
    given = population(300, items=10, seed=seed)
    # crepes knows labels, which a list in order of probability names by their places.
    calibrating, measured = given.take(np.arange(100)), given.take(np.arange(100, 300))
    classes = np.arange(10)
    other = ConformalClassifier()
    other.fit(hinge(calibrating.probabilities, classes, calibrating.place), seed=0)
    assert np.sort(other.alphas) == pytest.approx(
        np.sort(target_scores(calibrating, Rule("lac"))), abs=1e-12
    )
    for alpha in (0.05, 0.1, 0.3):
        limit = threshold(target_scores(calibrating, Rule("lac")), alpha)
        sets = other.predict_set(
            hinge(measured.probabilities), confidence=1 - alpha, smoothing=False, seed=0
        )
        own = item_scores(measured, Rule("lac")) <= limit
        assert (own == np.asarray(sets, bool)).all()


@pytest.mark.parametrize("kept", [None, 18])
def test_coverage_is_what_was_promised_in_500_draws(kept):
    calibrating, measuring = 400, 4000
    given = population(calibrating + measuring, kept=kept)
    scores = {rule: target_scores(given, rule) for rule in RULES}
    alphas, rng = (0.05, 0.1, 0.2, 0.3), np.random.default_rng(11)
    reached = np.empty((500, len(RULES), len(alphas)))
    for draw in range(500):
        order = rng.permutation(len(given))
        for r, rule in enumerate(RULES):
            found, asked = scores[rule][order[:calibrating]], scores[rule][order[calibrating:]]
            for a, alpha in enumerate(alphas):
                limit = threshold(found, alpha)
                assert math.isfinite(limit)
                reached[draw, r, a] = (asked <= limit).mean()
    for a, alpha in enumerate(alphas):
        low = reached[:, :, a] < 1 - alpha - 1.5 / math.sqrt(calibrating)
        # A draw's coverage has a deviation of sqrt(alpha (1 - alpha) / n): 1.5 / sqrt(n) is 4.8 of
        # these for 0.1 and, with the measuring users' own, 3.1 for 0.3, where 1 in 1000 is below.
        assert not low.any() if alpha <= 0.1 else low.mean() < 0.005
        # The promise lies between 1 - alpha and 1 - alpha + 1 / (n + 1); ties can only add.
        means = reached[:, :, a].mean(axis=0)
        assert (means >= 1 - alpha - 0.004).all()
        assert (means[:2] <= 1 - alpha + 1 / (calibrating + 1) + 0.004).all()


def test_coverages_of_all_and_of_groups():
    given = population(900, seed=3)
    calibrating, measured = given.take(np.arange(500)), given.take(np.arange(500, 900))
    rng = np.random.default_rng(0)
    left, right = rng.random(500) < 0.3, rng.random(400) < 0.3
    users = np.arange(400) // 2
    found = coverages(
        calibrating,
        measured,
        [0.1, 0.3],
        {"own": Group(left, right, own=True), "given": Group(~left, ~right)},
        users,
        samples=200,
    )
    by = {(c.method, c.alpha, c.group, c.own): c for c in found}
    assert len(by) == len(found) == 3 * 2 * (1 + 2 + 1)
    for rule in RULES:
        for alpha in (0.1, 0.3):
            common = threshold(target_scores(calibrating, rule), alpha)
            own = threshold(target_scores(calibrating.take(left), rule), alpha)
            for group, mine, limit, rows in (
                (ALL, False, common, np.ones(400, bool)),
                ("own", False, common, right),
                ("own", True, own, right),
                ("given", False, common, ~right),
            ):
                c, part = by[rule.method, alpha, group, mine], measured.take(rows)
                sizes = set_sizes(part, rule, limit)
                assert c.threshold == limit
                assert c.calibrated == (left.sum() if mine else 500)
                assert c.coverage.mean == pytest.approx(covered(part, rule, limit).mean())
                assert c.coverage.low < c.coverage.mean < c.coverage.high
                assert (c.size.mean, c.size.n) == (pytest.approx(sizes.mean()), rows.sum())
                assert (c.median_size, c.empty_share) == (np.median(sizes), (sizes == 0).mean())
                # A threshold for all promises nothing to a group.
                promised = group == ALL or mine
                assert (c.guaranteed, c.reason) == (promised, "" if promised else MARGINAL)


def test_why_nothing_is_guaranteed():
    few = population(8, seed=4)
    found = coverages(few, few, [0.1], {}, np.arange(8), samples=100)
    assert {(c.guaranteed, c.reason, c.threshold) for c in found} == {(False, TOO_FEW, math.inf)}
    assert {c.size.mean for c in found} == {20}
    cut = population(100, kept=1, seed=4)
    found = coverages(cut, cut, [0.1], {}, np.arange(100), samples=100)
    assert {(c.guaranteed, c.reason) for c in found} == {(False, OUTSIDE)}


def test_a_group_without_examples_has_no_numbers():
    given = population(50)
    nobody = np.zeros(50, bool)
    found = coverages(
        given, given, [0.1], {"none": Group(nobody, nobody, own=True)}, np.arange(50), samples=100
    )
    common, own = [c for c in found if c.group == "none" and c.method == "aps"]
    assert (common.coverage.n, own.calibrated, own.reason) == (0, 0, TOO_FEW)
    assert np.isnan([common.coverage.mean, common.median_size, common.empty_share]).all()


def test_thirds_of_activity():
    lengths = np.array([9, 1, 2, 3, 8, 4, 5, 6, 7])
    cuts = activity_cuts(lengths)
    assert cuts == (3, 6)
    asked = np.array([3, 4, 6, 7, 100])
    groups = activity_groups(asked, cuts)
    assert groups[SHORT].tolist() == [True, False, False, False, False]
    assert groups[MIDDLE].tolist() == [False, True, True, False, False]
    assert groups[LONG].tolist() == [False, False, False, True, True]
    assert activity_cuts(np.zeros(0, np.int64)) == (0, 0)


def test_size_curve_leaves_out_what_has_no_threshold():
    given = population(400, seed=6)
    calibrating, measured = given.take(np.arange(200)), given.take(np.arange(200, 400))
    levels = [0.001, 0.1, 0.2, 0.5]
    curve = size_curve(calibrating, measured, Rule("aps"), levels)
    assert [alpha for alpha, _, _ in curve] == levels[1:]
    for alpha, size, share in curve:
        limit = threshold(target_scores(calibrating, Rule("aps")), alpha)
        assert size == set_sizes(measured, Rule("aps"), limit).mean()
        assert share == covered(measured, Rule("aps"), limit).mean()
