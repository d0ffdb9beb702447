"""Items that never occur in training: which they are, and where systems put targets among them."""

import numpy as np
import numpy.typing as npt

from llmrec.baselines.distribution import Floats
from llmrec.baselines.ranking import Scorer, places_among
from llmrec.data.records import Examples, Interactions
from llmrec.recipe import Recipe


def cold_items(training: Interactions, catalog_size: int) -> npt.NDArray[np.int32]:
    """(C,) the items of the catalog that no training interaction has."""
    counts = np.bincount(training.position, minlength=catalog_size)
    return np.flatnonzero(counts == 0).astype(np.int32)


def cold_places(
    recipe: Recipe, scorer: Scorer, examples: Examples, training: Interactions, catalog_size: int
) -> Floats | None:
    """(E,) places of cold targets among the cold items alone, NaN for other targets.

    None where there is no such target, and where every target stands among its own candidates.
    """
    if recipe.data.candidates is not None or not examples.cold.any():
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
