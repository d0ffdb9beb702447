"""Where the folders that come with llmrec lie, in a checkout or inside the wheel; the prompt
templates in them.

Knows names and files, not what they say.
"""

from functools import cache
from pathlib import Path
from string import Template

import yaml

from llmrec.errors import RecipeError

_PACKAGE = Path(__file__).resolve().parent


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
