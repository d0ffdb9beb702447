"""Commands, recipes and programs that README and docs/ show: parsed, or run where it is quick."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from llmrec.cli import app
from llmrec.recipe.keys import all_keys
from llmrec.recipe.loading import load
from llmrec.recipe.shipped import recipe_names, study_names

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"])
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
KEYS = {".".join(path) for path in all_keys()}
KNOWN = {*recipe_names(), *study_names()}
VERBS = typer.main.get_command(app)


def blocks(page, *kinds):
    return [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind in kinds]


def commands(page):
    """The llmrec commands of a page's blocks, words as a shell would part them."""
    for block in blocks(page, "", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.partition("  #")[0].split(" | ")[-1].strip()
            line = re.sub(r"^accelerate launch .* -m (?=llmrec)", "", line)
            if line.startswith("llmrec "):
                yield shlex.split(line)[1:]


def parsed(words):
    """The parameters of a command line; an error of usage where it has no such verb or option."""
    command, name = VERBS, "llmrec"
    context = command.make_context(name, list(words))
    while hasattr(command, "resolve_command"):
        left = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, left)
        context = command.make_context(name, rest, parent=context)
    return context.params


def wrong(words):
    """What is wrong with a command line; None for nothing."""
    try:
        given = parsed(words)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return error.format_message()
    for text in given.get("overrides") or ():
        key = text.partition("=")[0]
        is_file = words[0] == "evaluate" and "." not in key and "=" in text
        if not (key in KEYS or key.startswith("study.") or is_file):
            return f"{text} is no setting"
    recipe = given.get("recipe") or given.get("study")
    if recipe and re.fullmatch(r"[a-z0-9_]+", recipe) and recipe not in KNOWN:
        return f"{recipe} is no shipped recipe"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_such_as_the_program_takes(page):
    for words in commands(page):
        assert wrong(words) is None, f"llmrec {shlex.join(words)}"


@pytest.mark.parametrize(
    "words",
    [
        "nothing",
        "run demo --quick",
        "train demo train.lr=3",
        "prompts what",
        "run demos",
        "compare",
    ],
)
def test_what_is_no_command_is_found(words):
    assert wrong(shlex.split(words)) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_are_such_as_can_be_loaded(page, tmp_path):
    for number, text in enumerate(blocks(page, "yaml")):
        if re.search(r"^(arms|recipe|defaults):", text, re.MULTILINE):
            continue  # a study has a test of its own
        if "name:" not in text:
            text = f"name: part\n{text}"
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, "utf-8")
        load(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_compile_and_import_what_there_is(page):
    for text in blocks(page, "python"):
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmrec"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: {node.module}.{alias.name}"


def test_the_metrics_of_the_evaluation_page_are_as_it_says():
    [text] = blocks(ROOT / "docs" / "evaluation.md", "python")
    names = {}
    exec(compile(text, "evaluation.md", "exec"), names)  # noqa: S102
    first = names["hit_rate"](names["lists"], names["targets"], k=1)
    assert first.tolist() == [0.0, 1.0]
    assert "# array([0., 1.])" in text


def test_a_readme_can_be_read_in_five_minutes():
    words = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert len(words.split()) <= 1000
