"""What SOFT keeps: the best of several alphas in validation, or its teacher if that is better."""

import logging
import shutil
from collections.abc import Mapping
from typing import Any

from llmrec.data import sealed
from llmrec.inference.from_recipe import base_of, sft_adapter_of
from llmrec.methods.method import Job, Kept, Train
from llmrec.methods.validation import validation_of
from llmrec.model.loading import load_tuned
from llmrec.recipe import Recipe
from llmrec.runs import made
from llmrec.runs.artifact import SETTINGS
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import main_only, processes, together

log = logging.getLogger("llmrec")
# Names in an adapter's key that decide what a validation finds, for weights that are given.
_VALIDATION = ("validation.", "decode.", "prompt", "data", "tokenizer", "model weights", "model.dt")


def teacher(job: Job) -> Kept | None:
    """The fine-tuned adapter whose answers are learned, and how it does in the same validation.

    Its own manifest says so where it was trained with that; else it is measured. None where the
    recipe does not want it kept.
    """
    recipe, folder = job.recipe, job.folder
    if recipe.soft is None or not recipe.soft.keep_teacher:
        return None
    place = sft_adapter_of(recipe, folder)
    if not place.is_dir():  # answers were handed in alone
        return None
    if sealed.manifest_of(place).is_file():
        facts = sealed.facts(place)
        if _validated_alike(facts.get(SETTINGS) or {}, made.adapter(recipe, folder).key):
            return Kept("teacher", place, facts["step"], tuple(facts["score"]), facts["figures"])
    measured = validation_of(recipe, folder, job.encoder)(load_tuned(base_of(recipe), place).eval())
    return Kept("teacher", place, 0, measured.score, measured.figures)


def _validated_alike(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two adapters' scores are of one validation, by the keys that they were made of."""
    # Own answers may be renormalised, and where validation does not search nothing else is.
    asked = {name for name in now if name.startswith(_VALIDATION)}
    asked -= {"decode.renormalise"} - then.keys()
    return all(now[name] == then.get(name) for name in asked)


def best_alpha(recipe: Recipe, folder: RunFolder, train: Train) -> dict[str, Any]:
    """Train with each alpha of the grid, on the same answers, and keep the best in validation.

    Equal ones go to the earlier of the grid. What was trained stays, so that this goes on where it
    was interrupted.
    """
    soft = recipe.soft
    assert soft is not None  # noqa: S101  callers ask first
    artifact = made.adapter(recipe, folder)
    standing = main_only(artifact.facts_or_none)
    if standing is not None:
        log.info("soft: %s stands already, nothing to do", folder.adapter)
        return {**_told(standing), "adapter": str(folder.adapter), "skipped": True}
    tried = []
    for alpha in soft.grid:
        own = recipe.model_copy(update={"soft": soft.model_copy(update={"alpha": alpha})})
        part = folder.alpha(alpha)
        log.info("soft: alpha %g", alpha)
        train(own, part)
        facts = sealed.facts(part.adapter)
        tried.append((tuple(facts["score"]), alpha, part, facts))
    score, alpha, part, facts = min(tried, key=lambda one: one[0])
    # Of an alpha whose teacher was kept, what its own training came to.
    values = {f"{a:g}": list((f.get("trained") or f)["score"]) for _, a, _, f in tried}
    log.info("soft: alpha %g of %s is best in validation", alpha, ", ".join(values))
    if processes().is_main_process:
        shutil.copyfile(part.train_log, folder.train_log)
        kept = {name: facts[name] for name in ("step", "figures")}
        more = {"kept": facts["kept"]} if "kept" in facts else {}
        artifact.adopt(part.adapter, score=score, alpha=alpha, alphas=values, **kept, **more)
    together()
    told = _told(sealed.facts(folder.adapter))
    return {**told, "adapter": str(folder.adapter), "skipped": False}


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: facts[name] for name in ("alpha", "alphas", "kept") if name in facts}
    return {"step": facts["step"], **facts["figures"], **said}
