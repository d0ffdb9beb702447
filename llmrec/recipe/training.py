"""The sections of a recipe about training: adapter, loss, rows, self-distillation, validation."""

from typing import Literal

from llmrec.recipe.section import Count, Positive, Section


class Listwise(Section):
    """The target is chosen among `data.candidates`: a softmax over their log-probabilities."""

    tau: Positive = 1.0
    """Temperature of that softmax."""


class ObjectiveSection(Section):
    """The training loss."""

    name: Literal["sft", "msl"] = "sft"
    """sft: cross-entropy over the vocabulary; msl: over the tokens that continue a title of the
    catalog."""
    tau: Positive = 1.0
    """Temperature of msl."""
    head: Literal["full", "titles"] = "full"
    """Of msl: the logits that are computed; titles: of tokens that occur in some title alone, which
    is faster and the same but for rounding."""
    listwise: Listwise | None = None
    """Learn to choose among candidates; null: learn the title's tokens."""


class RowsSection(Section):
    """How training examples are laid out."""

    shape: Literal["single", "all_targets", "inline"] = "single"
    """single: one target after each prompt; all_targets: a branch after each item of the history;
    inline: the titles inside the history are the targets."""
    every: Literal["window", "item"] = "window"
    """window: a row for each run of `prompt.max_history` items and the one after, which do not
    overlap; item: for each item but a sequence's first, with up to so many before it."""
    count: Count | None = None
    """Training rows drawn; null: all."""


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
