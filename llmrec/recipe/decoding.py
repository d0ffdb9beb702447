"""The sections of a recipe about decoding: constrained beams, guidance, grounding."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llmrec.recipe.section import Count, NotNegative, Section, Share
from llmrec.recipe.systems import GuidingBaseline


class Guidance(Section):
    """A baseline's item probabilities mixed into decoding, for the systems named *_guided."""

    baseline: GuidingBaseline | Literal["auto"] | None = "auto"
    """Which baseline guides; auto: of those among `systems`, the likeliest in validation."""
    weight: Literal["auto"] | float = "auto"
    """Share of the language model, 0 to 1; auto: the best of `grid` in validation."""
    grid: Annotated[list[Share], Field(min_length=1)] = Field(
        default=[tenth / 10 for tenth in range(11)]
    )
    """Weights tried in validation."""

    @field_validator("weight", mode="wrap")
    @classmethod
    def _auto_or_share(cls, value: Any, _: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value == "auto" or (number and 0 <= value <= 1):
            return value
        raise ValueError("auto, or a number from 0 to 1")


class Fusion(Section):
    """The log-probabilities of a retriever added to the language model's, for the systems named
    *_fused: log p + weight * log q over the candidates."""

    weight: Literal["auto"] | float = "auto"
    """Weight of the retriever, at least 0; auto: the best of `grid` in validation."""
    grid: Annotated[list[NotNegative], Field(min_length=1)] = Field(
        default=[0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
    )
    """Weights tried in validation; 0 is the language model alone."""

    @field_validator("weight", mode="wrap")
    @classmethod
    def _auto_or_weight(cls, value: Any, _: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value == "auto" or (number and 0 <= value < float("inf")):
            return value if value == "auto" else float(value)
        raise ValueError("auto, or a number from 0")


class Routing(Section):
    """Who is a weak user, for the systems named *_routed: a short history, and a validation target
    that the retriever ranks low."""

    history: Share = 0.5
    """Share of the validation users whose histories are short."""
    auc: Share = 0.5
    """Share of them whose target has a low AUC under the retriever."""


class Grounding(Section):
    """Free text and the items nearest to it in the untuned model's embedding (BIGRec, arXiv
    2308.08434), for the systems named *_grounded."""

    beams: Count = 4
    """Beams of a free answer; the best one is grounded."""
    max_new_tokens: Count = 64
    """Longest free answer."""
    fusion: GuidingBaseline | None = None
    """Baseline whose probabilities are fused with the distances; null: none."""
    gamma: Literal["auto"] | float = "auto"
    """Weight of fusion, at least 0; auto: the best of `grid` in validation, by NDCG at top_k."""
    grid: Annotated[list[NotNegative], Field(min_length=1)] = Field(default=[0, 0.1, 0.3, 1, 3, 10])
    """Weights tried in validation."""

    @field_validator("gamma", mode="wrap")
    @classmethod
    def _auto_or_weight(cls, value: Any, _: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value == "auto" or (number and 0 <= value < float("inf")):
            return value
        raise ValueError("auto, or a number from 0")


class Decode(Section):
    """Constrained search: only items of the catalog come out."""

    search: Literal["auto", "beam", "certified", "best_first"] = "auto"
    """beam: what `beams` beams find, as papers do it; certified: twice the beams again and again
    until the list is proven to be the most probable one; best_first: that list, found directly.
    The latter two go only so far, then give the best they found; `proven` in the results counts the
    proofs. auto: beam where `beams` is given or `renormalise` is off, else best_first."""
    beams: Count | None = None
    """Beams of a user; null: 10, or `top_k` if that is more. Not used by best_first."""
    top_k: Count = 10
    """Recommendations of a user."""
    renormalise: bool = True
    """Probabilities over the tokens that continue a title, not all tokens."""
    candidates_alone: bool = True
    """Of renormalised probabilities of candidates: over the tokens that continue one of the user's
    candidates; false: over those that continue any title, as lists of the whole catalog have it."""
    filter_seen: bool = True
    """Leave out the items of the user's history."""
    batch_size: Count = 8
    """Users decoded at a time; changes speed alone."""
    batch_tokens: Count | None = None
    """Tokens of prompts at a time, at most; null: batch_size alone decides."""
    batches_in_flight: Annotated[int, Field(ge=1, le=8)] = 1
    """Batches that take turns, one on the GPU while the host works on another, each with memory of
    its own; changes speed alone."""
    cuda_graphs: bool = False
    """On a CUDA GPU, each pass of the search launched as one graph; changes speed alone."""
    guidance: Guidance = Guidance()
    """Guidance by a baseline."""
    fusion: Fusion = Fusion()
    """Fusion with the retriever of the candidates."""
    routing: Routing = Routing()
    """Weak users to the language model."""
    grounding: Grounding = Grounding()
    """Free text, grounded."""

    @property
    def kind(self) -> Literal["beam", "certified", "best_first"]:
        """The search that `search` comes to."""
        if self.search != "auto":
            return self.search
        return "beam" if self.beams is not None or not self.renormalise else "best_first"

    @property
    def width(self) -> int:
        """How many beams a user has in a search with beams."""
        return max(10, self.top_k) if self.beams is None else self.beams

    @model_validator(mode="after")
    def _enough_beams(self) -> Self:
        if self.kind != "best_first" and self.top_k > self.width:
            raise ValueError(
                f"{self.beams} beams give at most {self.beams} items, top_k asks for {self.top_k}; "
                "raise beams, lower top_k or set decode.search=best_first"
            )
        return self
