"""Code of others runs only where the command says so and the code is pinned; no pickle is read."""

import json
import shutil

import pytest

from llmrec.errors import LlmrecError, RecipeError
from llmrec.inference.from_recipe import base_of
from llmrec.model.loading import BaseModel, load_model, load_tokenizer
from llmrec.model.trust import code_hash
from llmrec.recipe.loading import dump, load
from llmrec.runs.folder import open_run

FLAG = "model.trust_remote_code=true"
DIGITS = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def coded(tmp_path, tiny_base):
    """A model folder with code of its own, which leaves a mark where it runs; the mark."""
    folder, mark = tmp_path / "coded", tmp_path / "mark"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "coded",
        "auto_map": {"AutoConfig": "coded.Config", "AutoModelForCausalLM": "coded.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "coded.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'coded'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    return folder, mark


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_recipe_file_cannot_have_code_run(tmp_path, coded):
    folder, mark = coded
    text = f"name: x\ndata: {{source: x.csv}}\nmodel: {{base: {folder}, revision: {DIGITS}, "
    file = written(tmp_path / "x.yaml", text + "trust_remote_code: true}\n")
    for overrides in ([], [FLAG]):  # the file is refused whatever the command says
        with pytest.raises(RecipeError, match=r"x\.yaml:3: model\.trust_remote_code is no setting"):
            load(file, overrides)
    assert not mark.exists()


@pytest.mark.parametrize("value", ["1", '"true"', "[]", "null", "on"])
def test_nor_by_another_spelling(value, tmp_path):
    text = f"name: x\ndata: {{source: x.csv}}\nmodel: {{trust_remote_code: {value}}}\n"
    with pytest.raises(RecipeError, match="no setting of a file"):
        load(written(tmp_path / "x.yaml", text))


def test_nor_a_run_folder_or_what_it_says_of_its_command_line(tmp_path, coded):
    folder, mark = coded
    text = f"name: x\noutput_dir: .\ndata: {{source: x.csv}}\nmodel: {{base: {folder}}}\n"
    run = tmp_path / "x"
    written(run / "recipe.yaml", text + "")
    settings, opened = open_run(str(run), [FLAG, f"model.revision={DIGITS}"])
    assert settings.model.trust_remote_code
    opened.keep(settings)  # what the next one goes on with
    assert "trust_remote_code" not in (run / "recipe.yaml").read_text()
    assert FLAG not in (run / "origin.json").read_text()
    assert not open_run(str(run), [])[0].model.trust_remote_code

    file = written(
        tmp_path / "given.yaml", text.replace("output_dir: .", f"output_dir: {tmp_path}")
    )
    _, opened = open_run(str(file), [])
    shutil.rmtree(run)
    hostile = {
        "file": opened.origin.file,
        "overrides": [FLAG, f"model.revision={DIGITS}"],
        "trained": {"adapter": "seal"},
    }
    written(run / "origin.json", json.dumps(hostile))
    with pytest.raises(RecipeError, match="no setting of a file"):
        open_run(str(file), [])
    assert not mark.exists()


def test_a_trusting_recipe_is_written_without_its_trust(tmp_path):
    file = written(tmp_path / "x.yaml", "name: x\ndata: {source: x.csv}\n")
    trusting = load(file, [FLAG, f"model.revision={DIGITS}"])
    assert not load(written(tmp_path / "y.yaml", dump(trusting))).model.trust_remote_code


def test_code_in_a_folder_runs_only_when_pinned(tmp_path, coded):
    folder, mark = coded
    with pytest.raises(LlmrecError, match="code of its own, which is not run"):
        load_model(BaseModel(str(folder)), "cpu")
    for wrong in (DIGITS, code_hash(folder)[::-1]):
        base = BaseModel(str(folder), wrong, trust_remote_code=True)
        for load_it in (load_tokenizer, load_model):
            with pytest.raises(RecipeError, match=f"model.revision={code_hash(folder)}"):
                load_it(base)
    assert not mark.exists()

    file = written(
        tmp_path / "x.yaml", f"name: x\ndata: {{source: x.csv}}\nmodel: {{base: {folder}}}"
    )
    pinned = load(file, [FLAG, f"model.revision={code_hash(folder)}"])
    assert type(load_model(base_of(pinned), "cpu")).__name__ == "Model"
    assert mark.exists()
    written(folder / "more" / "other.py", "")
    with pytest.raises(RecipeError, match="what pins its code"):
        load_model(base_of(pinned), "cpu")


@pytest.mark.parametrize("reference", ["owner/other--coded.Model", "../coded.Model", "/x.Model"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_elsewhere_is_refused(reference, file, coded):
    folder, mark = coded
    settings = json.loads((folder / file).read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, reference]}
    (folder / file).write_text(json.dumps(settings))
    base = BaseModel(str(folder), code_hash(folder), trust_remote_code=True)
    for load_it in (load_tokenizer, load_model):
        with pytest.raises(RecipeError, match="names code elsewhere"):
            load_it(base)
    assert not mark.exists()
