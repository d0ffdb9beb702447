"""`llmrec train --sweep`: a study of one axis, for a language model and for a network."""

import json

import pytest
from typer.testing import CliRunner

from llmrec.cli import app
from llmrec.errors import RecipeError
from llmrec.methods.soft.answer_file import FILE
from llmrec.model.kept_weights import read_log
from llmrec.recipe.loading import dump
from llmrec.runs.folder import RunFolder
from llmrec.studies import sweep

SOFT = (
    "objective.name=msl",
    "soft.probe=4",
    "systems=[tuned]",
    "train.eval_strategy=epoch",
    "train.save_strategy=epoch",
)
NETWORK = (
    "network.hidden=8",
    "network.max_epochs=2",
    "conformal.max_epochs=1",
    "conformal.learning_rate=0.001",
    "systems=[network,network_cpft]",
)


@pytest.fixture
def recipe_file(tmp_path, recipe_of):
    """A function from overrides to the file of a small recipe."""

    def make(*overrides):
        path = tmp_path / "swept.yaml"
        path.write_text(dump(recipe_of(*overrides)[0]), "utf-8")
        return path

    return make


def test_a_sweep_over_a_networks_recipe_trains_every_value_on_one_base(recipe_file, tmp_path):
    path = recipe_file(*NETWORK)
    done = CliRunner().invoke(app, ["train", str(path), "--sweep", "conformal.beta=1,10"])
    assert done.exit_code == 0, done.output
    assert "Validation" in done.stdout
    assert "cpft valid_ndcg@10" in done.stdout
    found = sweep.run(str(path), [], "conformal.beta=1,10")
    assert [line["conformal.beta"] for line in found["reached"]] == [1, 10]
    one, two = (
        RunFolder(tmp_path / f"runs/small-conformal.beta/small-beta-{b}-s0") for b in (1, 10)
    )
    weights = [folder.network("base") / "model.safetensors" for folder in (one, two)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    tuned = [folder.network("cpft") / "model.safetensors" for folder in (one, two)]
    assert tuned[0].read_bytes() != tuned[1].read_bytes()
    for line in found["reached"]:
        assert {"base epoch", "base valid_ndcg@10", "cpft epoch", "cpft valid_ndcg@10"} <= set(line)


def test_a_sweep_distils_once_and_trains_each_value(recipe_file, tmp_path, caplog):
    caplog.set_level("INFO", "llmrec")
    path = recipe_file(*SOFT)
    found = sweep.run(str(path), [], "soft.alpha=0.1,100")
    assert [line["soft.alpha"] for line in found["reached"]] == [0.1, 100]
    runs = [
        RunFolder(tmp_path / f"runs/small-soft.alpha/small-alpha-{alpha}-s0")
        for alpha in ("0.1", "100")
    ]
    assert [line["run"] for line in found["reached"]] == [str(own.root) for own in runs]
    told = [record.getMessage() for record in caplog.records]
    assert sum("answers in" in text for text in told) == 1
    assert sum(text.startswith("prepare: reading") for text in told) == 1
    for own in runs:
        assert own.recipe.exists()
        assert own.adapter.exists()
        assert (own.answers / FILE).read_bytes() == (runs[0].answers / FILE).read_bytes()
    shares = [
        next(x["lambda"] for x in read_log(own.train_log) if x.get("epoch") == 1 and "lambda" in x)
        for own in runs
    ]
    assert shares[0] > shares[1]
    assert sweep.run(str(path), [], "soft.alpha=0.1,100")["reached"] == found["reached"]


@pytest.mark.parametrize(
    ("swept", "said"),
    [
        ("soft.alpha", "written"),
        ("soft.alpha=1,,2", "written"),
        ("soft.alpha=1,1", "once"),
        ("soft.alpha=1,x", "soft.alpha"),
        ("soft.alhpa=1,2", "did you mean soft.alpha"),
    ],
)
def test_a_wrong_sweep_is_told_before_anything_is_trained(recipe_file, tmp_path, swept, said):
    path = recipe_file(*SOFT)
    with pytest.raises(RecipeError, match=said):
        sweep.run(str(path), [], swept)
    assert not (tmp_path / "runs").exists()


def test_several_keys_make_a_grid(recipe_file, tmp_path):
    path = recipe_file(*NETWORK)
    swept = ("conformal.beta=1,10", "conformal.learning_rate=0.001,0.01")
    command = ["train", str(path), "--json"]
    for one in swept:
        command += ["--sweep", one]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    reached = json.loads(done.stdout)["reached"]
    found = [(line["conformal.beta"], line["conformal.learning_rate"]) for line in reached]
    assert found == [(1, 0.001), (1, 0.01), (10, 0.001), (10, 0.01)]
    with pytest.raises(RecipeError, match="and every key"):
        sweep.run(str(path), [], "conformal.beta=1,10", "conformal.beta=2,3")
