"""Systems that score every item at once: baselines, and the run's networks."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.baselines.ranking import Scorer, TopK, predict
from llmrec.data.records import Examples
from llmrec.decoding.beam import Ranking
from llmrec.evaluation.predictions import Predictions, SystemInfo
from llmrec.recipe.systems import System
from llmrec.systems.cold_items import cold_places
from llmrec.systems.resources import Resources


def scorer_of(resources: Resources, system: System) -> tuple[Scorer, dict[str, Any]]:
    """What scores the items for a system, and how it came to be."""
    if system.kind == "network":
        from llmrec.methods import networks

        recipe, folder = resources.recipe, resources.folder
        return (
            networks.fitted(recipe, folder, system.step, to_use=True),
            networks.facts(recipe, folder, system.step),
        )
    tuned = resources.fitted(system.weights)
    return tuned.fitted, tuned.described


def served_scorer(resources: Resources, system: System) -> Scorer:
    """The same scorer, without choosing again what the test split's predictions say was chosen."""
    if system.kind == "network":
        return scorer_of(resources, system)[0]
    return resources.refitted(system.weights)


def predictions_of(resources: Resources, system: System, examples: Examples, k: int) -> Predictions:
    """The `k` best items of a system for some examples."""
    begun = time.monotonic()
    scorer, described = scorer_of(resources, system)
    candidates = resources.candidates
    answers = predict(
        scorer,
        examples.histories(),
        examples.targets,
        len(resources.catalog),
        k,
        # Candidates are items to choose from whether or not one was seen before.
        resources.recipe.decode.filter_seen and candidates is None,
        candidates,
    )
    return told(
        resources,
        system,
        examples,
        answers,
        described,
        time.monotonic() - begun,
        cold_places(
            resources.recipe, scorer, examples, resources.interactions, len(resources.catalog)
        ),
    )


def told(
    resources: Resources,
    system: System,
    examples: Examples,
    answers: TopK,
    described: dict[str, Any],
    seconds: float,
    places: npt.NDArray[np.float64] | None = None,
) -> Predictions:
    """Answers to examples as predictions; `places` (E,) of cold targets among the cold items."""
    info = SystemInfo(
        system.name,
        system.kind,
        not np.isnan(answers.nll).all(),
        described,
        round(seconds, 2),
        resources.provenance(system),
    )
    rankings = _rankings(answers.positions, answers.scores)
    return Predictions.of(
        info,
        examples.user_ids,
        [ranking.positions for ranking in rankings],
        [ranking.scores for ranking in rankings],
        answers.nll,
        places,
    )


def ranked(
    scorer: Scorer,
    histories: Sequence[npt.NDArray[np.int32]],
    catalog_size: int,
    k: int,
    filter_seen: bool,
    candidates: npt.NDArray[np.int32] | None = None,
) -> list[Ranking]:
    """The `k` best items after each history, of its `candidates` (U, C) where there are some."""
    open_seen = filter_seen and candidates is None
    answers = predict(scorer, histories, None, catalog_size, k, open_seen, candidates)
    return _rankings(answers.positions, answers.scores)


def _rankings(positions: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> list[Ranking]:
    """The rows of (U, k) matrices without their padding."""
    kept = positions >= 0
    return [
        Ranking(row[k], values[k]) for row, values, k in zip(positions, scores, kept, strict=True)
    ]
