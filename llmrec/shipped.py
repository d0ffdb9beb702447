"""Where the prompts and recipes that come with llmrec lie: in a checkout, or inside the wheel.

Names only; opens no file.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The shipped folder `prompts` or `recipes`."""
    inside = _PACKAGE / "shipped" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def prompts() -> Path:
    """The folder of <task>/<domain>.jinja."""
    return folder("prompts")


def prompt_file(task: str, domain: str) -> Path:
    """The shipped template of a task and a domain."""
    return prompts() / task / f"{domain}.jinja"


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


def accelerate_names() -> list[str]:
    """Names of the shipped accelerate files, such as `ddp`."""
    return sorted(path.stem for path in (recipes() / "accelerate").glob("*.yaml"))
