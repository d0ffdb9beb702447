"""Stages in order: `llmrec run`, and the three trainings of SOFT behind one `llmrec train`.

Each stage itself skips what is already done.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from llmrec.errors import RecipeError
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
    """Train as the recipe says: at once, or by steps where it has a section `soft` or `network`.

    Those of SOFT are sft (an adapter under `sft/`), distill (its answers under `distilled/`) and
    soft (the run's adapter); those of a network are told in `networks`. `only`: that step alone.
    """
    from llmrec.stages import prepare

    if recipe.network is not None:
        from llmrec.methods import networks

        prepare.run(recipe, folder)
        return networks.train(recipe, folder, only)
    from llmrec.stages import distill
    from llmrec.stages import train as training

    if recipe.soft is None:
        if only is not None:
            raise RecipeError(
                f"--only {only}: training has steps only with a section `soft` or `network`"
            )
        return training.run(recipe, folder)
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "sft": lambda: training.run(recipe.model_copy(update={"soft": None}), folder.sft),
        "distill": lambda: distill.run(recipe, folder),
        "soft": lambda: training.run(recipe, folder),
    }
    if only is not None and only not in steps:
        raise RecipeError(f"--only {only}: the steps are {', '.join(steps)}")
    results = {}
    for name in steps_of(recipe) if only is None else [only]:
        log.info("%s: %s", folder.root, name)
        results[name] = steps[name]()
    return {**results.pop("soft", {}), **results}


def steps_of(recipe: Recipe) -> list[str]:
    """The steps of SOFT that `train` goes through; what the recipe hands in is not made."""
    soft = recipe.soft
    if soft is None:
        return []
    if soft.answers is not None:
        return ["soft"]
    return ["distill", "soft"] if soft.sft_adapter is not None else ["sft", "distill", "soft"]
