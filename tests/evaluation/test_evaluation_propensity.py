"""Propensities by hand, and means that are ratios."""

import json

import numpy as np
import pytest

from llmrec.data.records import Examples, Interactions
from llmrec.evaluation.predictions import Predictions
from llmrec.evaluation.propensity import propensities, self_normalised
from llmrec.stages import evaluate, prepare, recommend


def test_propensities_are_powers_of_the_share_of_the_most_chosen_not_below_the_floor():
    found = propensities(np.array([16, 4, 1, 0]), power=0.5, floor=0.3)
    assert found.tolist() == [1, 0.5, 0.3, 0.3]
    assert propensities(np.zeros(2, int), 0.5, 0.1).tolist() == [1, 1]


def test_the_mean_is_the_ratio_and_its_spread_that_of_resampled_ratios():
    rng = np.random.default_rng(0)
    values, weights = rng.random(400), 1 / rng.uniform(0.1, 1, 400)
    found = self_normalised(values, weights)
    assert found.mean() == pytest.approx((weights * values).sum() / weights.sum())
    draws = rng.integers(0, 400, (4000, 400))
    ratios = (weights[draws] * values[draws]).sum(1) / weights[draws].sum(1)
    assert found[draws].mean(1).std() == pytest.approx(ratios.std(), rel=0.05)
    values[:3] = np.nan
    found = self_normalised(values, weights)
    expected = (weights * values)[3:].sum() / weights[3:].sum()
    assert np.nanmean(found) == pytest.approx(expected)
    assert np.isnan(found[:3]).all()
    assert np.isnan(self_normalised(np.full(3, np.nan), weights[:3])).all()


def test_the_table_has_a_column_without_bias_beside_the_plain_one(recipe_of):
    given = (
        "systems=[popularity, markov]",
        "evaluate.debias=snips",
        "evaluate.propensity.floor=0.6",
    )
    recipe, folder = recipe_of(*given)
    prepare.run(recipe, folder)
    recommend.run(recipe, folder)
    result = evaluate.run(recipe, folder)
    counts = np.bincount(Interactions.read(folder.interactions).position, minlength=12)
    test = Examples.read(folder.examples("test"))
    weights = 1 / np.maximum((counts / counts.max()) ** 0.5, 0.6)[test.targets]
    assert len(np.unique(weights)) > 2
    cells = json.loads(folder.metrics.read_text("utf-8"))["table"]["systems"]
    for system in recipe.systems:
        said = Predictions.read(folder.predictions(system))
        hits = np.array([t in said.ranking(i)[:5] for i, t in enumerate(test.targets)])
        assert cells[system]["HR@5"]["all"]["mean"] == pytest.approx(hits.mean())
        debiased = cells[system]["HR@5 SNIPS"]
        assert debiased["all"]["mean"] == pytest.approx((weights * hits).sum() / weights.sum())
        assert list(debiased) == ["all"]
    assert "HR@5 SNIPS" in result["table"]
    assert "SNIPS: users weigh 1 / theta, theta = max((n / max n) ** 0.5, 0.6)" in result["table"]
    plain, _ = recipe_of(given[0])
    assert "SNIPS" not in evaluate.run(plain, folder)["table"]
