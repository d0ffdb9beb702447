"""The sections of a recipe about training: adapter, loss, rows, self-distillation, validation."""

from typing import Annotated, Literal

from pydantic import Field

from llmrec.recipe.propensity import Propensity
from llmrec.recipe.section import MOST, Count, NotNegative, Positive, Section


class Listwise(Section):
    """The target is chosen among `data.candidates`: a softmax over their log-probabilities."""

    tau: Positive = 1.0
    """Temperature of that softmax."""
    fusion: NotNegative = 0.0
    """Weight of the retriever's log-probabilities beside the model's, so that the model learns what
    the retriever lacks; 0: none. Needs one that can tell what it would say without the target:
    markov, item_knn, or any with `data.candidates.folds`."""


class DPO(Section):
    """Direct preference optimisation (arXiv 2305.18290): the target against each other candidate,
    by what they gain over the model that training starts from."""

    beta: Positive = 1.0
    """How much a gain counts."""
    negatives: Count = 1
    """Other candidates of a row, drawn with the recipe's seed."""


class SDPO(Section):
    """S-DPO (arXiv 2406.09215): the target against several other candidates at once, by what they
    gain over the model that training starts from."""

    beta: Positive = 1.0
    """How much a gain counts."""
    negatives: Count = 3
    """Other candidates of a row, drawn with the recipe's seed."""


class GRPO(Section):
    """Rewards for the live model's own answers, in the manner of ReRe (arXiv 2510.12211): a group
    of constrained beams, or of the best candidates, before every step."""

    group: Annotated[int, Field(ge=2, le=MOST)] = 16
    """Answers of a row."""
    beta: NotNegative = 1e-3
    """Weight of the divergence from the model that training starts from."""
    rank: bool = True
    """Whether misses are told apart by their places, where the group holds a hit."""
    horizon: Count = 1
    """A hit on any of so many next items counts."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    """What a hit is worth that comes a step later."""


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
    among: Literal["catalog", "candidates"] = "catalog"
    """Of msl, which titles tokens may continue; candidates: those of the row, as they are ranked
    with decode.renormalise."""
    listwise: Listwise | None = None
    """Learn to choose among candidates; null: learn the title's tokens."""
    dpo: DPO | None = None
    """Learn to prefer the target to other candidates one by one; null: without."""
    sdpo: SDPO | None = None
    """Learn to prefer the target to several others at once; null: without."""
    grpo: GRPO | None = None
    """Learn from rewards for own answers; null: without."""
    propensity: Propensity | None = None
    """Weigh rare targets more; null: all the same."""


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
    redraw: bool = False
    """Random candidates of training rows are drawn anew in each epoch."""


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
