"""Where the prompts and recipes that come with llmrec lie: in a checkout, or inside the wheel.

Knows names and files, not what recipes say.
"""

import shutil
from functools import cache
from pathlib import Path
from string import Template

import yaml

from llmrec.errors import RecipeError

_PACKAGE = Path(__file__).resolve().parent.parent


def folder(name: str) -> Path:
    """The shipped folder `prompts`, `recipes` or `studies`."""
    inside = _PACKAGE / "shipped" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def prompts() -> Path:
    """The folder of <task>.jinja and domains.yaml."""
    return folder("prompts")


def prompt_names() -> list[str]:
    """The shipped templates, as <task>/<domain>, in alphabetical order."""
    tasks = [path.stem for path in prompts().glob("*.jinja")]
    return sorted(f"{task}/{domain}" for task in tasks for domain in _words())


def prompt_text(name: str) -> str:
    """The text of the template <task>/<domain>: the task's, in the words of the domain.

    Raises RecipeError where there is none.
    """
    if name not in prompt_names():
        raise RecipeError(f"no template {name!r}; there are {', '.join(prompt_names())}")
    task, domain = name.split("/")
    text = (prompts() / f"{task}.jinja").read_text("utf-8")
    return Template(text).substitute(_words()[domain])


@cache
def _words() -> dict[str, dict[str, str]]:
    words: dict[str, dict[str, str]] = yaml.safe_load(
        (prompts() / "domains.yaml").read_text("utf-8")
    )
    return words


def recipes() -> Path:
    """The folder of <method>_<dataset>.yaml and accelerate/<hardware>.yaml."""
    return folder("recipes")


def recipe_names() -> list[str]:
    """Names of the shipped recipes, without their ending, in alphabetical order."""
    return sorted(path.stem for path in recipes().glob("*.yaml"))


def recipe_file(reference: str) -> Path | None:
    """The shipped recipe called `sft_ml100k`, `sft_ml100k.yaml` or `recipes/sft_ml100k.yaml`."""
    name = reference.removeprefix("recipes/").removesuffix(".yaml")
    return recipes() / f"{name}.yaml" if name in recipe_names() else None


def study_names() -> list[str]:
    """Names of the shipped studies, without their ending, in alphabetical order."""
    return sorted(path.stem for path in folder("studies").glob("*.yaml"))


def located_study(reference: str | Path) -> Path:
    """The file of a study: a path, or the name of a shipped one. Raises RecipeError."""
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    name = str(reference).removeprefix("studies/").removesuffix(".yaml")
    if name in study_names():
        return folder("studies") / f"{name}.yaml"
    raise RecipeError(
        f"study {str(reference)!r}: no such file, and no shipped study of that name; shipped are: "
        f"{', '.join(study_names())}"
    )


def accelerate_names() -> list[str]:
    """Names of the shipped accelerate files, such as `ddp`."""
    return sorted(path.stem for path in (recipes() / "accelerate").glob("*.yaml"))


def found(name: str) -> Path:
    """The shipped recipe, study (`studies/soft`) or accelerate file (`accelerate/ddp`) of a name.

    Raises RecipeError.
    """
    recipe = recipe_file(name)
    if recipe is not None:
        return recipe
    bare = name.removeprefix("recipes/").removesuffix(".yaml")
    folders = {
        "accelerate": (recipes() / "accelerate", accelerate_names()),
        "studies": (folder("studies"), study_names()),
    }
    for prefix, (place, names) in folders.items():
        if bare.removeprefix(f"{prefix}/") in names:
            return place / f"{bare.removeprefix(f'{prefix}/')}.yaml"
    there = [f"{prefix}/{one}" for prefix, (_, names) in folders.items() for one in names]
    raise RecipeError(
        f"no shipped recipe {name!r}; shipped are: {', '.join([*recipe_names(), *there])}"
    )


def copied(name: str, to: Path) -> Path:
    """Copy a shipped file to a file or into a folder; the new path. Raises RecipeError."""
    source = found(name)
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise RecipeError(f"{target} is there already; give another name")
    if not target.parent.is_dir():
        raise RecipeError(f"{target.parent} is no folder; make it first")
    shutil.copyfile(source, target)
    return target
