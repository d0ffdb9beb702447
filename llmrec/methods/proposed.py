"""What a retriever proposes for the windows that are trained on, found once and kept by content."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Interactions, Ints
from llmrec.errors import RecipeError
from llmrec.inference.candidate_retriever import CandidateRetriever
from llmrec.methods.windows import Window, as_examples
from llmrec.recipe import Recipe
from llmrec.runs import cached
from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")


@dataclass(frozen=True)
class Proposed:
    """W windows, the `candidates` (W, C) of each and their retriever's log-probabilities `log_q`
    (W, C), NaN where it cannot tell them apart from its memory; None without a retriever."""

    windows: list[Window]
    candidates: Ints | None = None
    log_q: npt.NDArray[np.float64] | None = None


def with_proposed(recipe: Recipe, folder: RunFolder, windows: Sequence[Window]) -> Proposed:
    """The windows that are trained on, and what the recipe's retriever proposes for them.

    Windows whose target it would not have proposed are left out where the recipe says so. All, and
    nothing proposed, where it has no retriever, or rows of several targets. Raises RecipeError
    where none is left.
    """
    asked = recipe.data.candidates
    if asked is None or asked.retriever is None or recipe.rows.shape != "single":
        return Proposed(list(windows))
    rows = hashlib.sha256(np.array([window.row for window in windows], np.int64).tobytes())
    artifact = cached.proposals(recipe, folder, rows.hexdigest())
    if artifact.facts_or_none() is None:
        log.info("train: %s proposes candidates for %d rows", asked.retriever, len(windows))
        interactions = Interactions.read(folder.interactions)
        found = CandidateRetriever.of(recipe, folder).for_training(
            as_examples(windows, interactions),
            interactions,
            recipe.seed,
            CandidateRetriever.folds_of(recipe, folder),
        )
        staged = artifact.staged()
        with staged.open("wb") as stream:
            np.save(stream, np.column_stack(found).astype(np.float64), allow_pickle=False)
        artifact.seal(staged)
    columns = np.load(artifact.place, allow_pickle=False)
    drawn, log_q = columns[:, : asked.count].astype(np.int32), columns[:, asked.count : -1]
    hit = columns[:, -1].astype(bool)
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
    return Proposed([windows[i] for i in kept], drawn[kept], log_q[kept])
