"""The command line's verbs about what comes with llmrec: prompts, recipes, studies, keys.

Also what verbs have in common: arguments, and how they open a run. Like `llmrec.cli`, imports a
stage when it is called.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from llmrec import cli_habits, terminal

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.runs.folder import RunFolder

prompts_app = typer.Typer(help="The prompt templates.", no_args_is_help=True)
recipes_app = typer.Typer(help="The recipes that come with llmrec.", no_args_is_help=True)
config_app = typer.Typer(help="What a recipe says and can say.", no_args_is_help=True)

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Recipe file, shipped recipe's name, or run folder.",
        autocompletion=cli_habits.recipes,
    ),
]
# typer reads Optional, not `list[str] | None`, in every version the package allows.
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="Settings that beat the recipe.",
        autocompletion=cli_habits.keys,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def opened(
    recipe: str, overrides: list[str] | None, writing: str | None
) -> tuple["Recipe", "RunFolder"]:
    """A recipe and its run folder, which this command holds alone if it is a verb that writes."""
    from llmrec.runs.folder import open_run
    from llmrec.runs.lock import hold

    settings, folder = open_run(recipe, overrides or [])
    if writing is not None and terminal.is_main_process():
        hold(folder.root, writing)
    return settings, folder


@prompts_app.command("ls")
def prompts_ls(as_json: Json = False) -> None:
    """Names of the shipped templates."""
    from llmrec.recipe import shipped

    terminal.show(shipped.prompt_names(), as_json)


@prompts_app.command("show")
def prompts_show(
    name: Annotated[str, typer.Argument(metavar="TASK/DOMAIN", help="As `prompts ls` lists it.")],
) -> None:
    """The text of a template."""
    from llmrec.recipe import shipped

    terminal.show(shipped.prompt_text(name).rstrip("\n"), as_json=False)


@prompts_app.command("cp")
def prompts_cp(
    name: Annotated[str, typer.Argument(metavar="TASK/DOMAIN", help="As `prompts ls` lists it.")],
    to: Annotated[Path, typer.Argument(help="File or folder to copy it to.")] = Path(),
) -> None:
    """Copy a template, to change it and name it in prompt.file. Never overwrites."""
    from llmrec.recipe import shipped

    terminal.show(str(shipped.prompt_copied(name, to)), as_json=False)


@prompts_app.command("render")
def prompts_render(
    recipe: RecipeName,
    overrides: Overrides = None,
    user: Annotated[Optional[str], typer.Option(help="user_id; else the first.")] = None,  # noqa: UP045
    as_json: Json = False,
) -> None:
    """A real user's prompt, with token ids and the loss mask."""
    from llmrec.runs.folder import open_run
    from llmrec.stages import prompts as stage

    settings, folder = open_run(recipe, overrides or [])
    rendered = stage.render(settings, folder, user)
    painted = stage.painted(rendered, terminal.takes_colour())
    terminal.show(rendered if as_json else painted, as_json)


@recipes_app.command("ls")
def recipes_ls(as_json: Json = False) -> None:
    """Names of the shipped recipes, studies and accelerate files."""
    from llmrec.recipe import shipped

    names = {
        "recipes": shipped.recipe_names(),
        "studies": shipped.study_names(),
        "accelerate": shipped.accelerate_names(),
        "launch": shipped.launch_names(),
    }
    terminal.show(names, as_json)


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="As `recipes ls` lists it.")]) -> None:
    """The text of a recipe, study or accelerate file."""
    from llmrec.recipe import shipped

    terminal.show(shipped.found(name).read_text("utf-8").rstrip("\n"), as_json=False)


@recipes_app.command("cp")
def recipes_cp(
    name: Annotated[str, typer.Argument(help="As `recipes ls` lists it.")],
    to: Annotated[Path, typer.Argument(help="File or folder to copy it to.")] = Path(),
) -> None:
    """Copy a recipe, study or accelerate file, to change it. Never overwrites."""
    from llmrec.recipe import shipped

    terminal.show(str(shipped.copied(name, to)), as_json=False)


@config_app.command("show")
def config_show(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """A recipe with every default written out."""
    from llmrec.recipe.loading import dump, load

    loaded = load(recipe, overrides or [])
    terminal.show(loaded.model_dump(mode="json") if as_json else dump(loaded).rstrip(), as_json)


@config_app.command("schema")
def config_schema() -> None:
    """The JSON schema of recipes."""
    from llmrec.recipe.keys import schema

    terminal.show(schema(), as_json=True)
