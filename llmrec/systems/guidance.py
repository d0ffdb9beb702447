"""A baseline that guides a language model: which one, and how much the model counts beside it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.errors import LlmrecError
from llmrec.inference.engine import closed_items
from llmrec.recipe.systems import GUIDES, System
from llmrec.systems.resources import Resources

log = logging.getLogger("llmrec")
_DESCRIBED = ("guided_by", "guide", "weight", "valid_nll")


@dataclass(frozen=True)
class Rows:
    """(U, N) a fitted baseline's probabilities, made of the users who are asked for, when they are:
    those of all would be an array of users x items."""

    resources: Resources
    scorer: Any
    histories: Sequence[npt.NDArray[np.int32]]

    def __getitem__(self, users: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        asked = [self.histories[user] for user in users.tolist()]
        return self.resources.probabilities(self.scorer, asked)


@dataclass(frozen=True)
class Guidance:
    """A fitted baseline under its name; `weight` of the language model, and of the baseline 1
    less that; what is kept of how these were chosen."""

    scorer: Any
    weight: float
    described: dict[str, Any]

    def probabilities(
        self, resources: Resources, histories: Sequence[npt.NDArray[np.int32]]
    ) -> npt.NDArray[np.float64]:
        """(U, N) the baseline's probabilities."""
        return resources.probabilities(self.scorer, histories)

    def rows(self, resources: Resources, histories: Sequence[npt.NDArray[np.int32]]) -> Rows:
        """The same, user by user."""
        return Rows(resources, self.scorer, histories)


def chosen_guidance(resources: Resources, system: System) -> Guidance:
    """The recipe's baseline and weight, or what does best in validation."""
    baseline = _baseline(resources)
    tuned = resources.fitted(baseline)
    weight, by_weight = _weight(resources, system, tuned.fitted)
    described = {
        "guided_by": baseline,
        "guide": tuned.hyperparameters,
        "weight": weight,
        "valid_nll": by_weight,
    }
    return Guidance(tuned.fitted, weight, described)


def served_guidance(resources: Resources, system: System) -> Guidance:
    """The guidance that the system's predictions for the test split record, else chosen anew."""
    recorded = resources.recorded(system)
    if not {"guided_by", "weight"} <= recorded.keys():
        return chosen_guidance(resources, system)
    scorer = resources.refitted(recorded["guided_by"], recorded.get("guide"))
    described = {key: recorded[key] for key in _DESCRIBED if key in recorded}
    return Guidance(scorer, float(recorded["weight"]), described)


def _baseline(resources: Resources) -> str:
    """The baseline that guides: the recipe's, or the best in validation of those it lists."""
    recipe = resources.recipe
    named = recipe.decode.guidance.baseline
    if named not in (None, "auto"):
        return named
    listed = [name for name in recipe.systems if name in GUIDES] or GUIDES[:1]
    return min(listed, key=lambda name: (resources.fitted(name).value, name))


def _weight(resources: Resources, system: System, scorer: Any) -> tuple[float, dict[str, float]]:
    """The model's share, given or best in validation, and the mean NLL of each one tried."""
    guidance = resources.recipe.decode.guidance
    if guidance.weight != "auto":
        return float(guidance.weight), {}
    log.info("recommend: choosing the weight of %s in validation", system.name)
    by_weight = _valid_nll(resources, system, scorer, guidance.grid)
    if not by_weight:
        raise LlmrecError(
            "no validation target can be recommended, so no guidance weight can "
            "be chosen; set decode.guidance.weight to a number"
        )
    best = min(by_weight, key=lambda weight: (by_weight[weight], weight))
    return best, {f"{weight:g}": value for weight, value in by_weight.items()}


def _valid_nll(
    resources: Resources, system: System, scorer: Any, grid: Sequence[float]
) -> dict[float, float]:
    """Mean target NLL in validation for each weight of the language model against the baseline.

    Every process computes all of it. Targets that are not open to their users do not count.
    """
    valid, models = resources.valid, resources.language
    engine, prompting = models.engine(system), models.prompting("valid", valid)
    total, counted = dict.fromkeys(grid, 0.0), 0
    for _, paths in engine.paths(
        prompting.ids(prompting.selected(engine)),
        closed_items(valid.histories(), resources.recipe.decode.filter_seen),
        valid.targets,
        Rows(resources, scorer, valid.histories()),
    ):
        counted += int(paths.reachable.sum())
        for weight in grid:
            total[weight] += float(paths.nll(weight)[paths.reachable].sum())
    return {weight: value / counted for weight, value in total.items()} if counted else {}
