"""The log-probabilities of a model and its retriever: their sum, and how its weight is chosen."""

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from llmrec.data.candidates import candidate_nll, read_candidates, read_log_q
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import LlmrecError, RecipeError
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.engine import Engine
from llmrec.stages import prepare, recommend
from llmrec.systems import fusion, language
from llmrec.systems.fusion import FEW, compared
from llmrec.systems.recommender import Recommender

FROM = ("data.candidates.from=markov", "data.candidates.count=3")
SYSTEMS = "systems=[markov, untuned, untuned_fused]"


def scores_by_item(folder, system):
    """For each test example the score of every candidate."""
    said = Predictions.read(folder.predictions(system))
    ends = said.offsets.tolist()
    return [
        dict(zip(said.items[a:b].tolist(), said.scores[a:b].tolist(), strict=True))
        for a, b in pairwise(ends)
    ]


@pytest.mark.parametrize("weight", [0, 0.7, "auto"])
def test_scores_are_the_sum_of_both_and_raw_histories_get_the_same(recipe_of, weight):
    recipe, folder = recipe_of(*FROM, SYSTEMS, f"decode.fusion.weight={weight}")
    prepare.run(recipe, folder)
    recommend.run(recipe, folder)
    folder.keep(recipe)
    test, path = Examples.read(folder.examples("test")), folder.candidates("test")
    alone, fused = scores_by_item(folder, "untuned"), scores_by_item(folder, "untuned_fused")
    said = Predictions.read(folder.predictions("untuned_fused"))
    nll, scale = said.nll, said.info.hyperparameters.get("scale", 1.0)
    assert (scale != 1) == (weight == "auto")
    w = said.info.hyperparameters["weight"]
    rows = zip(test, read_candidates(path).tolist(), read_log_q(path), strict=True)
    for i, (example, items, log_q) in enumerate(rows):
        summed = log_softmax(scale * (np.array([alone[i][item] for item in items]) + w * log_q))
        assert [fused[i][item] for item in items] == pytest.approx(summed, abs=1e-5)
        expected = -dict(zip(items, summed, strict=True)).get(example.target, -np.inf)
        assert nll[i] == pytest.approx(expected, abs=1e-5)
    assert {len(row) for row in fused} == {3}
    if w:
        orders = [sorted(row, key=row.get) for row in alone], [sorted(r, key=r.get) for r in fused]
        assert orders[0] != orders[1]
    ids = Catalog.read(folder.items).item_ids
    histories = [[ids[p] for p in history] for history in test.histories()]
    for system in ("untuned_fused", "untuned", "markov"):
        table = Recommender(recipe, folder, system).recommend(histories, top_k=2)
        said = Predictions.read(folder.predictions(system))
        wanted = [ids[p] for i in range(len(test)) for p in said.ranking(i)[:2].tolist()]
        assert table["item_id"].to_pylist() == wanted
    without = Recommender(recipe, folder, "untuned_fused")
    table = without.recommend(histories[:4], top_k=3, exclude=[wanted[0]])
    assert wanted[0] not in table["item_id"].to_pylist()
    assert table.num_rows == 12


def test_the_weight_is_the_likeliest_in_validation_and_told(recipe_of, caplog):
    recipe, folder = recipe_of(*FROM, SYSTEMS, "decode.fusion.grid=[0, 0.5, 3]")
    prepare.run(recipe, folder)
    recommend.run(recipe, folder)
    said = Predictions.read(folder.predictions("untuned_fused")).info.hyperparameters
    by_weight = said["valid_nll"]
    assert list(by_weight) == ["0", "0.5", "3"]
    assert said["weight"] == float(min(by_weight, key=by_weight.get))
    assert list(said["valid_ndcg@10"]) == list(by_weight)
    assert 0 < said["valid_targets"] < FEW
    assert f"chosen on {said['valid_targets']} validation targets" in caplog.text
    recorded = json.dumps(said)
    Recommender(recipe, folder, "untuned_fused").recommend([["i1", "i2"]])
    assert recorded == json.dumps(
        Predictions.read(folder.predictions("untuned_fused")).info.hyperparameters
    )


def test_likelihoods_are_those_at_the_best_scale_over_the_targets_that_are_there():
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(9)[:4] for _ in range(40)]).astype(np.int32)
    scores, log_q = rng.normal(size=(2, 40, 4)) * 3
    targets = candidates[:, 1]
    scores[:, 1] += 3
    nll, scales, gain = compared(scores, log_q, candidates, targets, [0.0, 1.5])
    for weight, found in nll.items():
        held = scores + weight * log_q
        costs = lambda s, held=held: -log_softmax(np.exp(s) * held, axis=1)[:, 1].mean()  # noqa: E731
        best = minimize_scalar(costs, bounds=(-4, 4), method="bounded").fun
        assert best <= found <= best + 0.01
        there = candidate_nll(scales[weight] * held, candidates, targets)
        assert there.mean() == pytest.approx(found)
        places = (held > held[:, 1:2]).sum(axis=1)
        assert gain[weight] == pytest.approx((1 / np.log2(places + 2)).sum() / 40)
    assert nll[0.0] < nll[1.5]


def test_a_retriever_that_knows_beats_a_model_that_does_not_and_the_other_way_round():
    rng = np.random.default_rng(1)
    candidates = np.tile(np.arange(4, dtype=np.int32), (60, 1))
    targets = rng.integers(0, 4, 60).astype(np.int32)
    noise, knows = rng.normal(size=(2, 60, 4))
    knows[np.arange(60), targets] += 4
    grid = [0, 0.5, 1, 5, 20]
    for scores, log_q, expected in ((knows, noise, 0), (noise, knows, 20)):
        nll, _, _ = compared(scores, log_q, candidates, targets, grid)
        chosen = min(nll, key=lambda w: (nll[w], w))
        assert abs(grid.index(chosen) - grid.index(expected)) <= 1


def test_what_fusion_needs_is_said(recipe_of):
    for given in ("data.candidates=3", "data.candidates=null"):
        with pytest.raises(RecipeError, match=r"data\.candidates"):
            recipe_of(given, SYSTEMS)


def test_what_the_model_said_alone_is_not_asked_again(recipe_of, monkeypatch):
    both = recipe_of("name=both", *FROM, SYSTEMS)
    fused = recipe_of("name=fused", *FROM, "systems=[untuned_fused]")
    for recipe, folder in (both, fused):
        prepare.run(recipe, folder)
    recommend.run(*fused)

    def asked(resources, system, *given):
        assert system.name == "untuned"
        return answered(resources, system, *given)

    answered = language.answered
    monkeypatch.setattr(language, "answered", asked)
    recommend.run(*both)
    one, other = (
        Predictions.read(folder.predictions("untuned_fused")) for _, folder in (fused, both)
    )
    alone = Predictions.read(both[1].predictions("untuned"))
    assert one.items.tolist() == other.items.tolist()
    assert one.scores.tolist() == other.scores.tolist()
    np.testing.assert_array_equal(one.nll, other.nll)
    for name in ("weight", "scale", "valid_nll"):
        assert one.info.hyperparameters[name] == other.info.hyperparameters[name]
    assert other.info.seconds == alone.info.seconds


def test_only_users_whose_target_is_proposed_choose_and_none_is_told(recipe_of, monkeypatch):
    few = ("data.candidates.from=popularity", "data.candidates.count=3")
    recipe, folder = recipe_of(*few, "systems=[untuned_fused]")
    prepare.run(recipe, folder)
    valid, path = Examples.read(folder.examples("valid")), folder.candidates("valid")
    held = (read_candidates(path) == valid.targets[:, None]).any(axis=1)
    choose, read = Engine.choose, []

    def counted(engine, prompts, *given):
        read.append(len(prompts))
        return choose(engine, prompts, *given)

    monkeypatch.setattr(Engine, "choose", counted)
    recommend.run(recipe, folder)
    assert read[0] == held.sum() < len(valid)
    folder.predictions("untuned_fused").unlink()
    monkeypatch.setattr(fusion, "proposed", lambda *_: np.zeros(len(valid), np.bool_))
    with pytest.raises(LlmrecError, match="proposes no validation target"):
        recommend.run(recipe, folder)
