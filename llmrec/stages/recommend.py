"""Recommend: every system of the recipe answers for the test split, one predictions file each.

Baselines are fitted on the training interactions with hyperparameters chosen in validation, as is
the weight of a baseline that guides the language model. A language model's answers are kept batch
by batch, so that an interrupted run goes on where it stopped, and processes share the batches.
"""

import logging
from typing import Any

from llmrec.recipe import Recipe
from llmrec.recipe.systems import System, parsed
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare
from llmrec.stages.holding import alone
from llmrec.systems.calibrated_lists import MainOnly, write_lists
from llmrec.systems.other_histories import write_other_histories
from llmrec.systems.resources import Resources
from llmrec.systems.table_rows import predictions_of
from llmrec.terminal import by_main

log = logging.getLogger("llmrec")


@alone("recommend")
def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `predictions/<system>.parquet` for each system that has none of these settings yet."""
    if not any(system.kind == "language_model" for system in parsed(recipe.systems)):
        return by_main(lambda: _answered(recipe, folder, lambda do: do()))
    from llmrec.runs.processes import begun, main_only  # brings torch

    begun(recipe, folder.root)
    return _answered(recipe, folder, main_only)


def _answered(recipe: Recipe, folder: RunFolder, main_only: MainOnly) -> dict[str, Any]:
    """The same; `main_only` has the main process do what is not shared and decide for all."""
    main_only(lambda: prepare.run(recipe, folder))
    resources, systems = Resources(recipe, folder), parsed(recipe.systems)
    written, standing = [], []
    for system in systems:
        artifact = resources.artifact(system)
        if main_only(lambda: artifact.facts_or_none() is not None):  # noqa: B023
            standing.append(system.name)
            continue
        if system.kind != "language_model":
            main_only(lambda: _write(resources, system))  # noqa: B023
        else:
            _write(resources, system)
        written.append(system.name)
        log.info("recommend: %s done", system.name)
    if recipe.evaluate.calibration is not None:
        written += [f"lists of {s.name}" for s in systems if write_lists(resources, s, main_only)]
    if recipe.evaluate.gates:
        others = [s.name for s in systems if write_other_histories(resources, s)]
        written += [f"{name} with other histories" for name in others]
    return {"written": written, "standing": standing, "folder": str(folder.predictions("x").parent)}


def _write(resources: Resources, system: System) -> None:
    predictions = predictions_of(resources, system)
    if predictions is not None:
        resources.artifact(system).write(predictions.write)
