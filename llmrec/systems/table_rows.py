"""The rows of the table: every system answers for the test split, whatever it is made of."""

from llmrec.evaluation.predictions import Predictions
from llmrec.recipe.systems import System
from llmrec.systems import baselines
from llmrec.systems.resources import Resources


def predictions_of(resources: Resources, system: System) -> Predictions | None:
    """A system's answers for the test split; None in a process that only helps."""
    if system.asks_similar_users:
        from llmrec.systems import votes

        return votes.predictions_of(resources, system, resources.test, _listed(resources))
    if system.kind != "language_model":
        return baselines.predictions_of(resources, system, resources.test, _listed(resources))
    from llmrec.systems import free, grounded, language, routing  # these bring torch

    if system.way == "grounded":
        return grounded.predictions_of(resources, system)
    if system.way == "routed":
        return routing.predictions_of(resources, system)
    if system.way == "free":
        return free.predictions_of(resources, system)
    return language.predictions_of(resources, system, "test")


def _listed(resources: Resources) -> int:
    among = resources.recipe.data.candidates
    return resources.recipe.decode.top_k if among is None else among.count
