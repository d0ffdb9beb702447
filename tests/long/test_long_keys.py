"""Every key that a recipe may hold, with values that it takes and with huge ones: the run is made,
or a message says what cannot be; never a traceback."""

import pytest

from llmrec.recipe import trainer_arguments as arguments
from llmrec.recipe.experiment import Recipe
from llmrec.recipe.keys import section_of
from llmrec.recipe.section import MOST
from tests.long.conftest import rounds

pytestmark = pytest.mark.long
LITTLE = "import resource as r; r.setrlimit(r.RLIMIT_AS, (6 << 30, 6 << 30))"
MADE = {
    "int": ("1", "3", "40"),
    "float": ("0", "0.5", "7"),
    "bool": ("true", "false", "true"),
    "str": ("x", "auto", "no"),
    "list": ("[]", "[x]", "[all]"),
    "mapping": ("{}", "{x: 1}", "{a: {b: c}}"),
    "null": ("null",),
}


def values(name):
    """Three values of the kinds that a key of `train` takes."""
    kinds = [kind for kind in arguments.KINDS[name] if kind != "null"]
    given = list(arguments.CHOICES.get(name, ()))[:40]
    given += [value for kind in kinds for value in MADE[kind]] + ["null"]
    at = [0, len(given) // 2, len(given) - 1] if name in arguments.CHOICES else [0, 1, 2]
    return dict.fromkeys(given[i] for i in at if i < len(given))


def numeric(model=Recipe, above=()):
    """The dotted keys of a recipe that hold numbers, with the sections they need."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            yield from numeric(section, (*above, name))
        elif any(kind in str(field.annotation) for kind in ("int", "float", "Count", "Positive")):
            yield ".".join((*above, name))


def told_or_done(forks, given, wrong):
    process = forks.start("-q", *given, before=LITTLE)
    try:
        code, _, errors = process.ended(20)
    except AssertionError as error:
        if "not done after" not in str(error):
            raise
        return "runs on"  # as whoever wrote a million epochs wished
    if "Traceback" in errors or (code and "error: " not in errors):
        wrong.append(f"{given[2:]}: exit {code}: {errors[-600:]}")
    return "done" if code == 0 else "told"


def every(forks, capsys, what, cases):
    """Do `cases` (arguments) one after the other: each is done, or told without a traceback."""
    wrong, counts = [], {}
    for given in cases[: rounds(len(cases))]:
        verdict = told_or_done(forks, given, wrong)
        counts[verdict] = counts.get(verdict, 0) + 1
    with capsys.disabled():
        print(f"\n{what}, {sum(counts.values())} tried: {counts}")
        print("\n".join(wrong))
    assert not wrong


def test_every_train_key_with_three_values(recipe_of, written, forks, capsys):
    path = written(recipe_of("train.max_steps=2", "train.eval_strategy=no")[0])
    given = [f"train.{name}={value}" for name in arguments.ALLOWED for value in values(name)]
    cases = [["train", path, f"name=k{n}", setting] for n, setting in enumerate(given)]
    every(forks, capsys, f"{len(arguments.ALLOWED)} keys of train", cases)


@pytest.mark.parametrize("value", [MOST, 10**18, -1, 1e300])
def test_every_number_huge(value, recipe_of, written, forks, capsys):
    path = written(recipe_of("systems=[popularity, markov]", "train.max_steps=2")[0])
    cases = [["run", path, f"name=n{n}", f"{key}={value}"] for n, key in enumerate(numeric())]
    every(forks, capsys, f"numbers of {value}", cases)
