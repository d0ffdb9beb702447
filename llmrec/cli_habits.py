"""How people write a command line who come from other programs, in llmrec's own words.

`-q` after the verb, `--section.key=value`, `--config FILE`. What is no key of a recipe goes on as a
setting all the same, so that the message names the right spelling. Also what a shell completes.
"""

import re
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

_RECIPE = ("--config", "--recipe", "-c")
_QUIET = ("-q", "--quiet")
_VALUE = re.compile(r"[^-]|-$|-\.?[0-9]")


class Verbs(TyperGroup):
    """The verbs, which are called with the habits of others as well."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        return super().parse_args(ctx, own_words(args, self))


def own_words(args: Sequence[str], verbs: Any) -> list[str]:
    """The same arguments as llmrec has them; `verbs` is a group of click commands."""
    at = next((n for n, word in enumerate(args) if word in verbs.commands), None)
    if at is None:
        return list(args)
    command, behind = verbs.commands[args[at]], at + 1
    if hasattr(command, "commands"):  # a verb of two words
        if behind >= len(args) or args[behind] not in command.commands:
            return list(args)
        command, behind = command.commands[args[behind]], behind + 1
    options = [p for p in command.params if p.param_type_name == "option"]
    known = {word for option in options for word in (*option.opts, *option.secondary_opts)}
    valued = {word for option in options if not option.is_flag for word in option.opts}
    taken = {param.name for param in command.params}
    quiet, recipe, kept, settings = [], [], [], []
    rest = list(args[behind:])
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            kept += [word, *rest]
            break
        if word in valued:
            kept += [word, *rest[:1]]
            rest = rest[1:]
        elif word in _QUIET and word not in known:
            quiet = ["-q"]
        elif name in _RECIPE and name not in known and "recipe" in taken and (equals or rest):
            recipe = [value if equals else rest.pop(0)]
        elif name not in known and "overrides" in taken and _is_key(name):
            if not equals:
                value = rest.pop(0) if rest and _VALUE.match(rest[0]) else "true"
            settings.append(f"{_key(name)}={value}")
        else:
            kept.append(word)
    return [*args[:at], *quiet, *args[at:behind], *recipe, *kept, *settings]


def _key(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _is_key(option: str) -> bool:
    """Whether an option is meant as a key of a recipe: dotted, or by its last word alone."""
    if not option.startswith("--") or option == "--help":
        return False
    if "." in option:
        return True
    from llmrec.recipe.keys import HABITS, all_keys

    return _key(option) in HABITS or any(path[-1] == _key(option) for path in all_keys())


def recipes(incomplete: str) -> list[str]:
    """What a recipe may be that begins so: shipped ones, files, run folders."""
    from llmrec.recipe import shipped

    names = [name for name in shipped.recipe_names() if name.startswith(incomplete)]
    return [*names, *_paths(incomplete)]


def keys(incomplete: str) -> list[str]:
    """The settings that begin so."""
    from llmrec.recipe.keys import all_keys

    said = (".".join(path) for path in all_keys())
    return [f"{key}=" for key in said if key.startswith(incomplete)]


def _paths(incomplete: str) -> Iterator[str]:
    for found in sorted(glob(f"{glob_safe(incomplete)}*")):
        path = Path(found)
        if path.is_dir():
            yield found if (path / "recipe.yaml").is_file() else f"{found}/"
        elif path.suffix in (".yaml", ".yml"):
            yield found


def glob_safe(text: str) -> str:
    """A text whose letters stand for themselves in a pattern."""
    return re.sub(r"([*?[])", r"[\1]", text)
