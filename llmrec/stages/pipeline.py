"""`llmrec run`: every stage of a recipe in order. Each stage itself skips what is already done."""

import logging
import time
from typing import Any

from llmrec.recipe import Recipe
from llmrec.stages.folder import RunFolder

log = logging.getLogger("llmrec")


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Prepare, train, recommend, evaluate, report; the report's result and the seconds of each."""
    # Imported late: `train` and `recommend` bring torch.
    from llmrec.stages import evaluate, prepare, recommend, report, train

    needs_training = any(system.startswith("tuned") for system in recipe.systems)
    stages = [("prepare", prepare.run)]
    if needs_training and recipe.model.adapter is None:
        stages.append(("train", train.run))
    stages += [("recommend", recommend.run), ("evaluate", evaluate.run), ("report", report.run)]
    seconds: dict[str, float] = {}
    result: dict[str, Any] = {}
    for name, stage in stages:
        log.info("%s: %s", folder.root, name)
        started = time.monotonic()
        result = stage(recipe, folder)
        folder.keep(recipe)
        seconds[name] = round(time.monotonic() - started, 1)
        log.info("%s: %s done in %.1f s", folder.root, name, seconds[name])
    return {**result, "run": str(folder.root), "seconds": seconds}
