"""Write the two pages of docs/ that are made from the code: every key of a recipe, and the API.

    python tools/reference.py

A test holds that what stands there is what this writes.
"""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from llmrec.recipe import trainer_arguments as arguments
from llmrec.recipe.experiment import Recipe
from llmrec.recipe.keys import allowed, purpose, section_of

DOCS = Path(__file__).parents[1] / "docs"
# The names that a program may rely on, by the module that it imports them from.
PUBLIC = {
    "llmrec": [
        "Recommender", "Catalog", "PromptTemplate", "PromptEncoder", "TitleTrie", "TokenTree",
    ],
    "llmrec.evaluation": [
        "hit_rate", "ndcg", "mrr", "recall", "precision", "average_precision", "mean_interval",
        "mean_intervals", "paired_test", "paired_tests", "holm", "beyond_accuracy", "Interval",
        "PairedTest", "BeyondAccuracy", "Predictions", "SystemInfo",
    ],
    "llmrec.data": ["to_datasets"],
    "llmrec.data.sources": ["read_source", "recognise", "Columns", "Reading", "Events"],
    "llmrec.methods.handing_out": ["training_rows"],
    "llmrec.inference.exported": ["Exported"],
    "llmrec.recipe.loading": ["load", "check", "dump"],
    "llmrec.errors": ["LlmrecError", "RecipeError", "DataError"],
}  # fmt: skip
MADE = "\n<!-- Made by tools/reference.py. Change the code's docstrings, then run it. -->\n"


def recipe_page() -> str:
    """Every key with what it takes, its default and what it is for."""
    lines = [
        "# Recipe reference",
        "",
        "Every key that a recipe may hold. `llmrec config show RECIPE` prints one with all",
        "defaults, `llmrec config schema` this page as a JSON schema; what the choices mean stands",
        "in [what a recipe chooses](recipes.md).",
        "",
        *_section(Recipe, ()),
        "## train",
        "",
        f"Names of `transformers.TrainingArguments`, {len(arguments.ALLOWED)} of them.",
        "Defaults that differ from the library's: "
        + ", ".join(f"`{k}: {json.dumps(v)}`" for k, v in arguments.DEFAULTS.items())
        + ". Refused, with the reason: "
        + ", ".join(f"`{name}`" for name in sorted(arguments.REFUSED))
        + ".",
        "",
        "| key | takes |",
        "|---|---|",
        *(f"| `{name}` | {_cell(arguments.allowed_values(name))} |" for name in arguments.ALLOWED),
    ]
    return "\n".join(lines) + "\n" + MADE


def _section(model: Any, above: tuple[str, ...]) -> list[str]:
    rows, below = [], []
    for name, field in model.model_fields.items():
        path = (*above, name)
        if path == ("train",):
            continue
        inner = section_of(field.annotation)
        if inner is None:
            takes, default = allowed(path), _default(field)
            rows.append(f"| `{name}` | {_cell(takes)} | {default} | {_cell(purpose(path))} |")
        else:
            of = " Default: null." if field.default is None else ""
            title = ["## " + ".".join(path), "", (purpose(path) or _doc(inner)) + of, ""]
            below += [*title, *_section(inner, path)]
    table = ["| key | takes | default | |", "|---|---|---|---|", *rows, ""] if rows else []
    return [*table, *below]


def _default(field: Any) -> str:
    if field.is_required():
        return "needed"
    return f"`{_cell(json.dumps(field.get_default(call_default_factory=True), default=str))}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _doc(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "").replace("<", "&lt;")


def api_page() -> str:
    """Every public name with its signature and docstring."""
    lines = [
        "# API",
        "",
        "The names that a program may rely on; everything else may move. How they are used stands",
        "in [from Python](python.md).",
        "",
    ]
    for module, names in PUBLIC.items():
        lines += [f"## {module}", ""]
        for name in names:
            lines += _described(name, getattr(importlib.import_module(module), name))
    return "\n".join(lines).rstrip() + "\n" + MADE


def _described(name: str, thing: Any) -> list[str]:
    plain_error = inspect.isclass(thing) and issubclass(thing, Exception)
    shown = name if plain_error else f"{name}{_signature(thing)}"
    lines = [f"### {name}", "", f"```text\n{shown}\n```", "", _doc(thing), ""]
    if inspect.isclass(thing) and not plain_error:
        for method, value in vars(thing).items():
            function = getattr(value, "__func__", value)
            if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            lines += [f"**`{method}{_signature(function)}`**", "", _doc(function), ""]
    return lines


def _signature(thing: Any) -> str:
    text = str(inspect.signature(thing))
    text = re.sub(
        r"\b(?:llmrec|pyarrow|numpy|torch|collections|typing|pathlib)(?:\.\w+)*\.(?=\w)", "", text
    )
    return re.sub(r"<factory>", "...", text)


PAGES = {"reference.md": recipe_page, "api.md": api_page}

if __name__ == "__main__":
    for page, made in PAGES.items():
        (DOCS / page).write_text(made(), "utf-8")
        print(DOCS / page)
