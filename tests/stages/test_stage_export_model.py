"""A model for machines without the run: plain transformers gives what the run recommends."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from llmrec import Recommender
from llmrec.cli import app
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.fetch import known
from llmrec.inference.exported import Exported
from llmrec.runs.folder import open_run
from llmrec.stages import evaluate, export_model, recommend


@pytest.fixture(scope="module")
def exported(_trained_once, tmp_path_factory):
    """A run with a table, and its model's folder."""
    import shutil

    root = shutil.copytree(_trained_once, tmp_path_factory.mktemp("run") / "small")
    recipe, folder = open_run(str(root), ["systems=[popularity,tuned]"])
    recommend.run(recipe, folder)
    evaluate.run(recipe, folder)
    done = export_model.run(recipe, folder)
    return recipe, folder, folder.root / "export" / "model", done


def test_plain_generate_gives_the_runs_beams(exported):
    _, folder, place, _ = exported
    histories = [["i0", "Dark City"], ["Love"]]  # of unequal length: padded in front
    ours = Recommender.from_pretrained(
        folder.root, "tuned", ["decode.search=beam", "decode.beams=5", "decode.top_k=5"]
    ).recommend(histories, 5)
    loaded = Exported.from_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place)
    theirs = loaded.recommend(model, histories, 5)
    for user, found in enumerate(theirs):
        rows = [r for r in ours.to_pylist() if r["user"] == str(user)]
        assert [(i, t) for i, t, _ in found] == [(r["item_id"], r["title"]) for r in rows]
        scores = [score for *_, score in found]
        assert scores == pytest.approx([r["score"] for r in rows], abs=1e-3)


def test_merged_weights_are_base_and_adapter(exported):
    recipe, folder, place, _ = exported
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(recipe.model.base)
    tuned = PeftModel.from_pretrained(base, folder.adapter).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(place)("Dark Star").input_ids])
    merged = AutoModelForCausalLM.from_pretrained(place)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, rtol=1e-3, atol=1e-3)
    assert merged.config.use_cache


def test_no_path_of_this_machine_is_in_the_folder(exported):
    recipe, folder, place, _ = exported
    here = {str(folder.root), str(folder.root.parent), recipe.model.base, recipe.data.source}
    here |= {recipe.output_dir}
    texts = [p for p in place.rglob("*") if p.suffix in (".json", ".md", ".jinja")]
    assert len(texts) > 5
    for path in texts:
        text = path.read_text("utf-8")
        assert not [one for one in here if one in text], path


def test_the_card_has_the_table_and_what_it_was_made_from(exported):
    _, folder, place, done = exported
    card = (place / "README.md").read_text("utf-8")
    assert "| system" in card
    assert "HR@5, n = 24" in card
    assert folder.data_hash() in card
    assert "k_core" not in card  # a default
    assert "max_history: 4" in card
    facts = json.loads((place / "llmrec.json").read_text("utf-8"))
    assert facts["provenance"]["data"] == folder.data_hash()
    assert done["megabytes"] > 0
    config = json.loads((place / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == facts["base"]["name"]


def test_a_known_base_is_named_by_its_repository_and_commit(exported):
    recipe, *_ = exported
    [name] = [n for n in known.MODELS if n.startswith("smollm2")]
    of_known = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": name})})
    assert export_model._base(of_known) == {
        "name": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
        "on_hub": True,
    }


def test_a_model_is_uploaded_whole_and_private(exported, monkeypatch):
    recipe, folder, place, _ = exported
    asked = []

    class Hub:
        def create_repo(self, repository, **how):
            asked.append((repository, how))

        def upload_folder(self, **how):
            asked.append(how)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    done = export_model.run(recipe, folder, push="me/mine")
    assert done["pushed"] == "https://huggingface.co/me/mine"
    assert asked[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert (asked[1]["repo_id"], asked[1]["folder_path"]) == ("me/mine", str(place))

    class Refusing(Hub):
        def create_repo(self, repository, **how):
            raise OSError("no token")

    monkeypatch.setattr("huggingface_hub.HfApi", Refusing)
    with pytest.raises(LlmrecError, match=r"did not take it \(no token\); log in"):
        export_model.run(recipe, folder, push="me/mine")


def test_what_is_refused(exported, tmp_path):
    recipe, folder, _, _ = exported
    with pytest.raises(RecipeError, match="written OWNER/NAME"):
        export_model.run(recipe, folder, push="mine")
    with pytest.raises(RecipeError, match="a model that was trained"):
        export_model.run(recipe, folder, system="markov")
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(DataError, match="holds other things"):
        export_model.run(recipe, folder, tmp_path)
    assert (tmp_path / "notes.txt").is_file()
    with pytest.raises(DataError, match="is no model that llmrec exported"):
        Exported.from_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["export", str(folder.root), "--push", "me/mine"])
    assert isinstance(done.exception, RecipeError)
    with pytest.raises(DataError, match="'Nobody' is no item"):
        Exported.from_pretrained(folder.root / "export" / "model").positions(["Nobody"])
