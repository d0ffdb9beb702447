"""Command lines as people of other programs write them, and what a shell completes."""

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from llmrec.cli import app
from llmrec.cli_habits import keys, own_words, recipes
from llmrec.errors import RecipeError

VERBS = typer.main.get_command(app)


@pytest.mark.parametrize(
    ("written", "own"),
    [
        ("train demo -q", "-q train demo"),
        ("train demo --quiet seed=3", "-q train demo seed=3"),
        ("-q train demo", "-q train demo"),
        ("train --train.learning_rate=1e-3 demo", "train demo train.learning_rate=1e-3"),
        ("train demo --train.learning_rate -1", "train demo train.learning_rate=-1"),
        ("train demo --train.bf16 --dry-run", "train demo --dry-run train.bf16=true"),
        ("train demo --decode.top-k 3", "train demo decode.top_k=3"),
        ("train --seed 4 demo", "train demo seed=4"),
        ("train --config demo seed=3", "train demo seed=3"),
        ("config show --config=demo", "config show demo"),
        ("config show -c demo --evaluate.k=[1]", "config show demo evaluate.k=[1]"),
        ("recommend demo --system markov --top-k 5", "recommend demo --system markov --top-k 5"),
        ("recommend demo --histories -q", "recommend demo --histories -q"),
        ("evaluate --targets t --predictions a.b=c", "evaluate --targets t --predictions a.b=c"),
        ("evaluate demo -- --seed=3", "evaluate demo -- --seed=3"),
        ("train demo --unheard-of", "train demo --unheard-of"),
        ("recipes ls -q", "-q recipes ls"),
        ("prompts", "prompts"),
        ("--help", "--help"),
        ("frobnicate --seed=3", "frobnicate --seed=3"),
    ],
)
def test_habits_become_own_words(written, own):
    assert own_words(written.split(), VERBS) == own.split()


def test_a_setting_as_an_option_is_that_setting():
    done = CliRunner().invoke(
        app, ["config", "show", "--config", "demo", "--decode.beams=33", "--json", "-q"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["decode"]["beams"] == 33


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--learning_rate=1e-3", "train.learning_rate"),
        ("--lr=1e-3", "train.learning_rate"),
        ("--train.learning_rat=1e-3", "train.learning_rate"),
        ("--top_k=3", "decode.top_k"),
    ],
)
def test_a_wrong_key_as_an_option_is_told_its_right_spelling(option, meant):
    done = CliRunner().invoke(app, ["validate", "demo", option])
    assert isinstance(done.exception, RecipeError)
    assert meant in str(done.exception)


def test_no_option_of_a_verb_hides_a_key():
    """Else a key could be read as the option, or the option as the key."""
    for verb in VERBS.commands.values():
        for param in verb.params:
            if param.param_type_name == "option":
                for word in param.opts:
                    written = [verb.name, word, "x"]
                    assert own_words(written, VERBS)[-2:] == written[-2:] or word == "-q"


def test_what_a_shell_completes(tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "recipe.yaml").write_text("", "utf-8")
    (tmp_path / "demand.yaml").write_text("", "utf-8")
    (tmp_path / "demo.csv").write_text("", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert recipes("dem") == ["demo", "demand.yaml"]
    assert recipes("ru") == ["runs/"]
    assert recipes("runs/") == ["runs/mine"]
    assert recipes("[") == []
    assert "decode.top_k=" in keys("decode.t")
    words = {"COMP_WORDS": "llmrec validate dem", "COMP_CWORD": "2"}
    done = CliRunner().invoke(
        app, [], env={**words, "_LLMREC_COMPLETE": "complete_bash"}, prog_name="llmrec"
    )
    assert done.stdout.split() == ["demo", "demand.yaml"]


def test_quiet_after_the_verb_is_quiet(monkeypatch):
    from llmrec import terminal

    told = []
    monkeypatch.setattr(terminal, "set_up_logging", told.append)
    monkeypatch.setattr(sys, "argv", ["llmrec"])
    CliRunner().invoke(app, ["recipes", "ls", "-q"])
    assert told == [True]
