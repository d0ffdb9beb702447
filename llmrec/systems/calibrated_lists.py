"""Lists to calibrate with: the likeliest items of a system and their probabilities.

Written by `recommend` where the recipe has `evaluate.calibration`, for every system that gives
items probabilities. A language model's lists are as long as its Rankings, those of baselines and
networks `evaluate.calibration.listed` items.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llmrec.evaluation.predictions import Predictions
from llmrec.recipe.systems import System

if TYPE_CHECKING:
    from llmrec.systems.table_rows import Answering

# Validation examples that a temperature is fitted to, drawn by seed where there are more.
MAX_EXAMPLES = 2000


def write_lists(answering: "Answering", system: str) -> bool:
    """Write the lists of the validation and the test examples; False where there is none to write.

    So where they stand, where a system gives no probabilities, or in a process that only helps.
    """
    if not System.parse(system).gives_probabilities:
        return False
    written = False
    for split in ("valid", "test"):
        settings = list_settings(answering, system)
        path = answering.folder.lists(system, split)
        if path.exists() and Predictions.read(path).info.provenance.get("settings") == settings:
            continue
        found = _made(answering, system, split)
        if found is not None:
            _described(found, settings, answering, system, split).write(path)
            written = True
    return written


def list_settings(answering: "Answering", system: str) -> dict[str, Any]:
    """All that a system's lists depend on, besides the versions of packages."""
    return {**answering.settings(system), "listed": _length(answering, system)}


def valid_rows(answering: "Answering") -> npt.NDArray[np.int64]:
    """Which validation examples have lists."""
    rows = np.arange(len(answering.valid))
    if len(rows) > MAX_EXAMPLES:
        generator = np.random.default_rng(answering.recipe.seed)
        rows = np.sort(generator.choice(rows, MAX_EXAMPLES, replace=False))
    return rows


def _made(answering: "Answering", system: str, split: str) -> Predictions | None:
    if System.parse(system).kind == "language_model":
        standing = answering.folder.predictions(system)
        if split == "test" and standing.exists():  # they are what was recommended
            return Predictions.read(standing)
        return answering.language_model(system, split)
    asked = answering.test if split == "test" else answering.valid.take(valid_rows(answering))
    return answering.scored(system, asked, _length(answering, system))


def _length(answering: "Answering", system: str) -> int:
    calibration = answering.recipe.evaluate.calibration
    if System.parse(system).kind == "language_model" or calibration is None:
        return answering.recipe.decode.top_k
    return min(calibration.listed, len(answering.catalog))


def _described(
    found: Predictions, settings: dict[str, Any], answering: "Answering", system: str, split: str
) -> Predictions:
    """The same with what it depends on, and the rows of the split that it is of."""
    provenance = {**found.info.provenance, "settings": settings}
    if split == "valid" and System.parse(system).kind != "language_model":
        provenance["rows"] = valid_rows(answering).tolist()
    return found.of_provenance(provenance)
