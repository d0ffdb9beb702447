"""What a system adds to baselines taken together: weights, folds, and what is told."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from llmrec.evaluation.mixture import FOLDS, additions, mixture_weights

CHANCE = {"samples": 300, "confidence": 0.95, "seed": 0}


def test_weights_are_those_of_the_likeliest_mixture():
    rng = np.random.default_rng(0)
    p = rng.random((400, 2)) * [1.0, 0.6]
    best = minimize_scalar(lambda w: -np.log(p @ [w, 1 - w]).sum(), bounds=(0, 1), method="bounded")
    weights = mixture_weights(p)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == pytest.approx(best.x, abs=1e-3)


def test_what_nothing_explains_weighs_nothing():
    p = np.array([[0.5, 0.1], [0.0, 0.0], [0.1, 0.5]])
    assert mixture_weights(p) == pytest.approx([0.5, 0.5])
    assert mixture_weights(np.zeros((3, 2))) == pytest.approx([0.5, 0.5])


def drawn(users, rng):
    """NLL of systems of which two know one half of the users each, one repeats them, one a third
    of its own."""
    kind = rng.integers(0, 3, users)
    known, unknown = np.log(10), np.log(1000)
    one, two = (np.where(kind == k, known, unknown) for k in (0, 1))
    return {
        "one": one,
        "two": two,
        "both": np.minimum(one, two),
        "new": np.where(kind == 2, known, unknown),
        "unmeasured": np.full(users, np.nan),
    }


def test_a_system_adds_what_the_baselines_together_do_not_know():
    nll = drawn(900, np.random.default_rng(1))
    users = np.arange(900)
    found = additions(nll, ["both", "new", "unmeasured"], ["one", "two"], users, **CHANCE)
    assert [one.system for one in found] == ["both", "new"]
    both, new = found
    # It stands far above either, and the two together are as good.
    assert nll["both"].mean() < min(nll["one"].mean(), nll["two"].mean()) - 1
    # By hand: two halves mixed cost log 2 for the two thirds that either knows, whom `both` spares.
    assert both.change.mean == pytest.approx(-np.log(2) * 2 / 3, abs=0.08)
    # A third of the weight each: log 3 for all, instead of log 2 and, for a third, of ignorance.
    expected = np.log(3) - (np.log(2) * 2 / 3 + np.log(100) / 3)
    assert new.change.mean == pytest.approx(expected, abs=0.08)
    assert new.change.high < 0
    assert "new adds to one and two taken together" in new.in_words(0.95)
    assert both.together == new.together
    assert new.to_json()["baselines"] == ["one", "two"]


def test_nobody_is_weighed_on_their_own_target():
    """A system that knows one user alone changes nothing for that user."""
    nll = drawn(200, np.random.default_rng(2))
    lucky = np.full(200, 30.0)
    lucky[7] = 0.0
    (found,) = additions(
        nll | {"lucky": lucky}, ["lucky"], ["one", "two"], np.arange(200), **CHANCE
    )
    assert found.change.mean == pytest.approx(0.0, abs=0.05)
    together = np.repeat(np.arange(100), 2)  # as two examples of a user: both are left out
    (found,) = additions(nll | {"lucky": lucky}, ["lucky"], ["one", "two"], together, **CHANCE)
    assert found.change.mean == pytest.approx(0.0, abs=0.05)


def test_too_few_baselines_or_users_tell_nothing():
    nll = drawn(30, np.random.default_rng(3))
    assert additions(nll, ["new"], ["one"], np.arange(30), **CHANCE) == []
    assert additions(nll, ["new"], ["one", "two"], np.arange(30) % (FOLDS - 1), **CHANCE) == []


@pytest.mark.filterwarnings("error")
def test_what_no_system_gives_a_probability_to_is_left_out_and_counted():
    nll = {name: values.copy() for name, values in drawn(100, np.random.default_rng(4)).items()}
    (whole,) = additions(nll, ["new"], ["one", "two"], np.arange(100), **CHANCE)
    for values in nll.values():
        values[:10] = np.inf
    (found,) = additions(nll, ["new"], ["one", "two"], np.arange(100), **CHANCE)
    assert (found.change.n, found.change.excluded) == (90, 10)
    assert np.isfinite([found.change.mean, found.change.low, found.together.mean]).all()
    assert (whole.change.n, whole.change.excluded) == (100, 0)
