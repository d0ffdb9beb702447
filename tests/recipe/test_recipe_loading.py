"""Reading recipes: overrides, paths, messages, all errors at once."""

import os

import pytest

from llmrec.errors import RecipeError
from llmrec.recipe.loading import check, dump, load, locate

MINIMAL = "name: x\ndata:\n  source: ml-100k\n"


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe and give its path."""

    def written(text=MINIMAL, name="recipe.yaml"):
        file = tmp_path / name
        file.write_text(text)
        return file

    return written


def errors(file, *overrides):
    with pytest.raises(RecipeError) as caught:
        load(file, overrides)
    return [line.strip().replace(f"{file}:", "") for line in str(caught.value).splitlines()[1:]]


def test_overrides_beat_the_recipe_and_the_recipe_the_defaults(recipe):
    file = recipe(MINIMAL + "train: {learning_rate: 1e-4, max_steps: 5}\nprompt: {form: chat}\n")
    loaded = load(
        file,
        [
            "train.learning_rate=2e-4",
            "decode.beams=20",
            "model.lora.r=4",
            "evaluate.k=[1, 3]",
            "name=y",
            "rows.count=null",
        ],
    )
    assert loaded.train["learning_rate"] == 2e-4
    assert loaded.train["max_steps"] == 5
    assert loaded.train["warmup_steps"] == 10
    assert loaded.prompt.form == "chat"
    assert loaded.prompt.max_history == 10
    assert loaded.decode.beams == 20
    assert loaded.model.lora.r == 4
    assert loaded.model.lora.alpha == 16
    assert loaded.evaluate.k == [1, 3]
    assert loaded.name == "y"


def test_an_override_reaches_into_a_section_that_is_null(recipe):
    file = recipe(MINIMAL + "model: {lora: null}\n")
    assert load(file).model.lora is None
    assert load(file, ["model.lora.r=4"]).model.lora.r == 4
    assert load(recipe(), ["model.lora=null"]).model.lora is None


def test_the_last_of_two_overrides_stands(recipe):
    assert load(recipe(), ["seed=1", "seed=2"]).seed == 2


def test_the_name_defaults_to_that_of_the_file(recipe):
    assert load(recipe("data: {source: ml-100k}\n", "mine.yaml")).name == "mine"


def test_all_errors_come_at_once_in_the_order_of_the_lines(recipe):
    file = recipe(
        "name: x\n"
        "data:\n"
        "  sorce: ml-100k\n"
        "  k_core: five\n"
        "train:\n"
        "  lr: 3\n"
        "  output_dir: here\n"
        "objective: {name: mls}\n"
        "objective: {name: sft}\n"
        "decode: {beams: 2}\n"
    )
    assert errors(file, "seed=-1", "oops", "evaluate.kk=3") == [
        "2: data.source is missing: A name that `llmrec fetch data` knows (ml-100k, ml-1m, "
        "amazon2023/CATEGORY), a file or folder (its part-* files too), a pattern of files, or "
        "hf://OWNER/NAME[/CONFIG][:SPLIT] of the Hugging Face Hub.",
        "3: unknown key data.sorce; did you mean data.source?",
        '4: data.k_core is "five"; allowed: a whole number, at least 0, at most 1000000000',
        "6: unknown key train.lr; did you mean train.learning_rate?",
        "7: train.output_dir cannot be set: checkpoints go to the run folder; set `output_dir` "
        "and `name` of the recipe",
        '8: objective.name is "mls"; allowed: one of sft, msl; did you mean msl?',
        "9: objective is given twice, first in line 8; keep one",
        "10: decode: 2 beams give at most 2 items, top_k asks for 10; raise beams, "
        "lower top_k or set decode.search=best_first",
        "command line, 'oops': overrides are written section.key=value, options start with --",
        "command line, 'evaluate.kk=3': unknown key evaluate.kk; did you mean evaluate.k?",
        "command line, 'seed=-1': seed is -1; allowed: a whole number, at least 0, below "
        "4294967296",
    ]


def test_an_unknown_key_far_from_all_lists_the_section(recipe):
    (message,) = errors(recipe(MINIMAL + "rows: {zebra: 1}\n"))
    assert message == "4: unknown key rows.zebra; section rows has: count, every, redraw, shape"


def test_long_values_are_cut(recipe):
    (message,) = errors(recipe(MINIMAL + f"seed: {'a' * 500}\n"))
    assert len(message) < 200


@pytest.mark.parametrize("override", ["", "=", "seed", "=3", ".=3", "data..k=3", "seed.x=3", "a=b"])
def test_broken_overrides_are_refused(recipe, override):
    assert len(errors(recipe(), override)) >= 1


def test_a_missing_data_section_is_named(recipe):
    (message,) = errors(recipe("seed: 1\n"))
    assert message.startswith("1: data is missing")


def test_an_empty_file_is_no_recipe(recipe):
    assert errors(recipe(""))


def test_paths_are_relative_to_the_recipe_and_overrides_to_the_folder(
    recipe, tmp_path, monkeypatch
):
    (tmp_path / "mine.csv").write_text("")
    (tmp_path / "model").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file = recipe(
        "data: {source: mine.csv, items: sub/items.csv}\n"
        "model: {base: ./model, adapter: a}\nprompt: {file: p.jinja}\n"
    )
    loaded = load(file)
    assert loaded.data.source == str(tmp_path / "mine.csv")
    assert loaded.data.items == str(tmp_path / "sub" / "items.csv")
    assert loaded.model.base == str(tmp_path / "model")
    assert loaded.model.adapter == str(tmp_path / "a")
    assert loaded.prompt.file == str(tmp_path / "p.jinja")
    assert loaded.output_dir == "runs"
    loaded = load(file, ["prompt.file=q.jinja", "data.source=./there"])
    assert loaded.prompt.file == str(elsewhere / "q.jinja")
    assert loaded.data.source == str(elsewhere / "there")


def test_names_stay_names(recipe):
    loaded = load(recipe("data: {source: ml-1m}\nmodel: {base: owner/model}\n"))
    assert (loaded.data.source, loaded.model.base) == ("ml-1m", "owner/model")


def test_home_is_expanded(recipe):
    loaded = load(recipe("data: {source: ~/x.csv}\n"))
    assert loaded.data.source == os.path.expanduser("~/x.csv")


def test_a_written_recipe_means_the_same_elsewhere(recipe, tmp_path, monkeypatch):
    (tmp_path / "mine.csv").write_text("")
    loaded = load(recipe("data: {source: mine.csv}\ntrain: {learning_rate: 1e-5}\n"))
    other = tmp_path / "runs" / "x"
    other.mkdir(parents=True)
    (other / "recipe.yaml").write_text(dump(loaded))
    monkeypatch.chdir("/")
    assert load(other / "recipe.yaml") == loaded
    assert load(other) == loaded


@pytest.mark.parametrize(
    "reference", ["sft_ml100k", "sft_ml100k.yaml", "recipes/sft_ml100k.yaml", "demo"]
)
def test_shipped_recipes_are_known_by_name(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(reference).is_file()


def test_a_file_of_ones_own_wins_over_a_shipped_one(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe(MINIMAL, "demo")
    assert load("demo").name == "x"


@pytest.mark.parametrize("reference", ["nothing", "a/b.yaml", "../demo", "", ".", "accelerate/ddp"])
def test_what_is_no_recipe_is_told_with_the_names_that_are(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="sft_ml100k"):
        locate(reference)


def test_check_tells_missing_files_and_cut_offs_beyond_top_k(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"prompt\.file: .*nope\.jinja does not exist"):
        check(recipe(MINIMAL + "prompt: {file: nope.jinja}\n"))
    found = check(recipe(MINIMAL + "evaluate: {k: [1, 50]}\n"))
    assert found["name"] == "x"
    assert "decode.top_k=50" in found["warnings"][0]
    assert check(recipe(MINIMAL + "evaluate: {k: [1]}\n"))["warnings"] == []
