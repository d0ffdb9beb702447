"""Scores of targets do not hang on the batches, and what all prompts begin with is read once."""

import numpy as np
import pytest

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.inference.engine import Engine
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.model.loading import load_model
from llmrec.stages import prepare
from llmrec.systems.recommender import Recommender


@pytest.fixture
def small(recipe_of):
    recipe, folder = recipe_of()
    prepare.run(recipe, folder)
    return recipe, folder, load_model(base_of(recipe), "cpu")


def beginning_of_all(prompts):
    """How many tokens all prompts begin with alike."""
    size = 0
    while len({tuple(p[: size + 1].tolist()) for p in prompts}) == 1:
        size += 1
    return size


def passes_from_the_start(model):
    """A list that fills with the rows and columns of each pass whose rows begin at position 0."""
    widths = []

    def note(_, __, named):
        places = named["position_ids"]
        if (places[:, 0] == 0).all():
            widths.append(tuple(places.shape))

    return widths, model.model.register_forward_pre_hook(note, with_kwargs=True)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_paths_are_scored_behind_a_beginning_that_is_read_once(small, size):
    recipe, folder, model = small
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    valid = Examples.read(folder.examples("valid"))
    histories = valid.histories()
    prompts = [encoder.prompt(history).ids for history in histories]
    begun = beginning_of_all(prompts)
    assert begun * (len(valid) - 1) >= 64  # or else it would not be read apart

    engine = Engine(model, encoder, recipe.decode.model_copy(update={"batch_size": size}))
    widths, handle = passes_from_the_start(model)
    found = engine.nll(prompts, histories, valid.targets)
    handle.remove()
    assert widths == [(1, begun)]
    alone = [
        engine.nll(prompts[i : i + 1], histories[i : i + 1], valid.targets[i : i + 1])[0]
        for i in range(len(valid))
    ]
    np.testing.assert_allclose(found, alone, rtol=1e-4)


def test_a_recommender_reads_the_beginning_once_for_all_its_batches(small):
    recipe, folder, model = small
    catalog = Catalog.read(folder.items)
    asked = Recommender(recipe, folder, "untuned", model)
    histories = [[catalog.titles[i]] for i in range(12)]
    widths, handle = passes_from_the_start(model)
    table = asked.recommend(histories, top_k=3)
    handle.remove()
    encoder = encoder_of(recipe, catalog)
    begun = beginning_of_all([encoder.prompt([i]).ids for i in range(12)])
    assert widths == [(1, begun)]
    for user, history in enumerate(histories):
        alone = asked.recommend([history], top_k=3)
        ours = table.filter(np.array(table["user"].to_pylist()) == str(user))
        assert ours["item_id"].to_pylist() == alone["item_id"].to_pylist()
        np.testing.assert_allclose(ours["score"], alone["score"], rtol=1e-4)
