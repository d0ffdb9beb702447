"""Columns of `llmrec evaluate` beside the plain ones: what candidates hold, and without the bias of
what is seen often. Imports neither torch nor transformers."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmrec.data.candidates import proposed, read_candidates
from llmrec.data.records import Examples
from llmrec.evaluation.intervals import Floats, mean_interval
from llmrec.evaluation.metrics import at_every_k
from llmrec.evaluation.predictions import Predictions
from llmrec.evaluation.propensity import propensities, self_normalised
from llmrec.evaluation.rankings import answer_counts
from llmrec.evaluation.table import OF_VALID, SCALED_NLL, SNIPS, VALID
from llmrec.recipe.systems import System
from llmrec.runs.evaluated import TestSplit
from llmrec.runs.lists import nll_at_temperature

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.recipe.training import Propensity
    from llmrec.runs.folder import RunFolder


def of_candidates(recipe: "Recipe", folder: "RunFolder", split: TestSplit) -> list[str]:
    """What the candidates are; of a retriever's, how many targets they hold: the ceiling."""
    asked = recipe.data.candidates
    if asked is None:
        return []
    if asked.retriever is None:
        return [
            f"Every target among {asked.count} candidates; HR@1 counts all users, "
            f"{OF_VALID} those whose answer is a candidate."
        ]
    candidates = read_candidates(folder.candidates("test"))
    held = proposed(candidates, split.examples.targets)
    users = np.unique(split.examples.user_ids, return_inverse=True)[1]
    wanted = recipe.evaluate
    recall = mean_interval(
        held.astype(float),
        users,
        samples=wanted.samples,
        confidence=wanted.confidence,
        seed=wanted.seed,
    )
    return [
        f"Every system ranks the {asked.count} best items of {asked.retriever}, whose recall "
        f"{recall.mean:.3f} [{recall.low:.3f}, {recall.high:.3f}] is the ceiling of every hit "
        "rate. A target that is not among them is a miss, and NLL leaves it out."
    ]


def validity(predictions: Predictions, split: TestSplit) -> dict[str, Floats]:
    """Whether an answer is one of the candidates at all, and HR@1 where it is; each (E,)."""
    rankings = predictions.rankings()
    valid = answer_counts(rankings) > 0
    hit = at_every_k(rankings, split.examples.targets, [1])["HR@1"]
    return {VALID: valid.astype(float), OF_VALID: np.where(valid, hit, np.nan)}


def debiased(
    per_user: Mapping[str, dict[str, Floats]],
    asked: "Propensity",
    split: TestSplit,
    ks: Sequence[int],
) -> list[str]:
    """Add HR and NDCG at every k by SNIPS to each system's values; what they are, in words.

    A value is the mean's share of its user, so that the mean over all users is the ratio
    `sum hit / theta / sum 1 / theta`, and a bootstrap of the mean its interval (delta method).
    """
    theta = propensities(split.counts, asked.power, asked.floor)[split.examples.targets]
    for values in per_user.values():
        for name in [f"{metric}@{k}" for k in ks for metric in ("HR", "NDCG")]:
            values[f"{name} {SNIPS}"] = self_normalised(values[name], 1 / theta)
    return [
        f"{SNIPS}: users weigh 1 / theta, theta = max((n / max n) ** {asked.power:g}, "
        f"{asked.floor:g}) of their target's n training interactions."
    ]


def at_temperatures(
    recipe: "Recipe",
    folder: "RunFolder",
    split: TestSplit,
    predictions: Sequence[Predictions],
    per_user: Mapping[str, dict[str, Floats]],
) -> tuple[dict[str, float], list[str]]:
    """Add the NLL at a temperature to each system's values, where systems are calibrated.

    The temperature by system, and in words what it is.
    """
    valid = folder.examples("valid")
    if recipe.evaluate.calibration is None or not valid.is_file():
        return {}, []
    fitting, data = Examples.read(valid), folder.provenance(recipe)["data"]
    found = {}
    for p in predictions:
        name, missing = p.info.system, np.full(len(split.examples), np.nan)
        at = nll_at_temperature(folder, name, fitting, split.examples, len(split.catalog), data)
        per_user[name][SCALED_NLL] = missing if at is None else at[1]
        found |= {} if at is None else {name: at[0]}
    told = ", ".join(f"{name} {temperature:.2f}" for name, temperature in found.items())
    return found, [
        f"Temperatures, fitted in validation: {told}. NLL at it is exact where the whole catalog "
        "is listed (evaluate.calibration.listed), else at most so large."
    ] * bool(found)


def of_routed(
    recipe: "Recipe",
    folder: "RunFolder",
    predictions: Sequence[Predictions],
    per_user: Mapping[str, Mapping[str, Floats]],
    ks: Sequence[int],
) -> list[str]:
    """For each system that routes users: how many its model is asked for, and both groups' NDCG."""
    asked, k = recipe.data.candidates, 10 if 10 in ks else max(ks)
    notes = []
    for p in predictions:
        name, path = p.info.system, folder.routed(p.info.system)
        if asked is None or not System.is_name(name) or System.parse(name).way != "routed":
            continue
        if not path.is_file():  # the predictions were made elsewhere
            continue
        weak = np.array(json.loads(path.read_text("utf-8")), np.bool_)
        told = []
        for system in (asked.retriever, name):
            if system not in per_user or not 0 < weak.sum() < len(weak):
                continue
            values = per_user[system][f"NDCG@{k}"]
            of_weak, of_others = float(values[weak].mean()), float(values[~weak].mean())
            told.append(
                f"{system} {of_weak:.3f} of weak users and {of_others:.3f} of others, worst group "
                f"{min(of_weak, of_others):.3f}"
            )
        notes.append(
            f"{name} asks its model for {weak.sum()} of {len(weak)} examples, which saves "
            f"{1 - weak.mean():.1%} of its calls. "
            + (f"NDCG@{k}: {'; '.join(told)}." if told else "")
        )
    return notes
