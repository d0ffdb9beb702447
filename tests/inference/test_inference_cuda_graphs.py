"""decode.cuda_graphs: every stage that searches hands the fixed passes on, and answers the same."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.decoding import fixed_steps
from llmrec.decoding.fixed_steps import FixedSteps
from llmrec.errors import RecipeError
from llmrec.inference import engine
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.methods.validation import validation_of
from llmrec.model.loading import load_model
from llmrec.recipe.systems import System
from llmrec.stages import prepare, recommend
from llmrec.systems.recommender import Recommender
from llmrec.systems.resources import Resources

GRAPHS = "decode.cuda_graphs=true"


@pytest.fixture
def without_gpu(monkeypatch):
    """Fixed passes on the CPU wherever the recipe wants graphs; a list of their sizes."""
    read, sizes = fixed_steps.Held.read, []

    def noted(held, ids, *more):
        sizes.append(ids.shape)
        return read(held, ids, *more)

    monkeypatch.setattr(fixed_steps.Held, "read", noted)
    monkeypatch.setattr(
        engine, "_fixed_steps", lambda model, d: FixedSteps(model) if d.cuda_graphs else None
    )
    return sizes


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_search_with_graphs_is_refused(recipe_of):
    recipe, folder = recipe_of(GRAPHS)
    prepare.run(recipe, folder)
    model = load_model(base_of(recipe), "cpu")
    said = r"decode.cuda_graphs: true needs a CUDA GPU, and the model is on cpu; set"
    with pytest.raises(RecipeError, match=said):
        Recommender(recipe, folder, "untuned", model)
    folder.keep(recipe)
    recipe.systems[:] = ["untuned"]
    with pytest.raises(RecipeError, match=said):
        recommend.run(recipe, folder)


@pytest.mark.parametrize("search", ["beam", "certified", "best_first"])
def test_answers_are_the_same(recipe_of, without_gpu, search):
    answers = []
    for graphs in ("decode.cuda_graphs=false", GRAPHS):
        recipe, folder = recipe_of(
            f"name={search}{len(answers)}",
            f"decode.search={search}",
            "systems=[markov, untuned, untuned_guided]",
            graphs,
        )
        prepare.run(recipe, folder)
        recommend.run(recipe, folder)
        tables = [pq.read_table(folder.predictions(s)) for s in ("untuned", "untuned_guided")]
        answers.append([row for table in tables for row in table.to_pylist()])
    assert without_gpu
    for plain, fixed in zip(*answers, strict=True):
        assert plain.keys() == fixed.keys()
        for name, value in plain.items():
            if isinstance(value, float) or name in ("scores", "nll"):
                np.testing.assert_allclose(
                    np.array(fixed[name], float), np.array(value, float), rtol=1e-4, atol=1e-4
                )
            else:
                assert fixed[name] == value


def test_graphs_change_no_answer_and_so_ask_for_none_again(recipe_of):
    settings = []
    for graphs in ("decode.cuda_graphs=false", GRAPHS):
        recipe, folder = recipe_of(graphs)
        prepare.run(recipe, folder)
        settings.append(
            [
                Resources(recipe, folder).settings(System.parse(system))
                for system in ("popularity", "untuned", "untuned_free")
            ]
        )
    assert settings[0] == settings[1]


def test_a_recommender_answers_the_same_call_after_call(recipe_of, without_gpu):
    tables = []
    for graphs in ("decode.cuda_graphs=false", GRAPHS):
        recipe, folder = recipe_of(graphs)
        prepare.run(recipe, folder)
        catalog = Catalog.read(folder.items)
        model = load_model(base_of(recipe), "cpu")
        asked = Recommender(recipe, folder, "untuned", model)
        histories = [[catalog.titles[i]] for i in range(12)]
        tables.append([asked.recommend(some, top_k=3) for some in (histories, histories[3:5])])
    assert without_gpu
    for plain, fixed in zip(*tables, strict=True):
        assert fixed["item_id"].to_pylist() == plain["item_id"].to_pylist()
        np.testing.assert_allclose(fixed["score"], plain["score"], rtol=1e-4)


@pytest.mark.parametrize("metric", ["nll", "ndcg"])
def test_validation_measures_the_same(recipe_of, without_gpu, metric):
    measured = []
    for graphs in ("decode.cuda_graphs=false", GRAPHS):
        recipe, folder = recipe_of(graphs, f"validation.metric={metric}", "validation.k=4")
        prepare.run(recipe, folder)
        encoder = encoder_of(recipe, Catalog.read(folder.items))
        assert len(Examples.read(folder.examples("valid"))) > recipe.decode.batch_size
        measured.append(validation_of(recipe, folder, encoder)(load_model(base_of(recipe), "cpu")))
        assert bool(without_gpu) == recipe.decode.cuda_graphs
    for name, value in measured[0].figures.items():
        assert measured[1].figures[name] == pytest.approx(value, rel=1e-5)


def test_validation_keeps_its_passes_and_follows_the_weights(recipe_of, monkeypatch):
    made = []

    def fixed(model, decode):
        made.append(FixedSteps(model))
        return made[-1]

    monkeypatch.setattr(engine, "_fixed_steps", fixed)
    recipe, folder = recipe_of(GRAPHS, "validation.metric=ndcg", "validation.k=4")
    prepare.run(recipe, folder)
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    model, measure = load_model(base_of(recipe), "cpu"), validation_of(recipe, folder, encoder)
    before = measure(model)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(0.5)  # in place, as an optimiser does
    after = measure(model)
    assert len(made) == 1
    assert after.figures == validation_of(recipe, folder, encoder)(model).figures
    assert after.figures["valid_nll"] != pytest.approx(before.figures["valid_nll"], rel=1e-3)
