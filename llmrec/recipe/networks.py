"""The sections of a recipe about sequential networks and fine-tuning with conformal prediction."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmrec.recipe.section import Count, NotNegative, Positive, Section, Word

Dropout = Annotated[float, Field(ge=0, lt=1)]


# As many as `llmrec.baselines.network_tuning` has.
Trials = Annotated[int, Field(ge=1, le=11)]


class Baselines(Section):
    """How far the search for a baseline's settings goes, and whose vectors of titles it reads."""

    trials: Trials = 3
    """Settings of sasrec and gru4rec, each, that are trained and compared in validation."""
    encoder: Word = "all-minilm-l6-v2"
    """The sentence encoder of text_knn_sentences: a name, a Hub id or a folder."""


class NetworkSection(Section):
    """A sequential recommender without language, trained here for the systems named network*."""

    kind: Literal["sasrec", "gru4rec"] = "sasrec"
    """sasrec: causal self-attention; gru4rec: gated recurrent units."""
    hidden: Count = 64
    """Width of the item embeddings and of the layers."""
    layers: Count = 2
    """Layers."""
    heads: Count = 2
    """Attention heads of sasrec."""
    max_length: Count = 50
    """Latest items that are read."""
    dropout: Dropout = 0.3
    """Dropout on embeddings and layers."""
    learning_rate: Positive = 3.0e-3
    """Learning rate; constant, the weights of about an epoch are averaged."""
    weight_decay: NotNegative = 0.01
    """Decay of the weights."""
    batch_size: Count = 64
    """Sequences of an optimiser step."""
    max_epochs: Count = 100
    """Most epochs."""
    patience: Count = 5
    """Epochs in a row without a better validation NDCG@10 after which training stops."""

    trials: Trials = 3
    """Settings tried in validation: this one, then others of dropout, learning rate and width."""

    @model_validator(mode="after")
    def _divisible(self) -> "NetworkSection":
        if self.kind == "sasrec" and self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} must be a multiple of heads = {self.heads}")
        return self
