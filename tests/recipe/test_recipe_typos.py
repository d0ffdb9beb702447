"""One-letter typos of every key a recipe may hold: all refused, nearly all with the right key."""

import random
import re

import pytest

from llmrec.errors import RecipeError
from llmrec.recipe.keys import all_keys, keys_in, meant
from llmrec.recipe.loading import load

LETTERS = "abcdefghijklmnopqrstuvwxyz_"
REPORT = re.compile(r":(\d+): unknown key (\S+); (?:did you mean (\S+)\?)?")


def typos(key, generator):
    """A deletion, an insertion, a substitution and a swap, each at a random place."""
    place = generator.randrange(len(key))
    letter = generator.choice(LETTERS)
    yield key[:place] + key[place + 1 :]
    yield key[:place] + letter + key[place:]
    yield key[:place] + letter + key[place + 1 :]
    if len(key) > 1:
        place = generator.randrange(len(key) - 1)
        yield key[:place] + key[place + 1] + key[place] + key[place + 2 :]


def misspelt(seed):
    """{(section, typo): real path}, one for each typo that is not itself a key there."""
    generator = random.Random(seed)
    found = {}
    for path in all_keys():
        section = path[:-1]
        for typo in typos(path[-1], generator):
            if typo and typo not in keys_in(section):
                found.setdefault((section, typo), path)
    return found


def as_yaml(keys):
    """A recipe whose every key, but for the sections, is one of the misspelt ones."""

    def block(section):
        lines = ["name: x"] if section == () else []
        indent = "  " * len(section)
        lines += [f'{indent}"{typo}": 1' for inside, typo in keys if inside == section]
        deeper = {inside for inside, _ in keys if inside[:-1] == section and inside != ()}
        for child in sorted(deeper):
            lines += [f"{indent}{child[-1]}:", *block(child)]
        return lines

    return "\n".join(block(()))


def test_every_typo_is_refused_with_its_line(tmp_path):
    keys = misspelt(seed=1)
    assert len(keys) > 500
    file = tmp_path / "typos.yaml"
    file.write_text(as_yaml(keys))
    with pytest.raises(RecipeError) as caught:
        load(file)
    lines = file.read_text().splitlines()
    reported = {}
    for line, dotted, suggestion in REPORT.findall(str(caught.value)):
        typo = dotted.split(".")[-1]
        assert f'"{typo}"' in lines[int(line) - 1]
        reported[tuple(dotted.split(".")[:-1]), typo] = suggestion
    assert set(reported) == set(keys)
    right = sum(reported[key] == ".".join(path) for key, path in keys.items())
    assert right / len(keys) >= 0.95


@pytest.mark.parametrize("seed", range(2, 5))
def test_the_right_key_is_suggested(seed):
    keys = misspelt(seed)
    right = sum(meant(section, typo) == path for (section, typo), path in keys.items())
    assert right / len(keys) >= 0.95


@pytest.mark.parametrize(
    ("section", "key", "expected"),
    [
        ((), "learning_rate", "train.learning_rate"),
        (("model",), "learning_rate", "train.learning_rate"),
        (("train",), "lr", "train.learning_rate"),
        (("train",), "batch_size", "train.per_device_train_batch_size"),
        (("model",), "lora_alpha", "model.lora.alpha"),
        (("train",), "max_history", "prompt.max_history"),
        (("data",), "Split", "data.split"),
        (("data",), "k-core", "data.k_core"),
        (("evaluate",), "batch_size", "decode.batch_size"),
    ],
)
def test_a_key_of_another_section_or_habit_is_found(section, key, expected):
    found = meant(section, key)
    if key == "batch_size":
        assert found is not None
        assert "batch_size" in found[-1]
    else:
        assert found == tuple(expected.split("."))


def test_a_word_far_from_every_key_gets_no_suggestion():
    assert meant((), "zebra") is None
    assert meant(("evaluate",), "zebra") is None
