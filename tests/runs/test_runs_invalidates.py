"""What each key of a recipe makes to be done again, held against a reviewed table.

The table, invalidates.yaml, has a row for every key of a recipe. A made thing is in a row where its
key differs once that recipe key is another, in any of the experiments below; a system stands for
its predictions and for its lists to calibrate with. What a change reaches
only through the bytes of something else (predictions through trained weights, weights through
prepared data) is not in a row: contents are compared when that was made again.
"""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from llmrec.data.files import sha256_of
from llmrec.recipe import Recipe
from llmrec.recipe.keys import all_keys, allowed, section_of
from llmrec.recipe.systems import System
from llmrec.recipe.trainer_arguments import ALLOWED, CHOICES, DEFAULTS, KINDS
from llmrec.runs import made
from llmrec.runs.folder import RunFolder, flattened
from llmrec.stages.prepare import settings_of

TABLE = Path(__file__).with_name("invalidates.yaml")
# Experiments that together read every section of a recipe.
EXPERIMENTS = {
    "plain": {
        "data": {"events": {"column": "kind", "keep": ["buy"]}},
        "evaluate": {"calibration": {}},
        "systems": ["sasrec", "untuned"],
        "decode": {"grounding": {"fusion": "sasrec"}},
    },
    "ranking": {
        "validation": {"metric": "ndcg", "k": 5},
        "decode": {"beams": 12},
        "conformal": {},
        "objective": {"name": "msl"},
    },
    "grounding": {"validation": {"metric": "hr", "answer": "grounding"}, "soft": {}},
    "repository": {
        "model": {"base": "owner/name", "revision": "b" * 40},
        "soft": {"distill": {"decode": "free"}, "alpha": "auto"},
    },
    "candidates": {
        "data": {"candidates": {"from": "sasrec", "count": 4}},
        "prompt": {"task": "similar_users"},
        "objective": {"listwise": {}},
    },
    "preferences": {"data": {"candidates": 9}, "objective": {"sdpo": {}, "propensity": {}}},
    "groups": {"objective": {"grpo": {}}},
    "pairs": {"data": {"candidates": 9}, "objective": {"dpo": {}}},
    "among": {"data": {"candidates": {"count": 4}}, "objective": {"name": "msl"}},
    "network": {"network": {}, "conformal": {"learning_rate": 0.1}, "systems": ["network"]},
    **{
        vectors: {
            "prompt": {"task": "similar_users"},
            "demonstrations": {"selection": {}, "similarity": {"vectors": vectors}},
        }
        for vectors in ("states", "sentences")
    },
}
ROWS = (
    *("markov", "sasrec", "text_knn_sentences", "untuned"),
    *("tuned_guided", "tuned_grounded", "tuned_fused", "tuned_routed"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders that a recipe can name, with a few bytes in each file; and a prepared run."""
    root = tmp_path_factory.mktemp("named")
    for name in ("base", "other-base", "adapter", "other-adapter"):
        folder = root / name
        folder.mkdir()
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / file).write_text(f"{name} {file}")
    for name in ("answers", "other-answers"):
        (root / name).mkdir()
        (root / name / "answers.parquet").write_text(name)
    (root / "own.jinja").write_text("another template")
    run = RunFolder(root / "run")
    run.data.mkdir(parents=True)
    outputs = {}
    for name in (*made.TRAINING_DATA, "test.parquet"):
        (run.data / name).write_text(name)
        outputs[name] = {"sha256": sha256_of(run.data / name)}
    (run.data / "manifest.json").write_text(json.dumps({"outputs": outputs}))
    return root


def experiment(place, changes):
    """The tree of a recipe."""
    tree = {
        "name": "one",
        "data": {"source": str(place / "log.csv")},
        "model": {"base": str(place / "base"), "adapter": str(place / "adapter")},
        "systems": ["popularity", "untuned"],
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    if tree.get("soft") is not None:
        tree["soft"] = tree["soft"] | {
            "sft_adapter": str(place / "adapter"),
            "answers": str(place / "answers"),
        }
    return Recipe.model_validate(tree).model_dump(mode="json")


def another(place, key, now):
    """A value that `key` may have besides `now`."""
    special = {
        "name": "two",
        "output_dir": "elsewhere",
        "data.source": str(place / "other.csv"),
        "data.ratios": [0.6, 0.2, 0.2],
        "data.max_title_chars": 90,
        "data.events.keep": ["cart"],
        "data.delimiter": ";",
        "data.encoding": "cp1252",
        "data.timestamp_format": "%d/%m/%Y",
        "prompt.today": "2031-02-03",
        "model.base": str(place / "other-base"),
        "model.adapter": str(place / "other-adapter"),
        "model.start_from": str(place / "other-adapter"),
        "model.lora.target_modules": ["q_proj"],
        "model.revision": "a" * 40,
        "prompt.file": str(place / "own.jinja"),
        "soft.sft_adapter": str(place / "other-adapter"),
        "soft.answers": str(place / "other-answers"),
        "soft.weight": 0.25,
        "soft.alpha": 3.0,
        "soft.grid": [0.5],
        "systems": ["untuned"],
        "evaluate.k": [3],
        "evaluate.calibration.alpha": [0.2],
        "network.heads": 4,
        "network.settings": [{"dropout": 0.5}, {"hidden": 32}],
        "conformal.grid": [0.5],
        "conformal.learning_rate": 0.25,
        "decode.guidance.grid": [0.5],
        "decode.fusion.grid": [0.5],
        "decode.fusion.weight": 0.5,
        "decode.guidance.weight": 0.5,
        "decode.grounding.grid": [1.0],
        "decode.grounding.gamma": 0.5,
        "decode.beams": 13,
        "decode.search": "certified",
        "network.hidden": 32,
        "demonstrations.similarity.encoder": "another/encoder",
        "demonstrations.show": "both",
        "evaluate.debias": "snips",
    }
    if key in special:
        return special[key]
    if key.startswith("train."):
        return another_argument(key.removeprefix("train."), now)
    if isinstance(now, bool):
        return not now
    if isinstance(now, int):
        return now + 1
    if isinstance(now, float):
        return now / 2 if now else 0.5
    words = allowed(tuple(key.split("."))).replace(" or ", ", ")
    if "one of " in words:
        choices = words.split("one of ")[1].split(", ")
        return next(choice for choice in choices if choice not in (now, "null"))
    if "true" in words:
        return True
    return 7 if "number" in words else "other"


def another_argument(name, now):
    if name in CHOICES:
        return next(choice for choice in CHOICES[name] if choice != now)
    kinds = KINDS[name]
    by_kind = {"bool": not now, "int": 3, "float": 0.375, "str": "other", "list": ["other"]}
    return next((by_kind[kind] for kind in by_kind if kind in kinds), {"other": 1})


def keys_of(recipe, root):
    """The key of every thing that could be made of a recipe."""
    folder = RunFolder(root / "run")
    found = {"data": settings_of(recipe)}
    if recipe.network is not None:
        found |= {f"network {s}": made.network(recipe, folder, s).key for s in ("base", "cpft")}
        return found
    weights = made.adapter_content(recipe, folder)
    found["adapter"] = made.adapter(recipe, folder).key
    found["states"] = made.states(recipe, "titles").key
    if recipe.soft is not None:
        found["answers"] = made.answers(recipe, folder).key
    if recipe.demonstrations is not None:
        found["histories"] = made.histories(recipe, folder).key
        found["voters"] = made.voters(recipe, folder, "test", "examples").key
        votes = made.predictions(recipe, folder, System.parse("votes"))
        found["predictions votes"] = votes.key
        kind = recipe.demonstrations.similarity.vectors
        found["vectors"] = made.vectors(recipe, folder, kind).key
        found["index"] = made.index(recipe, folder).key
        found["pools"] = made.pools(recipe, folder, "test", "examples").key
    for name in ROWS:
        system = System.parse(name)
        of = weights if system.has_adapter else None
        predictions = made.predictions(recipe, folder, system, of)
        found[f"predictions {name}"] = predictions.key
        if system.gives_probabilities:
            listed = made.listed(recipe, system, 10**6)
            of_lists = made.lists(predictions, folder.lists(name, "test"), listed)
            found[f"lists {name}"] = of_lists.key
    return found


def changed(tree, key, value):
    """The recipe of a tree with another value; None where the two do not go together."""
    tree = json.loads(json.dumps(tree))
    node = tree
    for part in key.split(".")[:-1]:
        node = node[part] if isinstance(node.get(part), dict) else None
        if node is None:
            return None
    node[key.rpartition(".")[2]] = value
    try:
        return Recipe.model_validate(tree)
    except ValidationError:
        return None


def keys():
    """Every key that holds a value and no section."""
    sections = {path[:-1] for path in all_keys()}
    return [".".join(path) for path in all_keys() if path not in sections]


def found_for(place, key, trees):
    """Which made things another value of a key makes anew; None where it could not be tried."""
    names, tried = set(), False
    for tree, before in trees:
        recipe = Recipe.model_validate(tree)
        now = flattened(recipe).get(key, DEFAULTS.get(key.removeprefix("train.")))
        other = changed(tree, key, another(place, key, now))
        if other is None or flattened(other) == flattened(recipe):
            continue
        tried = True
        after = keys_of(other, place)
        names |= {name for name in before if name in after and after[name] != before[name]}
    systems = {name.removeprefix("predictions ") for name in names}
    return (
        sorted(n for n in systems if n.removeprefix("lists ") not in systems - {n})
        if tried
        else None
    )


def test_every_key_makes_anew_what_the_table_says(place):
    trees = []
    for changes in EXPERIMENTS.values():
        tree = experiment(place, changes)
        trees.append((tree, keys_of(Recipe.model_validate(tree), place)))
    argued = trees[:1]  # no section decides what `train` is read for
    found = {
        key: found_for(place, key, argued if key.startswith("train.") else trees) for key in keys()
    }
    assert [key for key, names in found.items() if names is None] == []
    table = yaml.safe_load(TABLE.read_text("utf-8"))
    other = {key: names for key, names in found.items() if table.get(key) != names}
    assert other == {}, f"rows of {TABLE.name} to be looked at"
    assert set(table) == set(found)


def test_the_keys_are_those_of_the_models_and_of_training_arguments():
    assert section_of(Recipe.model_fields["soft"].annotation) is not None
    assert {f"train.{name}" for name in ALLOWED} <= set(keys())
    assert "soft" not in keys()
    assert "soft.distill.beams" in keys()
