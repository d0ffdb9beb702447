"""`llmrec retrieve` and `check leakage` as commands, and similar users for raw histories."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from llmrec import Recommender
from llmrec.cli import app
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import DataError, RecipeError
from llmrec.inference.similar_users import SimilarUsers, item_vectors
from llmrec.recipe.systems import System
from llmrec.stages import prepare, retrieve
from llmrec.systems.resources import Resources
from llmrec.systems.serving import RawPrompts, Requests

SHOWN = ("prompt.task=similar_users", "demonstrations.count=2", "demonstrations.history=3")


@pytest.fixture
def run(recipe_of):
    recipe, folder = recipe_of(*SHOWN)
    prepare.run(recipe, folder)
    folder.keep(recipe)
    return recipe, folder


def test_the_report_counts_how_often_a_user_found_chose_the_target(run):
    recipe, folder = run
    found = retrieve.run(recipe, folder, ["states"], fit=True)
    valid = Examples.read(folder.examples("valid"))
    pools = SimilarUsers(recipe, folder).of("valid", valid)
    own = [
        row
        for row in found["retrievers"]
        if (row["vectors"], row["ranked_by"]) == ("factors", "recipe")
    ]
    first = [
        bool(few) and few[0].chosen == target
        for few, target in zip(pools.neighbours, valid.targets, strict=True)
    ]
    assert own[0]["hits"]["1"]["mean"] == np.mean(first) > 0
    assert {row["vectors"] for row in found["retrievers"]} == {"factors", "states"}
    assert found["valid"]["prompts"] == found["examples"] == len(valid)
    assert found["fitted"]["value"] >= found["fitted"]["equal_weights"]
    assert sum(found["fitted"]["weights"].values()) == pytest.approx(1)
    assert json.loads((folder.similar / "report.json").read_text("utf-8"))["fitted"]
    assert all(row["agreement"]["examples"] == 0 for row in found["retrievers"])  # no ratings here
    text = retrieve.table(found)
    assert "rating agreement" in text
    assert all(name in text for name in ("jaccard", "lcs", "dtw"))
    assert f"{len(valid)} validation examples" in text


def test_fitted_weights_can_be_pasted_into_the_recipe(run, recipe_of):
    recipe, folder = run
    fitted = retrieve.run(recipe, folder, fit=True)["fitted"]["weights"]
    said = ", ".join(f"{name}: {weight:g}" for name, weight in fitted.items())
    pasted, _ = recipe_of(*SHOWN, f"demonstrations.similarity.weights={{{said}}}")
    assert pasted.demonstrations.similarity.weights.model_dump() == fitted


def test_what_cannot_be_retrieved_is_refused(recipe_of):
    recipe, folder = recipe_of()
    with pytest.raises(RecipeError, match="no section demonstrations"):
        retrieve.run(recipe, folder)
    recipe, folder = recipe_of(*SHOWN)
    with pytest.raises(RecipeError, match="--vectors words: there are factors, states, sentences"):
        retrieve.run(recipe, folder, ["words"])


def test_a_damaged_table_of_vectors_is_made_anew(run, caplog):
    recipe, folder = run
    before = item_vectors(recipe, folder, "factors")
    path = next(folder.similar.glob("items-factors-*.npy"))
    path.write_bytes(path.read_bytes()[:20])
    assert np.array_equal(item_vectors(recipe, folder, "factors"), before)
    assert "making" in caplog.text


def test_the_commands_print_a_table_and_a_verdict(run):
    _, folder = run
    asked = CliRunner().invoke(app, ["retrieve", str(folder.root)])
    assert asked.exit_code == 0
    assert "chose the target next, of 10" in asked.stdout
    clean = CliRunner().invoke(app, ["check", "leakage", str(folder.root), "--json"])
    assert clean.exit_code == 0
    assert json.loads(clean.stdout)["violations"] == 0
    test = Examples.read(folder.examples("test"))
    test.positions[:] = test.targets[0]
    test.write(folder.examples("test"))
    caught = CliRunner().invoke(app, ["check", "leakage", str(folder.root), "--json"])
    assert caught.exit_code == 1
    assert json.loads(caught.stdout)["violations"] > 0


def test_raw_histories_are_shown_similar_users_but_never_themselves(run):
    recipe, folder = run
    recommender = Recommender.from_pretrained(folder.root)
    history = ["Dark City", "Dark Star", "A Star"]
    titles = Catalog.read(folder.items).titles
    positions = np.array([titles.index(title) for title in history], np.int32)
    models = Resources(recipe, folder)
    prompts, engine = RawPrompts(models), models.language.engine(System("untuned"))
    plain, named = (prompts.of(Requests([positions], users), engine)[0] for users in (None, ["u0"]))
    text = prompts.encoder.tokenizer.decode(plain.tolist())
    assert text.count("Similar user") == 2
    finder = SimilarUsers(recipe, folder)
    now = np.array([np.iinfo(np.int64).max])
    no = np.zeros(1, bool)
    asked = Examples(
        np.array(["u0"], object), np.array([0, 3]), positions, np.zeros(1, np.int32), now, no, no
    )
    assert "u0" not in [n.user_id for n in finder.find(asked).neighbours[0]]
    assert len(named)
    table = recommender.recommend([history, []], top_k=3)
    assert table.num_rows == 6
    with pytest.raises(DataError, match="neither an item id nor a title"):
        recommender.recommend([["No Such Film At All"]])
