"""The commands in the head of every shipped recipe, one after the other, as a reader runs them.

Each recipe keeps what it says and is made small: a tiny model, a small log in the shape that the
head asks for, few rows. What a launcher is given is held against accelerate's own parser, and the
verb behind it runs here.
"""

import gzip
import importlib
import json
import random
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from llmrec.cli import app
from llmrec.recipe import shipped
from llmrec.recipe.shipped import recipe_names

USERS, ITEMS, EACH = 36, 45, 14
SMALL = {
    "data": {"subset": {"train": 12, "valid": 6, "test": 6}},
    "model": {"dtype": "float32", "quantization": "none"},
    "prompt": {"max_tokens": 500},
    "train": {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    },
    "evaluate": {"samples": 100},
    "baselines": {"trials": 1},
}
SMALL_SECTIONS = {
    "rows": {"count": 8},
    "soft": {"probe": 4, "distill": {"beams": 2, "max_new_tokens": 4}},
    "demonstrations": {"selection": {"refresh": 1}},
    "network": {"hidden": 8, "max_epochs": 2, "max_length": 10, "trials": 1, "at_once": 1},
    "conformal": {"max_epochs": 2},
    "decode": {"beams": 4, "top_k": 4, "grounding": {"beams": 1, "max_new_tokens": 4}},
}
ENCODING = "text_knn_sentences"  # its encoder is not at hand


def log():
    """(user, item, time) of users who each choose `EACH` of the items; each item often enough."""
    rng = random.Random(0)
    for user in range(USERS):
        items = [(user * 3 + step) % ITEMS for step in range(EACH)]
        rng.shuffle(items)
        yield from ((user, item, 1_000_000 * (user + 1) + 7 * n) for n, item in enumerate(items))


def write_csv(folder, name):
    rows = [f"u{u},i{i},{t},5,Star {i}" for u, i, t in log()]
    head = "user_id,item_id,timestamp,rating,title"
    (folder / name).write_text("\n".join([head, *rows]) + "\n", "utf-8")


def write_parquet(folder, name, items):
    users, chosen, _ = zip(*log(), strict=True)
    order = [n % EACH for n in range(len(users))]
    columns = {"user_id": users, "item_id": chosen, "order": order}
    pq.write_table(pa.table(columns), folder / name)
    titles = {"item_id": range(ITEMS), "title": [f"Star {n}" for n in range(ITEMS)]}
    pq.write_table(pa.table({k: list(v) for k, v in titles.items()}), folder / items)


def write_lines(path, values):
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(value) + "\n" for value in values)


def write_amazon_2018(folder, name):
    write_lines(
        folder / name,
        (
            {"reviewerID": f"u{u}", "asin": f"i{i}", "overall": 5.0, "unixReviewTime": t}
            for u, i, t in log()
        ),
    )
    write_lines(
        folder / f"meta_{name.replace('_5.', '.')}",
        ({"asin": f"i{i}", "title": f"Star {i}"} for i in range(ITEMS)),
    )


def write_amazon(folder, name):
    write_lines(
        folder / name,
        (
            {"user_id": f"u{u}", "parent_asin": f"i{i}", "rating": 5.0, "timestamp": 1000 * t}
            for u, i, t in log()
        ),
    )
    write_lines(
        folder / f"meta_{name}",
        ({"parent_asin": f"i{i}", "title": f"Star {i}"} for i in range(ITEMS)),
    )


def write_amazon2018(folder, name):
    def write(path, values):
        with gzip.open(path, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(value) + "\n" for value in values)

    write(
        folder / name,
        (
            {"reviewerID": f"u{u}", "asin": f"i{i}", "overall": 5.0, "unixReviewTime": t}
            for u, i, t in log()
        ),
    )
    write(
        folder / f"meta_{name.replace('_5.json', '.json')}",
        ({"asin": f"i{i}", "title": f"Star {i}", "brand": "Sun"} for i in range(ITEMS)),
    )


def write_movielens(folder):
    """A folder as `llmrec fetch data` leaves it for ml-100k and ml-1m, with other ratings."""
    folder.mkdir(parents=True)
    write_csv(folder, "interactions.csv")


def commands_of(text):
    """The commands of a recipe's head, continued lines joined, trailing remarks left out."""
    lines, joined = text.splitlines(), []
    for line in lines:
        if not line.startswith("#"):
            break
        body = line.removeprefix("#")
        if joined and joined[-1].endswith("\\"):
            joined[-1] = joined[-1].removesuffix("\\") + body.strip()
        elif body.startswith("   ") and body.strip().startswith(("llmrec ", "accelerate ")):
            joined.append(body.strip().split("   ")[0].rstrip())
    return joined


def merged(recipe, small):
    for key, value in small.items():
        if isinstance(value, dict):
            merged(recipe.setdefault(key, {}), value)
        else:
            recipe[key] = value
    return recipe


@pytest.fixture
def small_recipes(tmp_path, tmp_path_factory, tiny_base, monkeypatch):
    """The shipped recipes made small, found under their own names; the folder of their data."""
    recipes, data = tmp_path / "recipes", tmp_path / "FOLDER"
    data.mkdir()
    recipes.mkdir()
    for name in recipe_names():
        text = shipped.recipe_file(name).read_text("utf-8")
        recipe = merged(yaml.safe_load(text), json.loads(json.dumps(SMALL)))
        for section, small in SMALL_SECTIONS.items():
            if recipe.get(section) is not None or section == "rows":
                merged(recipe.setdefault(section, {}), json.loads(json.dumps(small)))
        recipe["model"]["base"] = str(tiny_base)
        recipe["evaluate"].pop("calibration", None)
        source = recipe["data"]["source"]
        if source.startswith("ml-"):
            place = tmp_path / "movielens" / source
            if not place.exists():
                write_movielens(place)
            recipe["data"]["source"] = str(place)
        elif source.endswith(".csv"):
            write_csv(data, source)
        elif recipe["data"].get("format") == "amazon2018":
            write_amazon_2018(data, source.rpartition("/")[2])
        elif source.endswith(".parquet"):
            write_parquet(data, source, recipe["data"]["items"])
        elif source.startswith("amazon2018/"):
            write_amazon2018(data, source.rpartition("/")[2])
        else:
            write_amazon(data, source.rpartition("/")[2].removesuffix(".jsonl.gz") + ".jsonl.gz")
        recipe["evaluate"]["k"] = [1, 4]
        if ENCODING in recipe.get("systems", []):
            recipe["systems"].remove(ENCODING)
        head = text[: text.index("name:")].replace(f", {ENCODING}", "")
        (recipes / f"{name}.yaml").write_text(head + yaml.safe_dump(recipe), "utf-8")
    real = shipped.recipes()
    (recipes / "accelerate").symlink_to(real / "accelerate")
    monkeypatch.setattr(shipped, "recipes", lambda: recipes)
    monkeypatch.chdir(tmp_path)
    return recipes


def arguments_of(command):
    """What llmrec is given by a command, a launcher's own arguments parsed by accelerate."""
    words = shlex.split(command)
    if words[0] == "llmrec":
        return words[1:]
    launch = importlib.import_module("accelerate.commands.launch")
    at = words.index("-m")
    parsed = launch.launch_command_parser().parse_args(words[2:])
    assert (parsed.module, parsed.training_script) == (True, "llmrec")
    file = words[words.index("--config_file") + 1]
    assert file.removesuffix(".yaml") in shipped.accelerate_names()
    return words[at + 2 :]


@pytest.mark.parametrize("name", recipe_names())
def test_the_commands_of_the_head_run_one_after_the_other(name, small_recipes):
    commands = commands_of((small_recipes / f"{name}.yaml").read_text("utf-8"))
    assert commands or name == "demo"
    for command in commands:
        arguments = arguments_of(command)
        if arguments[0] == "fetch":
            continue
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{command}\n{done.output[-3000:]}\n{done.exception!r}"
