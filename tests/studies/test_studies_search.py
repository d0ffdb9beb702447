"""`llmrec train --tune`: what validation says is what is searched by, and a search goes on."""

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("optuna")

from llmrec.cli import app
from llmrec.errors import LlmrecError, RecipeError
from llmrec.recipe.loading import dump
from llmrec.stages import pipeline
from llmrec.studies import search
from llmrec.studies.search import Space


@pytest.fixture
def recipe_file(tmp_path, recipe_of):
    path = tmp_path / "tuned.yaml"
    path.write_text(dump(recipe_of("systems=[tuned]")[0]), "utf-8")
    return path


@pytest.fixture
def trained(monkeypatch):
    """Training is a curve with its lowest point at a learning rate of 0.01 and r = 8."""
    tried = []

    def curve(recipe, folder):
        rate, r = recipe.train["learning_rate"], recipe.model.lora.r
        tried.append((rate, r, folder.root.name))
        return {"step": 1, "valid_nll": (rate - 0.01) ** 2 * 1e4 + abs(r - 8)}

    monkeypatch.setattr(pipeline, "train", curve)
    return tried


SPACES = ["train.learning_rate=1e-4..1e-1:log", "model.lora.r=2,8"]


def test_the_best_in_validation_is_found_and_told(recipe_file, tmp_path, trained):
    command = ["train", str(recipe_file), "--trials", "12", "--json"]
    for one in SPACES:
        command += ["--tune", one]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["trials"] == 12 == len(trained)
    value = {name: (rate - 0.01) ** 2 * 1e4 + abs(r - 8) for rate, r, name in trained}
    assert found["valid_nll"] == pytest.approx(min(value.values()))
    assert found["best"]["model.lora.r"] == 8
    assert found["run"].endswith(min(value, key=value.get))
    assert all(1e-4 <= rate <= 1e-1 for rate, *_ in trained)
    kept = json.loads((tmp_path / "runs" / "small-tune" / "tuned.json").read_text("utf-8"))
    assert kept["best"] == found["best"]


def test_an_interrupted_search_goes_on_in_its_trial_and_more_trials_are_added(
    recipe_file, trained, monkeypatch
):
    search.run(str(recipe_file), [], SPACES, 3)
    real = pipeline.train

    def killed(recipe, folder):
        real(recipe, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            search.run(str(recipe_file), [], SPACES, 6)
    assert len(trained) == 4
    found = search.run(str(recipe_file), [], SPACES, 6)
    assert found["trials"] == 6
    assert len(trained) == 7
    assert trained[4] == trained[3]  # the very same values, in the very same folder
    assert search.run(str(recipe_file), [], SPACES, 6)["best"] == found["best"]
    assert len(trained) == 7


def test_a_trial_that_fails_is_told_and_the_others_go_on(recipe_file, trained, monkeypatch):
    real = pipeline.train

    def some_fail(recipe, folder):
        if recipe.model.lora.r == 2:
            raise LlmrecError("the loss is no number")
        return real(recipe, folder)

    monkeypatch.setattr(pipeline, "train", some_fail)
    found = search.run(str(recipe_file), [], SPACES, 4)
    assert found["trials"] == 4
    assert set(found["failed"]) <= {"the loss is no number"}
    assert found["best"]["model.lora.r"] == 8


def test_a_real_training_is_tuned_by_its_own_validation(recipe_file):
    overrides = ["train.max_steps=2", "train.eval_steps=2"]
    found = search.run(str(recipe_file), overrides, ["train.learning_rate=0.0001,0.03"], 2)
    assert found["trials"] == 2
    assert found["valid_nll"] > 0


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("model.lora.r=4,8", Space("model.lora.r", (4, 8))),
        ("a.b=1..8", Space("a.b", (), 1, 8)),
        ("a.b=0.5..2", Space("a.b", (), 0.5, 2)),
        ("a.b=1e-5..1e-3:log", Space("a.b", (), 1e-5, 1e-3, True)),
        ("a.b=x,y", Space("a.b", ("x", "y"))),
    ],
)
def test_spaces(text, space):
    assert Space.parse(text) == space


@pytest.mark.parametrize(
    "text", ["a.b", "a.b=", "a.b=1", "a.b=1,1", "a.b=3..1", "a.b=0..1:log", "a.b=x..y", "a.b=1,,2"]
)
def test_what_is_no_space(text):
    with pytest.raises(RecipeError, match=r"--tune a.b.*written section.key"):
        Space.parse(text)


def test_a_key_that_the_recipe_does_not_take_is_told_first(recipe_file, tmp_path):
    with pytest.raises(RecipeError, match=r"did you mean train\.learning_rate"):
        search.run(str(recipe_file), [], ["train.learning_rat=1,2"], 2)
    with pytest.raises(RecipeError, match=r"model\.lora\.r"):
        search.run(str(recipe_file), [], ["model.lora.r=0..4"], 2)
    with pytest.raises(RecipeError, match="every key once"):
        search.run(str(recipe_file), [], ["model.lora.r=1,4", "model.lora.r=2,3"], 2)
    assert not (tmp_path / "runs").exists()
