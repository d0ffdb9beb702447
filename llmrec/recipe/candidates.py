"""The section of a recipe about candidates: the items among which a target is to be found."""

from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from llmrec.recipe.section import MOST, Section
from llmrec.recipe.systems import GuidingBaseline

RANDOM = "random"
_SOURCE: dict[str, Any] = {
    "from": (
        Literal["random", GuidingBaseline],
        Field(
            default=RANDOM,
            description="random: the target and items that the user has not seen; a baseline: its "
            "best items, fitted to training interactions alone, and a target that it does not "
            "propose is a miss.",
        ),
    )
}
# `from` is a keyword of Python, so that no attribute of a class can be written like that.
_WithSource = create_model(
    "_WithSource", __base__=Section, __doc__="Where candidates come from.", **_SOURCE
)


class Candidates(_WithSource):  # type: ignore[valid-type, misc]
    """The items among which each target is to be found, as the recipe's seed shuffles them."""

    count: Annotated[int, Field(ge=2, le=MOST)] = 20
    """How many there are."""
    folds: Annotated[int, Field(ge=0, le=MOST)] = 0
    """Of a retriever that cannot tell what it would say without the target, as a network: training
    rows are proposed for by one fitted to the users of the other folds; 0 or 1: by itself, where
    the target takes a place drawn uniformly."""
    keep_missed: bool = False
    """Whether training rows are kept whose target the retriever would not have proposed without
    having counted it; the target then stands in the place of the last one. One that cannot tell
    keeps every row."""

    @property
    def retriever(self) -> str | None:
        """The baseline that proposes them; None: they are random."""
        source: str = getattr(self, "from")
        return None if source == RANDOM else source
