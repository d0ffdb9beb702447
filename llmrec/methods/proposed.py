"""What a retriever proposes for the windows that are trained on, found once and kept by content."""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from llmrec.data.records import Interactions, Ints
from llmrec.errors import RecipeError
from llmrec.inference.candidate_retriever import CandidateRetriever
from llmrec.methods.windows import Window, as_examples
from llmrec.recipe import Recipe
from llmrec.runs import cached
from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")


def with_proposed(
    recipe: Recipe, folder: RunFolder, windows: Sequence[Window]
) -> tuple[list[Window], Ints | None]:
    """The windows that are trained on, and (windows, C) what the recipe's retriever proposes.

    Windows whose target it would not have proposed are left out where the recipe says so. All, and
    None, where the recipe has no retriever, or rows of several targets. Raises RecipeError where
    none is left.
    """
    asked = recipe.data.candidates
    if asked is None or asked.retriever is None or recipe.rows.shape != "single":
        return list(windows), None
    rows = hashlib.sha256(np.array([window.row for window in windows], np.int64).tobytes())
    artifact = cached.proposals(recipe, folder, rows.hexdigest())
    if artifact.facts_or_none() is None:
        log.info("train: %s proposes candidates for %d rows", asked.retriever, len(windows))
        interactions = Interactions.read(folder.interactions)
        drawn, hit = CandidateRetriever.of(recipe, folder).for_training(
            as_examples(windows, interactions), interactions, recipe.seed
        )
        staged = artifact.staged()
        with staged.open("wb") as stream:
            np.save(stream, np.column_stack([drawn, hit]).astype(np.int32), allow_pickle=False)
        artifact.seal(staged)
    found = np.load(artifact.place, allow_pickle=False)
    drawn, hit = found[:, :-1], found[:, -1].astype(bool)
    log.info(
        "train: %s proposes the target of %d of %d rows%s",
        asked.retriever,
        hit.sum(),
        len(hit),
        "" if asked.keep_missed or hit.all() else ", the others are left out",
    )
    kept = np.flatnonzero(hit | asked.keep_missed)
    if len(kept) == 0:
        raise RecipeError(
            f"{asked.retriever} proposes the target of no training row; raise "
            "data.candidates.count or set data.candidates.keep_missed: true"
        )
    return [windows[i] for i in kept], drawn[kept]
