"""The sections of a recipe about evaluation: metrics, intervals, calibration."""

from typing import Annotated, Literal

from pydantic import Field

from llmrec.recipe.propensity import Propensity
from llmrec.recipe.section import MOST, Count, Section

Level = Annotated[float, Field(gt=0, lt=1)]


class Calibration(Section):
    """How far the systems' probabilities can be trusted, and prediction sets with a guarantee."""

    alpha: Annotated[list[Level], Field(min_length=1)] = Field(default=[0.1, 0.3])
    """Sets are to hold the target for a share 1 - alpha of the users."""
    share: Level = 0.5
    """Share of the test users set aside to find the sets' thresholds; the others measure them."""
    listed: Count = 1000
    """Most likely items of a user that are kept; a set cannot hold more."""
    bins: Count = 15
    """Bins of the reliability diagrams and of ECE."""


class Evaluate(Section):
    """Metrics and their intervals."""

    k: Annotated[list[Count], Field(min_length=1)] = Field(default=[1, 5, 10])
    """Cut-offs of the ranking metrics."""
    samples: Annotated[int, Field(ge=100, le=MOST)] = 2000
    """Bootstrap samples."""
    confidence: Level = 0.95
    """Coverage of the intervals."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the bootstrap and of the choice of users set aside."""
    calibration: Calibration | None = None
    """Probabilities and prediction sets; null: rankings alone."""
    debias: Literal["snips"] | None = None
    """snips: HR and NDCG beside the plain ones in which users weigh 1 / theta of their target, as
    what is chosen often is seen often (self-normalised inverse propensities); null: none."""
    propensity: Propensity = Propensity()
    """How theta is told from training counts."""
    gates: bool = False
    """Three gates for every language model: its NLL against popularity's, what another user's
    history costs it (one more pass of the model), the share of distinct first answers."""
