"""NLL at a temperature against plain sums over the catalog, whole and cut lists."""

import math

import numpy as np
import pytest

from llmrec.evaluation.calibration import listed
from llmrec.evaluation.scaling import fitted_temperature, scaled_nll

ITEMS, USERS = 30, 40


def drawn(kept, sharpness=2.0, seed=0):
    """Probabilities (U, N), targets, and the lists of the `kept` likeliest with the own NLL."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(USERS, ITEMS))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.array([rng.choice(ITEMS, p=row**0.5 / (row**0.5).sum()) for row in p])
    order = [np.argsort(-row, kind="stable")[:kept] for row in p]
    scores = [np.log(row[own]) for row, own in zip(p, order, strict=True)]
    return p, targets, listed(order, scores, targets), -np.log(p[np.arange(USERS), targets])


def by_sum(p, targets, temperature):
    powers = p ** (1 / temperature)
    return [-math.log(row[t] / math.fsum(row)) for row, t in zip(powers, targets, strict=True)]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_of_whole_lists_it_is_the_plain_formula(temperature):
    p, targets, lists, nll = drawn(ITEMS)
    found = scaled_nll(lists, nll, 0, temperature)
    np.testing.assert_allclose(found, by_sum(p, targets, temperature), atol=1e-9)


@pytest.mark.parametrize("kept", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.4, 0.9, 1.0, 1.5, 4.0])
def test_of_cut_lists_it_is_a_bound_from_above_and_not_a_loose_one(kept, temperature):
    p, targets, lists, nll = drawn(kept)
    found, exact = (
        scaled_nll(lists, nll, ITEMS - kept, temperature),
        by_sum(p, targets, temperature),
    )
    assert (found >= np.array(exact) - 1e-9).all()
    if kept == 20:
        np.testing.assert_allclose(found, exact, atol=0.15)
    if temperature == 1.0:
        np.testing.assert_allclose(found, nll, atol=1e-9)


def test_the_temperature_is_the_one_of_the_least_mean():
    p, targets, lists, nll = drawn(ITEMS)
    found = fitted_temperature(lists, nll, 0)
    grid = np.geomspace(0.5, 8, 200)
    means = [np.mean(by_sum(p, targets, t)) for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(means))], rel=0.03)
    assert found == pytest.approx(2.0, rel=0.35)  # targets were drawn at the square root
    cut = fitted_temperature(*drawn(20)[2:], ITEMS - 20)
    assert cut == pytest.approx(found, rel=0.1)


def test_targets_that_were_ruled_out_do_not_decide_and_nobody_decides_nothing():
    _, _, lists, nll = drawn(ITEMS)
    gone = np.where(np.arange(USERS) < 5, np.inf, nll)
    of_rest = fitted_temperature(lists.take(np.arange(5, USERS)), nll[5:], 0)
    assert fitted_temperature(lists, gone, 0) == pytest.approx(of_rest, rel=1e-6)
    assert np.isinf(scaled_nll(lists, gone, 0, 2.0)[:5]).all()
    assert fitted_temperature(lists, np.full(USERS, np.inf), 0) == 1.0
    uniform = [np.log(np.full(ITEMS, 1 / ITEMS))] * 3
    alike = listed([np.arange(ITEMS)] * 3, uniform, np.array([0, 1, 2]))
    assert fitted_temperature(alike, np.full(3, math.log(ITEMS)), 0) == 1.0
