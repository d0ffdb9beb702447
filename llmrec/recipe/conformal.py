"""Fine-tuning with conformal prediction (CPFT, arXiv 2402.08976)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmrec.recipe.section import Count, NotNegative, NotNegativeCount, Positive, Section


class CandidateSets(Section):
    """Of a language model: the items that a prediction set is drawn from, for each example."""

    beams: Count = 4
    """Likeliest items of the live model, by constrained beam search."""
    sampled: NotNegativeCount = 11
    """Random items that the user has not chosen."""
    draw: Literal["uniform", "frequency"] = "uniform"
    """How those are drawn: all alike, or by how often training chose them, and once more."""
    refresh: Count = 8
    """Optimiser steps after which candidates of the coming rows are found anew."""


class Conformal(Section):
    """Fine-tuning with conformal prediction (CPFT, arXiv 2402.08976): cross-entropy, and losses of
    the size and the spread of the sets of likely items, for a network or the language model."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the true items that may stay outside their sets."""
    beta: NotNegative = 10.0
    """Weight of the set size; 0: without."""
    gamma: NotNegative = 1.0
    """Weight of the distance of the set's items from the true one; 0: without."""
    nearest: Count = 10
    """Items of a set, the most similar to the true one, whose distance counts."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """Of a network: how far an item's vector is from the true one's."""
    linkage: Literal["mean", "min", "max"] = "mean"
    """Of a network: the mean of the `nearest` items' distances, the least, or the greatest."""
    smooth: bool = False
    """false: hard sets as published; true: gradients flow through membership and threshold."""
    temperature: Positive = 0.5
    """Of smooth: nats over which an item turns from outside to inside."""
    view: Literal["train", "valid"] = "train"
    """Where a network's sequence ends whose next item the set is for. train: with the label, as
    published; valid, an extension: one item further, at the end of the training items with the
    validation item, read and never learned as an answer."""
    learning_rate: Positive | Literal["auto"] = "auto"
    """Of a network, constant; auto: the best of `grid` in validation. A language model takes that
    of `train`."""
    grid: Annotated[list[Positive], Field(min_length=1)] = Field(default=[1.0e-4, 1.0e-3])
    """Learning rates that auto tries."""
    batch_size: Count = 1024
    """Places of a network's optimiser step: prefixes, each with the item that follows. A language
    model takes that of `train`."""
    max_epochs: Count = 15
    """Most epochs of a network."""
    patience: Count = 3
    """Epochs of a network without a better validation NDCG@10 after which training stops."""
    candidates: CandidateSets = CandidateSets()
    """Of a language model."""

    @model_validator(mode="after")
    def _any(self) -> "Conformal":
        if self.beta == 0 and self.gamma == 0:
            raise ValueError("beta and gamma are both 0; raise one, or drop the section")
        if self.smooth and (self.distance, self.linkage) != ("cosine", "mean"):
            raise ValueError("smooth sets know distance cosine and linkage mean alone")
        return self
