"""Items that never occur in training: which they are, and where systems put targets among them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llmrec.baselines.distribution import Floats
from llmrec.baselines.ranking import Scorer, places_among
from llmrec.data.records import Examples, Interactions
from llmrec.recipe import Recipe

if TYPE_CHECKING:
    from llmrec.inference.engine import Engine
    from llmrec.text.encoding import Ids


def cold_items(training: Interactions, catalog_size: int) -> npt.NDArray[np.int32]:
    """(C,) the items of the catalog that no training interaction has."""
    counts = np.bincount(training.position, minlength=catalog_size)
    return np.flatnonzero(counts == 0).astype(np.int32)


def asks(recipe: Recipe, examples: Examples) -> bool:
    """Whether any target is cold, and none stands among candidates of its own."""
    return recipe.data.candidates is None and bool(examples.cold.any())


def asked_among(
    engine: "Engine",
    prompts: Sequence["Ids"],
    targets: npt.NDArray[np.int32],
    cold: npt.NDArray[np.int32],
    catalog_size: int,
    probabilities: npt.NDArray[np.float64] | None = None,
    weight: float = 1.0,
) -> list[int | None]:
    """Of each prompt the place of a cold target among the cold items, by a search of them alone.

    -1 behind the list of the engine's `top_k`; None for other targets. `probabilities` (E, N) and
    `weight`: of guidance.
    """
    places: list[int | None] = [None] * len(prompts)
    asked = np.flatnonzero(np.isin(targets, cold))
    if not len(asked):
        return places
    warm = np.setdiff1d(np.arange(catalog_size), cold).astype(np.int32)
    found = engine.rank(
        [prompts[i] for i in asked],
        [warm] * len(asked),
        min(engine.decode.top_k, len(cold)),
        probabilities=None if probabilities is None else probabilities[asked],
        weight=weight,
    )
    for row, ranking in zip(asked.tolist(), found.rankings, strict=True):
        at = np.flatnonzero(ranking.positions == targets[row])
        places[row] = int(at[0]) if len(at) else -1
    return places


def places_said(answers: Sequence[Mapping[str, Any]]) -> Floats | None:
    """(E,) what answers say of `cold_place`, as predictions hold it; None where none says it."""
    if not any("cold_place" in answer for answer in answers):
        return None
    said = [answer.get("cold_place") for answer in answers]
    return np.array([np.nan if s is None else np.inf if s < 0 else float(s) for s in said])


def cold_places(
    recipe: Recipe, scorer: Scorer, examples: Examples, training: Interactions, catalog_size: int
) -> Floats | None:
    """(E,) places of cold targets among the cold items alone, NaN for other targets.

    None where nothing is to be asked.
    """
    if not asks(recipe, examples):
        return None
    return places_among(
        scorer,
        examples.histories(),
        examples.targets,
        catalog_size,
        cold_items(training, catalog_size),
        recipe.decode.filter_seen,
        recipe.seed,
    )
