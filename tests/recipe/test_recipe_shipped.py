"""What comes with llmrec: recipes, prompts and accelerate files, in a checkout and in a wheel."""

import importlib

import pytest

from llmrec import PromptTemplate, shipped_files
from llmrec.errors import RecipeError
from llmrec.recipe import shipped


def test_a_checkout_and_a_wheel_are_told_apart(tmp_path, monkeypatch):
    assert (shipped.recipes() / "demo.yaml").is_file()
    package = tmp_path / "llmrec"
    (package / "shipped" / "recipes").mkdir(parents=True)
    monkeypatch.setattr(shipped_files, "_PACKAGE", package)
    assert shipped.recipes() == package / "shipped" / "recipes"
    assert shipped.prompts() == tmp_path / "prompts"


@pytest.mark.parametrize("name", shipped.accelerate_names())
def test_accelerate_reads_every_file(name):
    config_args = importlib.import_module("accelerate.commands.config.config_args")
    config = config_args.load_config_from_file(str(shipped.found(f"accelerate/{name}")))
    expected = {
        "cpu": "NO",
        "one_gpu": "NO",
        "ddp": "MULTI_GPU",
        "fsdp2": "FSDP",
        "zero2": "DEEPSPEED",
        "zero3": "DEEPSPEED",
    }
    assert config.distributed_type == expected[name]
    assert config.mixed_precision == "no"
    assert config.use_cpu is (name == "cpu")


def test_accelerate_knows_every_key_of_the_sections():
    launch = importlib.import_module("accelerate.commands.launch")
    config_args = importlib.import_module("accelerate.commands.config.config_args")
    known = {action.dest for action in launch.launch_command_parser()._actions}
    for name in shipped.accelerate_names():
        config = config_args.load_config_from_file(str(shipped.found(name)))
        assert set(config.fsdp_config) | set(config.deepspeed_config) <= known


def test_the_files_of_the_contract_are_there():
    expected = {"cpu", "one_gpu", "ddp", "fsdp2", "zero2", "zero3"}
    assert set(shipped.accelerate_names()) == expected
    for domain in ("movie", "book", "game", "music", "product"):
        assert f"next_item/{domain}" in shipped.prompt_names()


def test_a_template_by_its_name_and_as_a_file_of_ones_own(tmp_path):
    made = PromptTemplate.from_name("next_item/movie")
    text = "".join(span.text for span in made.prompt(["Love", "Red"]))
    assert "movies" in text
    assert made.name == "next_item/movie"
    path = shipped.prompt_copied("next_item/movie", tmp_path)
    assert path == tmp_path / "next_item_movie.jinja"
    assert PromptTemplate.from_file(path).source == made.source
    with pytest.raises(RecipeError, match="is there already"):
        shipped.prompt_copied("next_item/movie", path)
    with pytest.raises(RecipeError, match="no template 'next_item/moon'; there are "):
        PromptTemplate.from_name("next_item/moon")


def test_no_training_that_is_shipped_saves_by_epochs_alone():
    """An epoch may take days, and the default is every 100 steps."""
    from llmrec.recipe.loading import load
    from llmrec.stages.train import training_arguments_of

    for name in shipped.recipe_names():
        given = training_arguments_of(load(name, []))
        assert given["save_strategy"] == "steps", name
        assert 0 < given["save_steps"] <= 200, name
