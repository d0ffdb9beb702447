"""Lists to calibrate with: the likeliest items of a system and their probabilities.

Written by `recommend` where the recipe has `evaluate.calibration`, for every system that gives
items probabilities. A language model's lists are as long as its Rankings, those of baselines and
networks `evaluate.calibration.listed` items.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.evaluation.predictions import Predictions
from llmrec.recipe.systems import System
from llmrec.runs import made
from llmrec.runs.artifact import Artifact
from llmrec.systems import baselines
from llmrec.systems.resources import Resources

# Validation examples that a temperature is fitted to, drawn by seed where there are more.
MAX_EXAMPLES = 2000
MainOnly = Callable[[Callable[[], Any]], Any]


def write_lists(
    resources: Resources, system: System, main_only: MainOnly = lambda do: do()
) -> bool:
    """Write the lists of the validation and the test examples; False where there is none to write.

    So where they stand, where a system gives no probabilities, or in a process that only helps.
    `main_only` has the main process decide for all, and make what is not shared.
    """
    if not system.gives_probabilities:
        return False
    written = False
    for split in ("valid", "test"):
        artifact = artifact_of(resources, system, split)
        if main_only(lambda: artifact.facts_or_none() is not None):  # noqa: B023
            continue
        path = resources.folder.predictions(system.name)
        is_language_model = system.kind == "language_model"
        if is_language_model and (split == "valid" or not main_only(path.exists)):
            written |= _write(resources, system, split)
        else:
            written |= main_only(lambda: _write(resources, system, split))  # noqa: B023
    return written


def _write(resources: Resources, system: System, split: str) -> bool:
    found = _made(resources, system, split)
    if found is not None:
        artifact = artifact_of(resources, system, split)
        artifact.write(_described(found, artifact.key, resources, system, split).write)
    return found is not None


def artifact_of(resources: Resources, system: System, split: str) -> Artifact:
    """A system's lists of a split, and all that they depend on."""
    place = resources.folder.lists(system.name, split)
    return made.lists(resources.artifact(system), place, _length(resources, system))


def valid_rows(resources: Resources) -> npt.NDArray[np.int64]:
    """Which validation examples have lists."""
    rows = np.arange(len(resources.valid))
    if len(rows) > MAX_EXAMPLES:
        generator = np.random.default_rng(resources.recipe.seed)
        rows = np.sort(generator.choice(rows, MAX_EXAMPLES, replace=False))
    return rows


def _made(resources: Resources, system: System, split: str) -> Predictions | None:
    if system.kind == "language_model":
        from llmrec.systems import language  # brings torch

        path = resources.folder.predictions(system.name)
        if split == "test" and path.exists():  # they are what was recommended
            return Predictions.read(path)
        return language.predictions_of(resources, system, split)
    test, valid = resources.test, resources.valid
    examples = test if split == "test" else valid.take(valid_rows(resources))
    if system.asks_similar_users:
        from llmrec.systems import votes

        return votes.predictions_of(resources, system, examples, _length(resources, system))
    return baselines.predictions_of(resources, system, examples, _length(resources, system))


def _length(resources: Resources, system: System) -> int:
    return made.listed(resources.recipe, system, len(resources.catalog))


def _described(
    found: Predictions, settings: dict[str, Any], resources: Resources, system: System, split: str
) -> Predictions:
    """The same with what it depends on, and the rows of the split that it is of."""
    provenance = {**found.info.provenance, "settings": settings}
    if split == "valid" and system.kind != "language_model":
        provenance["rows"] = valid_rows(resources).tolist()
    return found.of_provenance(provenance)
