"""The section of a recipe about propensities: how likely an interaction is to be seen."""

from typing import Annotated

from pydantic import Field

from llmrec.recipe.section import Positive, Section


class Propensity(Section):
    """theta = max((n / max n) ** power, floor) of an item's n training interactions: what is chosen
    often is seen often, so that a target or its user weighs 1 / theta."""

    power: Positive = 0.5
    """Power of the share of the most chosen item's count."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Least propensity, so that rare items do not weigh too much."""
