"""The sections of a recipe about training: adapter, loss, rows, self-distillation, validation."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llmrec.recipe_section import Count, Positive, Section, Share, Word


class Lora(Section):
    """Low-rank adaptation through PEFT."""

    r: Count = 8
    """Rank."""
    alpha: Count = 16
    """Scale; the update is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter; 0 keeps shared prompts exact."""
    target_modules: str | list[str] = "all-linear"
    """all-linear, or a list of module names such as [q_proj, v_proj]."""

    @field_validator("target_modules", mode="wrap")
    @classmethod
    def _words(cls, value: Any, _: Any) -> str | list[str]:
        if value == "all-linear":
            return "all-linear"
        if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
            return list(value)
        raise ValueError("all-linear, or a list of module names")


class Objective(Section):
    """The training loss."""

    name: Literal["sft", "msl"] = "sft"
    """sft: cross-entropy over the vocabulary; msl: over the tokens that continue a title of the
    catalog."""
    tau: Positive = 1.0
    """Temperature of msl."""


class Rows(Section):
    """How training examples are laid out."""

    shape: Literal["single", "all_targets", "inline"] = "single"
    """single: one target after each prompt; all_targets: a branch after each item of the history;
    inline: the titles inside the history are the targets."""
    count: Count | None = None
    """Training rows drawn; null: all."""


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
    probe: Annotated[int, Field(ge=0)] = 256
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


class Validation(Section):
    """What decides which weights are kept, and when training stops."""

    metric: Literal["nll", "hr", "ndcg"] = "nll"
    """nll: target likelihood; hr, ndcg: at `k`, equal values told apart by nll."""
    k: Count = 10
    """Cut-off of hr and ndcg."""
    answer: Literal["constrained", "grounding"] = "constrained"
    """How the rankings of hr and ndcg are made: constrained beams, or free text that is grounded
    by embeddings."""
    patience: Count | None = None
    """Validations in a row without a better one after which training stops; null: none."""
