"""Self-distillation and its curriculum (SOFT, arXiv 2505.20771)."""

from typing import Literal, Self

from pydantic import model_validator

from llmrec.recipe.section import Count, NotNegativeCount, Positive, Section, Share, Word


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
    """adaptive: lambda by the distance of the live model's answers to the truth; fixed: always
    `weight` (0 is plain fine-tuning); linear: 1 to 0 over the epochs; none: always 1."""
    alpha: Positive = 1.0
    """Of adaptive: a larger one hands over to the real answers sooner."""
    weight: Share = 0.5
    """Of fixed: lambda."""
    probe: NotNegativeCount = 256
    """Training examples answered before each epoch to measure the distance; 0: none are."""
    sft_adapter: Word | None = None
    """Folder of a fine-tuned adapter that answers; null: it is trained first."""
    answers: Word | None = None
    """Folder of answers that `llmrec distill` wrote for these very examples; null: made here."""
    distill: Distill = Distill()
    """How the answers are made."""

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.schedule == "adaptive" and self.probe == 0:
            raise ValueError("schedule adaptive needs a probe; give probe or another schedule")
        return self
