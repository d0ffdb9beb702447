"""One recipe trained with several values of one key, each in a run folder of its own."""

from collections.abc import Sequence
from typing import Any

from llmrec.errors import RecipeError
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder


def run(reference: str, overrides: Sequence[str], swept: str) -> list[dict[str, Any]]:
    """Train once for each value of `swept`, "section.key=value,value,..."; what each one reached.

    All recipes are read before anything is trained. Where the key makes no difference to the
    fine-tuned adapter and its answers (`soft.alpha` and the like), these are made once, in the
    recipe's own run folder. A value's run is called <name>-<key>-<value>.
    """
    key, equals, text = swept.partition("=")
    values = text.split(",")
    from llmrec.inference.from_recipe import sft_adapter_of
    from llmrec.methods.table import method_of
    from llmrec.runs.made import answers_file
    from llmrec.stages import pipeline  # brings torch, which reading recipes does not need

    if not equals or not key or not all(values):
        raise RecipeError(f"--sweep {swept}: written section.key=value,value,...")
    if len(set(values)) < len(values):
        raise RecipeError(f"--sweep {swept}: every value once")
    first = load(reference, [*overrides, f"{key}={values[0]}"])
    folder = RunFolder.of(first)
    given = []
    if first.soft is not None and key.startswith("soft.") and not key.startswith("soft.distill"):
        given = [
            f"soft.sft_adapter={sft_adapter_of(first, folder)}",
            f"soft.answers={answers_file(first, folder).parent}",
        ]
    recipes = [
        load(
            reference,
            [
                *overrides,
                f"{key}={value}",
                *given,
                f"name={first.name}-{key.rpartition('.')[2]}-{value}",
            ],
        )
        for value in values
    ]
    for step in list(method_of(first).steps(first))[:-1] if given else ():
        pipeline.train(first, folder, step)
    reached = []
    for value, recipe in zip(values, recipes, strict=True):
        own = RunFolder.of(recipe)
        result = pipeline.train(recipe, own)
        own.keep(recipe)
        figures = {name: figure for name, figure in result.items() if name.startswith("valid_")}
        reached.append({key: value, "run": str(own.root), "step": result["step"], **figures})
    return reached
