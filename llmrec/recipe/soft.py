"""Self-distillation and its curriculum (SOFT, arXiv 2505.20771)."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llmrec.recipe.section import MOST, Count, NotNegativeCount, Positive, Section, Share, Word


class Distill(Section):
    """How the fine-tuned model answers its own training prompts (SOFT, arXiv 2505.20771)."""

    beams: Count = 4
    """Beams of a prompt."""
    decode: Literal["constrained", "free"] = "constrained"
    """constrained: answers are catalog items; free: whatever the model writes."""
    select: Literal["first_beam", "min_distance"] = "first_beam"
    """Which beam is the answer: the likeliest, or the nearest to the true title in the untuned
    model's embedding."""
    max_new_tokens: Count = 64
    """Longest free answer."""


class Soft(Section):
    """SOFT (arXiv 2505.20771): a fresh adapter, trained on a mixture of real answers and those of
    the fine-tuned model; lambda is the share of the latter."""

    schedule: Literal["adaptive", "fixed", "linear", "none"] = "adaptive"
    """adaptive: lambda by how far the live model is from the truth (`measure`); fixed: always
    `weight` (0 is plain fine-tuning); linear: 1 to 0 over the periods; none: always 1."""
    measure: Literal["embedding", "nll"] = "embedding"
    """embedding: distance of the live model's answers from the true titles, in the untuned model's
    embedding; nll: mean minus log-likelihood of the true titles."""
    alpha: Literal["auto"] | float = 1.0
    """Of adaptive: a larger one hands over to the real answers sooner; auto: training is done with
    each of `grid`, and the best in validation is kept."""
    grid: Annotated[list[Positive], Field(min_length=1)] = Field(default=[0.1, 1.0, 10.0, 100.0])
    """Of alpha auto: those that are tried."""
    period: Count | None = None
    """Optimiser steps after which lambda is measured anew; null: an epoch."""
    keep_teacher: bool = True
    """Where the best validation is worse than that of the fine-tuned model whose answers are
    learned, that one's adapter is kept."""
    weight: Share = 0.5
    """Of fixed: lambda."""
    probe: NotNegativeCount = 256
    """Training examples that lambda is measured on; 0: none are."""
    sft_adapter: Word | None = None
    """Folder of a fine-tuned adapter that answers; null: it is trained first."""
    answers: Word | None = None
    """Folder of answers that `llmrec distill` wrote for these very examples; null: made here."""
    distill: Distill = Distill()
    """How the answers are made."""

    @field_validator("alpha", mode="wrap")
    @classmethod
    def _auto_or_positive(cls, value: Any, _: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value == "auto" or (number and 0 < value <= MOST):
            return value if value == "auto" else float(value)
        raise ValueError("auto, or a number above 0")

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.schedule == "adaptive" and self.probe == 0:
            raise ValueError("schedule adaptive needs a probe; give probe or another schedule")
        return self
