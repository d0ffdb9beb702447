"""Read a recipe: a YAML file and overrides from the command line, all its errors at once.

`load` is what the verbs use. Knows the sections of a recipe, no stage; imports neither torch nor
transformers.
"""

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from llmrec.errors import RecipeError
from llmrec.recipe import plain_yaml as recipe_yaml
from llmrec.recipe import shipped
from llmrec.recipe import trainer_arguments as training_arguments
from llmrec.recipe.experiment import Recipe
from llmrec.recipe.keys import allowed, keys_in, meant, purpose, section_of
from llmrec.recipe.plain_yaml import KeyPath
from llmrec.recipe.reading import LAST, Reading, Setting, given_on_the_command_line
from llmrec.recipe.systems import parsed

# Keys that name a file or folder. The first two may be a name of something else instead.
SOURCE, BASE = ("data", "source"), ("model", "base")
ENCODER = ("demonstrations", "similarity", "encoder")
PATHS = (
    SOURCE,
    BASE,
    ("data", "items"),
    ("model", "adapter"),
    ("model", "start_from"),
    ("prompt", "file"),
    ("soft", "sft_adapter"),
    ("soft", "answers"),
    ENCODER,
)
# No file says that code of others is run: who calls does, each time.
TRUST = ("model", "trust_remote_code")
# How a source begins that is looked up elsewhere than on disk, although it has slashes.
ELSEWHERE = ("hf://", "amazon2023/")
SHOWN = 60


def locate(reference: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a shipped one. Raises RecipeError."""
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    found = shipped.recipe_file(str(reference))
    if found is not None:
        return found
    names = ", ".join(shipped.recipe_names())
    raise RecipeError(
        f"recipe {str(reference)!r}: no such file, and no shipped recipe of that name; "
        f"shipped are: {names} (see `llmrec recipes ls`)"
    )


def load(
    reference: str | Path, overrides: Sequence[str] = (), settings: Sequence[Setting] = ()
) -> Recipe:
    """The recipe in a file (or of a name, see `locate`), with `section.key=value` overrides.

    Overrides beat `settings`, which beat the file, which beats the defaults. Paths in the file are
    relative to the file, paths in overrides to the current folder. Overrides alone, never a file or
    `settings`, can have code of others run. Raises RecipeError that lists every error.
    """
    path = locate(reference)
    reading, is_yaml = Reading.of(
        path, "a recipe is sections of keys (section: then indented key: value)"
    )
    for setting in settings:
        reading.give(setting)
    _refuse_trust(reading)
    for override in overrides:
        given, problems = given_on_the_command_line(override)
        reading.problems += [(LAST, problem) for problem in problems]
        if given is not None:
            reading.give(given)
    if not is_yaml:
        reading.raise_problems()
    _drop_unknown(reading.tree, Recipe, (), reading)
    _check_train(reading)
    reading.tree.setdefault("name", path.stem)
    recipe = _validated(reading)
    reading.raise_problems()
    if recipe is None:
        raise RecipeError(f"{path}: not a recipe")
    return _with_paths(recipe, reading, path.parent)


def check(reference: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Load a recipe and look whether the files it names are there: {recipe, name, warnings}.

    Raises RecipeError that lists every error.
    """
    recipe = load(reference, overrides)
    missing = [
        f"{'.'.join(path)}: {value} does not exist"
        for path in PATHS
        if (value := _get(recipe, path)) is not None
        and os.path.isabs(value)
        and not Path(value).exists()
        and not (path == SOURCE and _is_pattern(value))
    ]
    if missing:
        raise RecipeError(f"{reference}: files are missing\n  " + "\n  ".join(missing))
    return {"recipe": str(locate(reference)), "name": recipe.name, "warnings": warnings(recipe)}


def warnings(recipe: Recipe) -> list[str]:
    """What a recipe says that goes together and yet is not what its writer will have meant, or
    that this machine cannot do."""
    longest, found = max(recipe.evaluate.k), []
    if longest > recipe.decode.top_k and recipe.data.candidates is None:
        found.append(
            f"evaluate.k goes to {longest}, decode.top_k is {recipe.decode.top_k}: lists are not "
            f"longer than that, so metrics beyond it are left out; set decode.top_k={longest}"
        )
    for key in ("optim", "report_to"):
        package = training_arguments.missing_package(key, recipe.train.get(key))
        if package is not None:
            found.append(_not_here(f"train.{key} {recipe.train[key]}", package))
    sentences = _held(recipe.model_dump(), ("demonstrations", "similarity", "vectors"))
    reads = {path for system in parsed(recipe.systems) for path in system.depends}
    encodes = sentences == "sentences" or "baselines.encoder" in reads
    needs = (
        (recipe.model.quantization != "none", "model.quantization 4bit", "bitsandbytes", "gpu"),
        (recipe.data.out_of_core, "data.out_of_core", "duckdb", "data"),
        (encodes, "a sentence encoder", "sentence_transformers", "embed"),
    )
    for wanted, what, package, extra in needs:
        if wanted and importlib.util.find_spec(package) is None:
            found.append(_not_here(what, package, f" (pip install 'llmrec[{extra}]')"))
    return found


def _is_pattern(source: str) -> bool:
    return any(mark in source for mark in "*?[")


def _not_here(what: str, package: str, how: str = "") -> str:
    return (
        f"{what} needs the package {package}, which is not installed here; install it where you "
        f"train{how}, or choose another"
    )


def dump(recipe: Recipe) -> str:
    """Every key of the recipe, defaults included, as YAML; but never that code is trusted."""
    tree = recipe.model_dump(mode="json")
    if tree[TRUST[0]][TRUST[1]]:
        del tree[TRUST[0]][TRUST[1]]
    return recipe_yaml.write(tree)


def _refuse_trust(reading: Reading) -> None:
    """Report a file that would have code of others run."""
    section = reading.tree.get(TRUST[0])
    if isinstance(section, dict) and section.get(TRUST[1], False) is not False:
        reading.report(
            TRUST,
            f"{'.'.join(TRUST)} is no setting of a file, which others may have written; take it "
            f"out, and if you trust the model's code add {'.'.join(TRUST)}=true to the command",
        )
        del section[TRUST[1]]


def _drop_unknown(
    tree: dict[str, Any], model: type[BaseModel], above: tuple[str, ...], reading: Reading
) -> None:
    """Report every unknown key of a section, and take it out so that it is reported once."""
    for key in list(tree):
        if key not in model.model_fields:
            reading.report((*above, key), _unknown(above, key))
            del tree[key]
            continue
        section = section_of(model.model_fields[key].annotation)
        if section is not None and isinstance(tree[key], dict):
            _drop_unknown(tree[key], section, (*above, key), reading)


def _unknown(section: tuple[str, ...], key: str) -> str:
    dotted = ".".join((*section, key))
    nearest = meant(section, key)
    if nearest is not None:
        return f"unknown key {dotted}; did you mean {'.'.join(nearest)}?"
    names = ", ".join(sorted(keys_in(section)))
    where = f"section {'.'.join(section)}" if section else "a recipe"
    return f"unknown key {dotted}; {where} has: {names}"


def _check_train(reading: Reading) -> None:
    train = reading.tree.get("train")
    if not isinstance(train, dict):
        return
    for key, value in list(train.items()):
        if key in training_arguments.REFUSED:
            reason = training_arguments.REFUSED[key]
            reading.report(("train", key), f"train.{key} cannot be set: {reason}")
        elif key not in training_arguments.KINDS:
            reading.report(("train", key), _unknown(("train",), key))
        elif not training_arguments.fits(key, value):
            reading.report(("train", key), _wrong(("train", key), value))
        else:
            continue
        del train[key]


def _wrong(path: KeyPath, value: Any, rule: str | None = None) -> str:
    dotted = ".".join(str(part) for part in path)
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."
    rule = allowed(path) if rule is None else rule
    message = f"{dotted} is {shown}; allowed: {rule}"
    if isinstance(value, str) and rule.startswith("one of "):
        from rapidfuzz.process import extractOne

        nearest = extractOne(value, rule[len("one of ") :].split(", "), score_cutoff=60)
        message += f"; did you mean {nearest[0]}?" if nearest else ""
    return message


def _validated(reading: Reading) -> Recipe | None:
    try:
        return Recipe.model_validate(reading.tree)
    except ValidationError as error:
        told: set[KeyPath] = set()
        for detail in error.errors(include_url=False):
            path = _real_path(detail["loc"], reading.tree)
            if path in told:
                continue
            told.add(path)
            dotted = ".".join(str(part) for part in path)
            if detail["type"] == "missing":
                reading.report(path, f"{dotted} is missing: {purpose(path)}")
            elif detail["type"] == "value_error" and isinstance(detail["input"], BaseModel | dict):
                for reason in _reason(detail).splitlines():  # a line a rule
                    reading.report(path, f"{dotted + ': ' if dotted else ''}{reason}")
            elif detail["type"] == "value_error":
                reading.report(path, _wrong(path, detail["input"], _reason(detail)))
            else:
                reading.report(path, _wrong(path, detail["input"]))
        return None


def _reason(detail: Any) -> str:
    return str(detail["msg"]).removeprefix("Value error, ")


def _real_path(loc: tuple[int | str, ...], tree: Any) -> KeyPath:
    """A pydantic location without the names of union branches it goes through."""
    path: list[str | int] = []
    for part in loc:
        if isinstance(tree, dict):
            tree = tree.get(str(part))
        elif isinstance(tree, list) and isinstance(part, int):
            tree = tree[part]
        else:
            break
        path.append(part)
    return tuple(path)


def _get(recipe: Recipe, path: tuple[str, ...]) -> Any:
    return _held(recipe.model_dump(include={path[0]}), path)


def _held(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    """What stands at a path of a tree; None where a section on the way is null."""
    held: Any = tree
    for key in path:
        held = None if held is None else held[key]
    return held


def _with_paths(recipe: Recipe, reading: Reading, folder: Path) -> Recipe:
    """The recipe with every path in it made absolute."""
    tree = recipe.model_dump(mode="json")
    for place in PATHS:
        value = _held(tree, place)
        if value is None:
            continue
        base = reading.given[place].folder if place in reading.given else folder
        path = Path(os.path.abspath(base / Path(value).expanduser()))
        if place == SOURCE:
            named = value.startswith(ELSEWHERE) and not path.exists()
            spelt = "/" in value or os.sep in value or _is_pattern(value)
            is_path = path.exists() or (spelt and not named)
        elif place in (BASE, ENCODER):
            # A Hub id holds a slash too, so a folder must be there or be spelt as a path.
            is_path = path.is_dir() or value.startswith((".", "~", "/")) or os.path.isabs(value)
        else:
            is_path = True
        if is_path:
            _held(tree, place[:-1])[place[-1]] = str(path)
    return Recipe.model_validate(tree)
