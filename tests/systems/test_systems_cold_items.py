"""Cold items through prepare, recommend and evaluate: who can tell them apart, and who cannot."""

import json

import numpy as np

from llmrec.data.records import Examples, Interactions
from llmrec.evaluation.predictions import Predictions
from llmrec.recipe.systems import System
from llmrec.stages import evaluate, prepare, recommend
from llmrec.systems.cold_items import cold_items
from llmrec.systems.resources import Resources

SYSTEMS = "systems=[popularity, text_knn]"


def test_places_are_those_of_a_ranking_of_the_cold_items_alone(recipe_of):
    recipe, folder = recipe_of(SYSTEMS, "data.cold_items=0.3")
    prepare.run(recipe, folder)
    recommend.run(recipe, folder)
    test, training = Examples.read(folder.examples("test")), Interactions.read(folder.interactions)
    resources = Resources(recipe, folder)
    cold = cold_items(training, len(resources.catalog))
    assert set(cold.tolist()) == set(range(len(resources.catalog))) - set(
        training.position.tolist()
    )
    assert 2 < test.cold.sum() < len(test)
    for system in recipe.systems:
        places = Predictions.read(folder.predictions(system)).cold_places
        assert (np.isnan(places) == ~test.cold).all()
        scores = resources.fitted(system).fitted.scores(test.histories())
        for row in np.flatnonzero(test.cold):
            own, others = scores[row, test.targets[row]], scores[row, cold]
            better, equal = (others > own).sum(), (others == own).sum()
            assert better <= places[row] < better + equal
            assert (equal == len(cold)) == (system == "popularity")
    evaluate.run(recipe, folder)
    table = json.loads(folder.metrics.read_text("utf-8"))["table"]
    assert table["systems"]["text_knn"]["HR@5 among cold items"]["cold"]["n"] == test.cold.sum()
    assert any("by chance: popularity." in note for note in table["notes"])


def test_without_cold_targets_or_with_candidates_there_are_no_places(recipe_of):
    recipe, folder = recipe_of(SYSTEMS, "data.cold_items=0.3", "data.candidates=3")
    recommend.run(recipe, folder)
    assert Predictions.read(folder.predictions("popularity")).cold_places is None


def test_a_language_model_searches_the_cold_items_alone(recipe_of):
    recipe, folder = recipe_of(
        "systems=[markov, untuned, untuned_guided]", "data.cold_items=0.3", "decode.top_k=3"
    )
    recommend.run(recipe, folder)
    test, resources = Examples.read(folder.examples("test")), Resources(recipe, folder)
    cold = cold_items(resources.interactions, len(resources.catalog))
    assert len(cold) > 3
    engine = resources.language.engine(System.parse("untuned"))
    prompts = [resources.language.encoder.prompt(h).ids for h in test.histories()]
    everything = engine.choose(prompts, np.tile(cold, (len(test), 1))).rankings
    places = Predictions.read(folder.predictions("untuned")).cold_places
    kinds = set()
    for row, ranking in enumerate(everything):
        if not test.cold[row]:
            assert np.isnan(places[row])
            continue
        place = ranking.positions.tolist().index(test.targets[row])
        assert places[row] == (place if place < 3 else np.inf)
        kinds.add(bool(place < 3))
    assert kinds == {True, False}
    guided = Predictions.read(folder.predictions("untuned_guided"))
    assert (np.isnan(guided.cold_places) == ~test.cold).all()
