"""Free answers grounded by embeddings, as systems of a run and as validation."""

import json

import numpy as np
import pytest

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import RecipeError
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.engine import Engine
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.inference.grounded import TextGrounding
from llmrec.inference.title_states import item_states
from llmrec.model.kept_weights import read_log
from llmrec.model.loading import load_model
from llmrec.model.states import text_states
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import evaluate, pipeline, recommend, train

SHORT = ("decode.grounding.beams=2", "decode.grounding.max_new_tokens=5")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def trained(recipe_of):
    recipe, folder = recipe_of(
        *SHORT, "systems=[markov, untuned_grounded, tuned_grounded]", "train.num_train_epochs=1"
    )
    train.run(recipe, folder)
    return recipe, folder


def pieces(recipe, folder):
    return (
        encoder_of(recipe, Catalog.read(folder.items)),
        load_model(base_of(recipe), "cpu"),
        Examples.read(folder.examples("test")),
    )


def test_grounded_systems_rank_what_is_nearest_to_what_was_written(trained):
    recipe, folder = trained
    recommend.run(recipe, folder)
    encoder, model, test = pieces(recipe, folder)
    answers = Predictions.read(folder.predictions("untuned_grounded"))
    assert np.isnan(answers.nll).all()
    place, engine = TextGrounding(recipe, encoder), Engine(model, encoder, recipe.decode)
    table = text_states(model, [encoder.standing_alone(title) for title in encoder.titles])
    for i in range(len(test)):
        (text,) = place.written(engine, [encoder.prompt(test.history(i)).ids])
        state = text_states(model, [encoder.standing_alone(text)])[0]
        distances = np.sqrt(((table.astype(float) - state) ** 2).sum(axis=1))
        distances[test.history(i)] = np.inf
        expected = np.argsort(distances, kind="stable")[: len(answers.ranking(i))]
        found = answers.ranking(i)
        np.testing.assert_allclose(distances[found], distances[expected], rtol=1e-4)
        assert not set(found.tolist()) & set(test.history(i).tolist())
    tuned = Predictions.read(folder.predictions("tuned_grounded"))
    assert tuned.info.provenance["settings"]["weights"]
    evaluated = evaluate.run(recipe, folder)
    assert evaluated


def test_fusion_chooses_its_weight_in_validation(trained):
    recipe, folder = trained
    grounding = recipe.decode.grounding.model_copy(update={"fusion": "markov", "grid": [0, 1, 50]})
    fused = recipe.model_copy(
        update={
            "decode": recipe.decode.model_copy(update={"grounding": grounding}),
            "systems": ["tuned_grounded"],
        }
    )
    recommend.run(fused, folder)
    said = Predictions.read(folder.predictions("tuned_grounded")).info.hyperparameters
    assert set(said["valid_ndcg"]) == {"0", "1", "50"}
    assert said["valid_ndcg"][f"{said['gamma']:g}"] == max(said["valid_ndcg"].values())
    assert not list(folder.predictions("x").parent.glob(".parts/*/*"))


def test_the_table_is_kept_checked_and_made_again_for_other_titles(trained, monkeypatch, tmp_path):
    recipe, folder = trained
    encoder, model, _ = pieces(recipe, folder)
    table = np.array(item_states(recipe, encoder, model))
    (path,) = (tmp_path / "cache" / "states").glob("*.npy")
    with monkeypatch.context() as patch:
        patch.setattr("llmrec.inference.title_states.text_states", None)  # calling it would fail
        assert np.array_equal(item_states(recipe, encoder, model), table)
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    assert np.array_equal(item_states(recipe, encoder, model), table)
    encoder.titles = [*encoder.titles[:-1], "Something else"]
    assert not np.array_equal(item_states(recipe, encoder, model), table)
    assert len(list((tmp_path / "cache" / "states").glob("*.npy"))) == 2


def test_weights_can_be_chosen_by_grounding(recipe_of):
    recipe, folder = recipe_of(
        *SHORT, "validation.metric=ndcg", "validation.answer=grounding", "validation.k=3"
    )
    train.run(recipe, folder)
    found = [line for line in read_log(folder.train_log) if "score" in line]
    assert all(0 <= line["valid_ndcg@3"] <= line["valid_hr@3"] <= 1 for line in found)
    best = min(found, key=lambda line: line["score"])
    known = json.loads((folder.adapter / "manifest.json").read_text("utf-8"))
    assert known["step"] == best["step"]


@pytest.mark.parametrize(
    "override",
    ["decode.grounding.gamma=-1", "decode.grounding.fusion=tgh", "decode.grounding.grid=[]"],
)
def test_settings_that_cannot_be_are_refused(recipe_of, override):
    with pytest.raises(RecipeError, match=r"decode\.grounding"):
        recipe_of(override)


def test_the_papers_protocol_runs_through_on_reviews_like_amazons(tmp_path, tiny_base):
    """The shipped recipe for a GPU, its data and model made small and nothing else changed."""
    reviews = tmp_path / "Video_Games.jsonl"
    with reviews.open("w", encoding="utf-8") as stream:
        for user in range(30):
            for step in range(14):
                stream.write(
                    json.dumps(
                        {
                            "user_id": f"u{user}",
                            "parent_asin": f"g{(user + step) % 16}",
                            "rating": 5.0,
                            "timestamp": 1000 * (user + step),
                            "title": "Great",
                            "text": "Fun",
                        }
                    )
                    + "\n"
                )
    with (tmp_path / "meta_Video_Games.jsonl").open("w", encoding="utf-8") as stream:
        for item in range(16):
            stream.write(json.dumps({"parent_asin": f"g{item}", "title": f"Star {item}"}) + "\n")
    recipe = load(
        "soft_video_games",
        [
            f"data.source={reviews}",
            f"output_dir={tmp_path / 'runs'}",
            "data.subset.train=24",
            "data.subset.valid=6",
            "data.subset.test=8",
            f"model.base={tiny_base}",
            "model.dtype=float32",
            "train.num_train_epochs=1",
            "train.gradient_accumulation_steps=1",
            "soft.probe=4",
            "soft.distill.max_new_tokens=4",
            "decode.grounding.max_new_tokens=4",
            "prompt.max_tokens=400",
            "evaluate.samples=100",
            "train.dataloader_pin_memory=false",
            "systems=[popularity, tuned_grounded]",
        ],
    )
    folder = RunFolder.of(recipe)
    pipeline.run(recipe, folder)
    assert folder.report.exists()
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    assert metrics["evaluate"]["k"] == [1, 5, 10, 20, 50]
    assert set(metrics["systems"]) == {"popularity", "tuned_grounded"}
    logged = [line for line in read_log(folder.train_log) if "score" in line]
    assert "valid_hr@10" in logged[0]
