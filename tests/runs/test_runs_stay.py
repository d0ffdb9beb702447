"""A run stays what it was: what later commands are given changes neither its recipe nor its data,
and what it was trained with holds on."""

import json

import pytest
from typer.testing import CliRunner

from llmrec.cli import app
from llmrec.errors import LlmrecError
from llmrec.recipe.keys import default_at
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder, open_run
from llmrec.runs.made import adapter


def cli(*arguments):
    """A command as it is called; raises what it raises."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def named(error):
    """The keys that a refusal names."""
    lines = str(error.value).splitlines()
    return {line.split(":")[0].strip() for line in lines if line.startswith("  ")}


def recommended(recipe_of, *overrides):
    """A run of baselines with predictions; its folder."""
    recipe, folder = recipe_of("systems=[popularity, markov]", *overrides)
    from llmrec.stages import recommend

    recommend.run(recipe, folder)
    folder.keep(recipe)
    return folder


def test_no_override_of_a_later_command_rewrites_the_recipe(trained, caplog):
    _, folder = trained
    before = folder.recipe.read_bytes()
    with caplog.at_level("INFO", "llmrec"):
        cli("prepare", folder.root, "prompt.max_history=2", "prompt.domain=product")
    assert folder.recipe.read_bytes() == before
    assert "another prompt.domain, prompt.max_history" in caplog.text
    cli("train", folder.root, "train.logging_steps=3")
    assert folder.recipe.read_bytes() == before


def test_another_evaluation_does_not_change_the_next_plain_one(recipe_of):
    folder = recommended(recipe_of)
    before = folder.recipe.read_bytes()
    cli("evaluate", folder.root, "evaluate.k=[3]")
    assert json.loads(folder.metrics.read_text())["evaluate"]["k"] == [3]
    assert folder.recipe.read_bytes() == before
    cli("evaluate", folder.root)
    assert json.loads(folder.metrics.read_text())["evaluate"]["k"] == [1, 5]


def test_weights_answer_to_no_prompt_they_were_not_trained_on(trained):
    _, folder = trained
    with pytest.raises(LlmrecError, match="adapter was made with other settings") as error:
        cli("recommend", folder.root, "systems=[tuned]", "prompt.max_history=2")
    assert named(error) == {"prompt.max_history"}
    assert not folder.predictions("tuned").exists()


def test_data_that_weights_were_trained_on_is_not_replaced_by_other(trained):
    _, folder = trained
    before = {path.name: path.read_bytes() for path in folder.data.iterdir()}
    with pytest.raises(LlmrecError, match="adapter was trained on other data") as error:
        cli("prepare", folder.root, "data.subset.train=5")
    assert named(error) == {"data.subset.train"}
    assert {path.name: path.read_bytes() for path in folder.data.iterdir()} == before
    cli("prepare", folder.root, "data.subset.test=5")  # no weight has read a test example


def test_what_a_run_was_trained_with_holds_where_the_recipe_is_given_again(
    recipe_of, tmp_path, caplog
):
    recipe_of()
    file = tmp_path / "small.yaml"
    cli("train", file, "train.num_train_epochs=1", "train.weight_decay=0.1")
    with caplog.at_level("INFO", "llmrec"):
        assert json.loads(cli("train", file, "--json"))["skipped"]
    assert "was trained with train.num_train_epochs=1 train.weight_decay=0.1" in caplog.text
    recipe, folder = open_run(str(file), ["decode.top_k=3"])
    assert recipe.train["weight_decay"] == 0.1
    assert recipe.decode.top_k == 3
    assert load(folder.recipe).decode.top_k == 6
    with pytest.raises(LlmrecError) as error:
        cli("train", file, "train.weight_decay=0")
    assert named(error) == {"train.weight_decay"}
    file.write_text(file.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    assert "weight_decay" not in open_run(str(file), [])[0].train  # the file counts
    with pytest.raises(LlmrecError) as error:
        cli("train", file)
    assert "train.learning_rate" in named(error)


def test_a_run_that_is_only_prepared_follows_the_recipe(recipe_of, tmp_path):
    _, folder = recipe_of()
    file = tmp_path / "small.yaml"
    cli("prepare", file, "data.subset.train=5")
    assert load(folder.recipe).data.subset.train == 5
    cli("prepare", file)
    assert load(folder.recipe).data.subset.train is None


def test_a_path_of_the_command_line_holds_from_any_folder(recipe_of, tmp_path, monkeypatch):
    _, folder = recipe_of()
    file = tmp_path / "small.yaml"
    from llmrec.recipe import shipped

    (tmp_path / "own.jinja").write_text(shipped.prompt_text("next_item/movie"))
    monkeypatch.chdir(tmp_path)
    cli("train", file, "prompt.file=own.jinja", "train.num_train_epochs=1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_run(str(file), [])[0].prompt.file == str(tmp_path / "own.jinja")
    assert RunFolder(folder.root).trained().keys() == {"adapter"}


def test_weights_stand_when_recipes_get_a_new_key_that_stands_at_its_default(trained):
    recipe, folder = trained
    made = adapter(recipe, folder)
    key = made.facts_or_none()["settings"]
    later = ("model.lora.layers", "objective.listwise", "seed")
    before = {name: value for name, value in key.items() if name not in later}
    assert made.fits({"settings": before}, folder.adapter)
    other = adapter(recipe.model_copy(update={"seed": 5}), folder)
    with pytest.raises(LlmrecError, match=r"seed: \(not there\) -> 5"):
        other.fits({"settings": before}, folder.adapter)
    lacking = {name: value for name, value in key.items() if name != "prompt template"}
    with pytest.raises(LlmrecError, match=r"prompt template: \(not there\)"):
        made.fits({"settings": lacking}, folder.adapter)


@pytest.mark.parametrize(
    ("path", "default"),
    [
        ("seed", 0),
        ("model.lora.r", 8),
        ("soft", None),
        ("soft.schedule", "adaptive"),
        ("data.ties", "source_row"),
    ],
)
def test_the_default_of_a_key_is_that_of_its_section(path, default):
    assert default_at(path) == default


@pytest.mark.parametrize("path", ["sed", "model.lora.rank", "seed.more", "prompt template"])
def test_what_is_no_key_has_no_default(path):
    with pytest.raises(KeyError):
        default_at(path)
