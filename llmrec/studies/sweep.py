"""`llmrec train --sweep`: a recipe trained with several values of keys, a study of some axes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llmrec.errors import RecipeError
from llmrec.recipe import plain_yaml
from llmrec.recipe.loading import load, locate
from llmrec.recipe.reading import Reading, Setting
from llmrec.studies import running
from llmrec.studies.cells import Plan, plan_of
from llmrec.studies.file import Arm, Study
from llmrec.studies.study import written
from llmrec.terminal import by_main

_OF_THE_STUDY = ("seed", "name", "output_dir")


def run(reference: str, overrides: Sequence[str], *swept: str) -> dict[str, Any]:
    """Train once for each value of `swept`, "section.key=value,value,..."; what each one reached.

    Several keys make a grid. All recipes are read before anything is trained, and what the values
    have in common is made once. The runs stand in a folder <name>-<section.key> beside the recipe's
    own. Raises RecipeError for a sweep that cannot run.
    """
    plan = _plan(reference, overrides, swept)
    record = running.run(plan)
    found = by_main(partial(written, plan, record))
    keys = [one.partition("=")[0] for one in swept]
    reached = [
        {
            **{key: cell.line.at[key] for key in keys},
            "run": str(cell.folder.root),
            **record.cells.get(cell.name, {}).get("figures", {}),
        }
        for cell in plan.cells
    ]
    return {**found, "reached": reached}


def _plan(reference: str, overrides: Sequence[str], swept: Sequence[str]) -> Plan:
    axes: dict[str, list[str]] = {}
    for one in swept:
        key, equals, text = one.partition("=")
        values = text.split(",")
        if not equals or not key or not all(values):
            raise RecipeError(f"--sweep {one}: written section.key=value,value,...")
        if len(set(values)) < len(values) or key in axes:
            raise RecipeError(f"--sweep {one}: every value once, and every key")
        axes[key] = values
    base = load(reference, [*overrides, *(f"{key}={values[0]}" for key, values in axes.items())])
    grid = {key: [plain_yaml.read(value).value for value in values] for key, values in axes.items()}
    study = Study(
        name="-".join([base.name, *axes]),
        recipe=str(locate(reference)),
        output_dir=base.output_dir,
        ends_with="train",
        seeds=[base.seed],
        arms={base.name: Arm(sweep=grid)},
    )
    said = " ".join(f"--sweep {one}" for one in swept)
    reading = Reading(said, {}, {})
    reading.given[()] = Setting((), None, said)
    kept = [text for text in overrides if text.partition("=")[0] not in _OF_THE_STUDY]
    return plan_of(study, reading, kept, Path())
