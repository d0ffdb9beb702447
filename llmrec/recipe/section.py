"""What every section of a recipe is made of: strict models, and the kinds of value they hold."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# No count or weight is meant to be larger, and numbers that are do not fit into libraries' types.
MOST = 10**9
Count = Annotated[int, Field(ge=1, le=MOST)]
NotNegativeCount = Annotated[int, Field(ge=0, le=MOST)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Word = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of a recipe: strict, frozen, closed."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )
