"""Language models that write freely; here, which of some candidates an answer names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.batching import Batch
from llmrec.decoding.beam import Ranking
from llmrec.decoding.grounding import normalised
from llmrec.evaluation.predictions import Predictions, SystemInfo
from llmrec.inference.engine import Engine
from llmrec.inference.prompting import Prompting
from llmrec.inference.ratings import Selected
from llmrec.recipe.systems import System
from llmrec.runs.batch_files import discard
from llmrec.systems.language import answered, demonstrated
from llmrec.systems.resources import Resources


def written(resources: Resources, system: System, split: str) -> tuple[list[dict[str, Any]], float]:
    """Free answers for every example of a split, as `answered` gives them, each under `text`."""
    grounded = resources.language.grounded

    def write(
        engine: Engine, prompting: Prompting, _: Batch, selected: list[Selected]
    ) -> list[dict[str, Any]]:
        return [{"text": text} for text in grounded.written(engine, prompting.ids(selected))]

    return answered(resources, system, split, write)


def predictions_of(resources: Resources, system: System) -> Predictions | None:
    """The candidate that a system names for each test example; an empty list where it names none.

    None in a process that only helps.
    """
    answers, seconds = written(resources, system, "test")
    if not resources.language.is_main_process:
        return None
    texts = [answer["text"] for answer in answers]
    rankings = named(texts, resources.candidates, resources.catalog.titles)
    info = SystemInfo(
        system.name,
        system.kind,
        False,
        {
            "valid_answers": float(np.mean([len(r.positions) for r in rankings])),
            **demonstrated(resources, system, answers),
        },
        round(seconds, 2),
        resources.provenance(system),
    )
    discard(resources.batch_files(system, "test"))
    return Predictions.of(
        info,
        resources.test.user_ids,
        [ranking.positions for ranking in rankings],
        [ranking.scores for ranking in rankings],
        np.full(len(resources.test), np.nan),
    )


def named(
    texts: Sequence[str], candidates: npt.NDArray[np.int32], titles: Sequence[str]
) -> list[Ranking]:
    """The candidate (U, C) that each of U texts names, with a score of 0."""
    rankings = []
    for text, among in zip(texts, candidates, strict=True):
        found = named_candidate(text, among, titles)
        rankings.append(Ranking(found, np.zeros(len(found), np.float32)))
    return rankings


def named_candidate(
    text: str, candidates: npt.NDArray[np.int32], titles: Sequence[str]
) -> npt.NDArray[np.int32]:
    """(1,) the candidate whose title the text is, apart from case, accents and punctuation.

    (0,) where it is none of them, or where it could be more than one.
    """
    key = normalised(text)
    meant = [position for position in candidates if normalised(titles[position]) == key]
    return np.array(meant if len(meant) == 1 else [], np.int32)
