"""Stages in order: `llmrec run`, and the three trainings of SOFT behind one `llmrec train`.

Each stage itself skips what is already done.
"""

import logging
import time
from typing import Any

from llmrec.recipe import Recipe
from llmrec.recipe.systems import parsed
from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Prepare, train, recommend, evaluate, report; the report's result and the seconds of each."""
    # Imported late: `train` and `recommend` bring torch.
    from llmrec.stages import evaluate, prepare, recommend, report

    needs_training = any(system.is_trained for system in parsed(recipe.systems))
    stages = [("prepare", prepare.run)]
    if needs_training and recipe.model.adapter is None:
        stages.append(("train", train))
    stages += [("recommend", recommend.run), ("evaluate", evaluate.run)]
    if recipe.evaluate.calibration is not None:
        from llmrec.stages import calibrate

        stages.append(("calibrate", calibrate.run))
    stages.append(("report", report.run))
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


def train(recipe: Recipe, folder: RunFolder, only: str | None = None) -> dict[str, Any]:
    """Train as the recipe's method says, step by step; `only`: that step alone.

    Those of SOFT are sft (an adapter under `sft/`), distill (its answers under `distilled/`) and
    soft (the run's adapter); those of a network are told in `networks`.
    """
    from llmrec.methods.table import method_of
    from llmrec.runs.processes import processes
    from llmrec.stages import prepare
    from llmrec.stages import train as training

    with processes().main_process_first():
        prepare.run(recipe, folder)
    return method_of(recipe).train(recipe, folder, training.run, only)
