"""Where the prompts and recipes that come with llmrec lie: in a checkout, or inside the wheel.

Knows names and files, not what recipes say.
"""

import shutil
from pathlib import Path

from llmrec.errors import RecipeError
from llmrec.shipped_files import folder as folder
from llmrec.shipped_files import prompt_names as prompt_names
from llmrec.shipped_files import prompt_text as prompt_text
from llmrec.shipped_files import prompts as prompts


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


def launch_names() -> list[str]:
    """Names of the shipped scripts that start processes, such as `slurm`."""
    return sorted(path.stem for path in (recipes() / "launch").glob("*.sh"))


def found(name: str) -> Path:
    """The shipped recipe, study (`studies/soft`), accelerate file (`accelerate/ddp`) or script
    (`launch/slurm`) of a name.

    Raises RecipeError.
    """
    recipe = recipe_file(name)
    if recipe is not None:
        return recipe
    bare = name.removeprefix("recipes/").removesuffix(".yaml").removesuffix(".sh")
    folders = {
        "accelerate": (recipes() / "accelerate", accelerate_names(), ".yaml"),
        "launch": (recipes() / "launch", launch_names(), ".sh"),
        "studies": (folder("studies"), study_names(), ".yaml"),
    }
    for prefix, (place, names, ending) in folders.items():
        if bare.removeprefix(f"{prefix}/") in names:
            return place / f"{bare.removeprefix(f'{prefix}/')}{ending}"
    there = [f"{prefix}/{one}" for prefix, (_, names, _) in folders.items() for one in names]
    raise RecipeError(
        f"no shipped recipe {name!r}; shipped are: {', '.join([*recipe_names(), *there])}"
    )


def copied(name: str, to: Path) -> Path:
    """Copy a shipped file to a file or into a folder; the new path. Raises RecipeError."""
    source = found(name)
    target = _new(to, source.name)
    shutil.copyfile(source, target)
    return target


def prompt_copied(name: str, to: Path) -> Path:
    """Write the template <task>/<domain> to a file or into a folder; the new path, for
    `prompt.file`. Raises RecipeError."""
    text = prompt_text(name)
    target = _new(to, f"{name.replace('/', '_')}.jinja")
    target.write_text(text, "utf-8")
    return target


def _new(to: Path, name: str) -> Path:
    target = to / name if to.is_dir() else to
    if target.exists():
        raise RecipeError(f"{target} is there already; give another name")
    if not target.parent.is_dir():
        raise RecipeError(f"{target.parent} is no folder; make it first")
    return target
