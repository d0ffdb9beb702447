"""Values of `train` that the libraries refuse are mistakes in a recipe, told before the first step,
and what fails from then on is not."""

import json

import pytest

from llmrec.errors import RecipeError
from llmrec.model.settings import judged_by_libraries
from llmrec.stages import train


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.dataloader_persistent_workers=true", "persistent_workers option needs num_workers"),
        ("train.dataloader_multiprocessing_context=x", "num_workers > 0"),
        ("train.lr_scheduler_type=cosine_with_min_lr", "min_lr"),
        ("train.optim_args=x", "not enough values"),
        ("train.parallelism_config={x: 1}", "dict"),
    ],
)
def test_what_the_libraries_refuse(override, told, recipe_of):
    recipe, folder = recipe_of(override)
    with pytest.raises(RecipeError, match=rf"(?s)train: .*{told}"):
        train.run(recipe, folder)
    assert not list(folder.checkpoints.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "override",
    ["train.adam_beta1=7", "train.adam_beta2=1", "train.log_level=x", "train.adam_epsilon=-1"],
)
def test_what_a_recipe_refuses(override, recipe_of):
    key = override.split("=")[0]
    with pytest.raises(RecipeError, match=key.replace(".", r"\.")):
        recipe_of(override)


@pytest.mark.parametrize("override", ["train.adam_beta1=0", "train.report_to=null"])
def test_what_is_right_trains(override, recipe_of):
    recipe, folder = recipe_of(override, "train.max_steps=1")
    assert train.run(recipe, folder)["steps"] == 1


def test_what_fails_later_or_in_llmrec_keeps_its_traceback():
    def judged(begun, call):
        with judged_by_libraries(lambda: begun):
            call()

    with pytest.raises(ValueError, match="Expecting"):
        judged(True, lambda: json.loads("{"))
    with pytest.raises(RecipeError, match="json refuses a value: JSONDecodeError"):
        judged(False, lambda: json.loads("{"))
    ours = compile("{}['x']", "train.py", "eval")
    with pytest.raises(KeyError):
        judged(False, lambda: eval(ours, {"__name__": "llmrec.stages.train"}))  # noqa: S307
    with pytest.raises(RecipeError, match=r"^mine$"):
        judged(False, lambda: (_ for _ in ()).throw(RecipeError("mine")))
