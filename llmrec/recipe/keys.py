"""Every key a recipe may hold, what each takes, in words, and which one a misspelt key meant.

Reads the models of `llmrec.recipe.experiment`; knows no file and no YAML.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from llmrec.recipe import trainer_arguments as training_arguments
from llmrec.recipe.experiment import Recipe

# What people write for it elsewhere.
HABITS = {
    "lr": "train.learning_rate",
    "learning_rate": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "batch_size": "train.per_device_train_batch_size",
    "train_batch_size": "train.per_device_train_batch_size",
    "evaluation_strategy": "train.eval_strategy",
    "scheduler": "train.lr_scheduler_type",
    "optimizer": "train.optim",
    "warmup_ratio": "train.warmup_steps",
    "dataset": "data.source",
    "path": "data.source",
    "base_model": "model.base",
    "model_name_or_path": "model.base",
    "rank": "model.lora.r",
    "lora_r": "model.lora.r",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "load_in_4bit": "model.quantization",
    "loss": "objective.name",
    "temperature": "objective.tau",
    "num_beams": "decode.beams",
    "max_length": "prompt.max_tokens",
    "cutoffs": "evaluate.k",
    "metrics": "evaluate.k",
}


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section model inside an annotation such as `Lora | None`, or None."""
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _walk(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        section = section_of(field.annotation)
        if section is not None:
            yield from _walk(section, (*above, name))


@cache
def all_keys() -> tuple[tuple[str, ...], ...]:
    """Paths of every key, sections included; of `train` those that llmrec leaves to the recipe."""
    train = (("train", name) for name in training_arguments.ALLOWED)
    return (*_walk(Recipe, ()), *train)


def default_at(path: str) -> Any:
    """What a recipe that does not say `path` (dotted) has there, as plain values.

    A key of a section that is not there by default has the default of that section. Raises KeyError
    for a path that no recipe has.
    """
    model: type[BaseModel] | None = Recipe
    *above, key = path.split(".")
    for part in above:
        model = None if model is None else section_of(model.model_fields[part].annotation)
    if model is None:
        raise KeyError(path)
    default = model.model_fields[key].get_default(call_default_factory=True)
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else default


def keys_in(section: tuple[str, ...]) -> list[str]:
    """Names of the keys directly in a section; of the whole recipe for ()."""
    return [path[-1] for path in all_keys() if path[:-1] == section]


def meant(section: tuple[str, ...], key: str) -> tuple[str, ...] | None:
    """The real key nearest to an unknown one; the same section goes first. None if none is near."""
    from rapidfuzz.distance import OSA, JaroWinkler

    best: tuple[float, float, tuple[str, ...]] | None = None
    word = key.casefold().replace("-", "_")
    for path in all_keys():
        name = path[-1]
        distance = OSA.distance(word, name)
        if distance > max(1, min(len(name), len(word)) // 3):
            continue
        elsewhere = 0.0 if path[:-1] == section else 0.5
        found = (distance + elsewhere, -JaroWinkler.similarity(word, name), path)
        if best is None or found < best:
            best = found
    # A habit is an exact word, so it beats everything but that very key of the section.
    if word in HABITS and (best is None or best[0] > 0):
        return tuple(HABITS[word].split("."))
    return best[2] if best else None


def allowed(path: tuple[str | int, ...], model: type[BaseModel] = Recipe) -> str:
    """What the key at `path` takes, in words; `path` may go on into a list by number."""
    if model is Recipe and path[:1] == ("train",) and len(path) > 1:
        return training_arguments.allowed_values(str(path[1]))
    node = _node(path, model)
    return "another value" if node is None else _in_words(node, schema(model))


def purpose(path: tuple[str | int, ...], model: type[BaseModel] = Recipe) -> str:
    """What the key at `path` is for, one sentence; empty for what no recipe holds."""
    node = _node(path, model) or {}
    return " ".join(str(node.get("description", "")).split())


def _node(path: tuple[str | int, ...], model: type[BaseModel]) -> dict[str, Any] | None:
    """The part of the schema that `path` leads to."""
    root = schema(model)
    node: dict[str, Any] = root
    for part in path:
        options = [_resolved(option, root) for option in node.get("anyOf", [node])]
        children = [
            option["items"] if isinstance(part, int) else _property(option, part)
            for option in options
            if isinstance(part, str) or "items" in option
        ]
        found = next((child for child in children if child is not None), None)
        if found is None:
            return None
        node = {**_resolved(found, root), **found}
    return node


def _property(section: dict[str, Any], name: str) -> dict[str, Any] | None:
    """What a section says of a key: of that very one, or of all where the names are free."""
    free = [*section.get("patternProperties", {}).values(), section.get("additionalProperties")]
    known = (section.get("properties", {}).get(name), *free)
    return next((found for found in known if isinstance(found, dict)), None)


@cache
def schema(model: type[BaseModel] = Recipe) -> dict[str, Any]:
    """The JSON schema of recipes, or of another file of settings."""
    return model.model_json_schema()


def _resolved(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        found: dict[str, Any] = root["$defs"][node["$ref"].rpartition("/")[2]]
        return found
    return node


def _in_words(node: dict[str, Any], root: dict[str, Any]) -> str:
    node = _resolved(node, root)
    if "anyOf" in node:
        return " or ".join(_in_words(option, root) for option in node["anyOf"])
    if "enum" in node:
        return "one of " + ", ".join(str(value) for value in node["enum"])
    if "const" in node:
        return str(node["const"])
    kind = node.get("type")
    if kind == "array":
        count = node.get("minItems", 0)
        exactly = count > 1 and count == node.get("maxItems")
        return f"a list of {count} values" if exactly else f"a list, each {_of(node, root)}"
    if kind == "object":
        return "a section with keys " + ", ".join(node.get("properties", {"...": None}))
    if kind == "string" and "pattern" in node:
        return "text of letters, digits and . _ - that starts with a letter or digit"
    words = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    bounds = [
        f"{word} {node[bound]}"
        for bound, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if bound in node
    ]
    return ", ".join([words.get(str(kind), "another value"), *bounds])


def _of(node: dict[str, Any], root: dict[str, Any]) -> str:
    return _in_words(node.get("items", {}), root)
