"""The run folder: where files lie, how a run is opened, what numbers rest on."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmrec.errors import RecipeError
from llmrec.fetch.cache import MANIFEST
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder, open_run, recipe_hash

MINIMAL = "name: mine\ndata: {source: ml-100k}\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    return tmp_path


def test_paths_are_those_of_the_contract():
    folder = RunFolder(Path("runs/x"))
    found = [
        folder.recipe,
        folder.items,
        folder.interactions,
        folder.examples("valid"),
        folder.adapter,
        folder.checkpoints,
        folder.train_log,
        folder.predictions("markov"),
        folder.metrics,
        folder.per_user,
        folder.report,
    ]
    assert [path.relative_to("runs/x").as_posix() for path in found] == [
        "recipe.yaml",
        "data/items.parquet",
        "data/interactions.parquet",
        "data/valid.parquet",
        "adapter",
        "checkpoints",
        "train_log.jsonl",
        "predictions/markov.parquet",
        "metrics.json",
        "per_user.parquet",
        "report.html",
    ]
    with pytest.raises(ValueError, match="none of train, valid, test"):
        folder.examples("validation")


def test_a_run_is_opened_by_recipe_and_then_by_folder(here):
    recipe, folder = open_run("mine.yaml", ["seed=3"])
    assert folder.root == Path("runs/mine")
    folder.keep(recipe)
    again, same = open_run("runs/mine", [])
    assert again == recipe
    assert same.root == folder.root
    assert open_run("runs/mine", ["seed=4"])[0].seed == 4


def test_a_folder_without_a_recipe_is_no_run(here):
    (here / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"holds no recipe\.yaml"):
        open_run("empty", [])


def test_a_folder_named_like_a_shipped_recipe_does_not_hide_it(here):
    (here / "demo").mkdir()
    assert open_run("demo", [])[1].root == Path("runs/demo")


def test_the_hash_is_of_what_is_done_not_of_where(here):
    one = load("mine.yaml")
    assert recipe_hash(one) == recipe_hash(load("mine.yaml", ["name=other", "output_dir=out"]))
    assert recipe_hash(one) != recipe_hash(load("mine.yaml", ["seed=1"]))
    assert recipe_hash(one) != recipe_hash(load("mine.yaml", ["train.learning_rate=1e-4"]))


def test_provenance_names_data_model_and_versions(here):
    recipe, folder = open_run("mine.yaml", [])
    known = folder.provenance(recipe)
    assert known["data"] is None
    assert known["model"] == {"base": "smollm2-135m-instruct", "revision": None}
    folder.data.mkdir(parents=True)
    (folder.data / "manifest.json").write_text('{"outputs": {"a": {"sha256": "f"}}}')
    cached = here / "cache" / "models" / "smollm2-135m-instruct"
    cached.mkdir(parents=True)
    (cached / MANIFEST).write_text(
        json.dumps(
            {
                "source": {"kind": "hub", "repository": "o/m", "revision": "abc"},
                "files": {"model.safetensors": {"sha256": "f00"}},
            }
        )
    )
    known = folder.provenance(recipe)
    assert known["data"] == hashlib.sha256(b"a f").hexdigest()
    assert known["model"] == {
        "base": "smollm2-135m-instruct",
        "revision": "abc",
        "source": "hub: o/m",
        "weights": "f00",
    }
    assert known["seed"] == 0
    assert known["packages"]["torch"]
    assert json.dumps(known)


def test_provenance_of_a_hub_id_is_the_commit_it_stood_for(here, monkeypatch):
    hub = here / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    recipe = load("mine.yaml", ["model.base=owner/model"])
    folder = RunFolder.of(recipe)
    assert folder.provenance(recipe)["model"]["revision"] == "main"
    references = hub / "models--owner--model" / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text("0123abc")
    assert folder.provenance(recipe)["model"]["revision"] == "0123abc"


def test_provenance_needs_no_torch():
    program = (
        "import sys; from llmrec.runs.folder import open_run;"
        "r, f = open_run('demo', []); f.provenance(r);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
