"""Recommend: every system of the recipe answers for the test split, one predictions file each.

Baselines are fitted on the training interactions with hyperparameters chosen in validation, as is
the weight of a baseline that guides the language model. A language model's answers are kept batch
by batch, so that an interrupted run goes on where it stopped, and processes share the batches.
"""

import logging
from contextlib import nullcontext
from typing import Any

from llmrec.recipe import Recipe
from llmrec.recipe.systems import parsed
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare
from llmrec.systems.calibrated_lists import write_lists
from llmrec.systems.other_histories import write_other_histories
from llmrec.systems.resources import Resources
from llmrec.systems.table_rows import predictions_of

log = logging.getLogger("llmrec")


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `predictions/<system>.parquet` for each system that has none of these settings yet."""
    with _main_process_first(recipe):
        prepare.run(recipe, folder)
    resources, systems = Resources(recipe, folder), parsed(recipe.systems)
    written, standing = [], []
    for system in systems:
        artifact = resources.artifact(system)
        if artifact.facts_or_none() is not None:
            standing.append(system.name)
            continue
        predictions = predictions_of(resources, system)
        if predictions is not None:
            artifact.write(predictions.write)
        written.append(system.name)
        log.info("recommend: %s done", system.name)
    if recipe.evaluate.calibration is not None:
        written += [f"lists of {s.name}" for s in systems if write_lists(resources, s)]
    if recipe.evaluate.gates:
        others = [s.name for s in systems if write_other_histories(resources, s)]
        written += [f"{name} with other histories" for name in others]
    return {"written": written, "standing": standing, "folder": str(folder.predictions("x").parent)}


def _main_process_first(recipe: Recipe) -> Any:
    """Lets one process prepare before the others look; without a language model there is one."""
    if not any(system.kind == "language_model" for system in parsed(recipe.systems)):
        return nullcontext()
    from llmrec.runs.processes import processes

    return processes().main_process_first()
