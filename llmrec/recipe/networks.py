"""The sections of a recipe about sequential networks and fine-tuning with conformal prediction."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmrec.recipe.section import Count, NotNegative, Positive, Section, Word

Dropout = Annotated[float, Field(ge=0, lt=1)]

HOUSE = 11  # settings that `llmrec.baselines.network_tuning` has of its own
Trials = Annotated[int, Field(ge=1, le=HOUSE)]


class Baselines(Section):
    """How far the search for a baseline's settings goes, and whose vectors of titles it reads."""

    trials: Trials = 3
    """Settings of sasrec and gru4rec, each, that are trained and compared in validation."""
    encoder: Word = "all-minilm-l6-v2"
    """The sentence encoder of text_knn_sentences: a name, a Hub id or a folder."""


class Change(Section):
    """What one setting of a search has otherwise; null: as the section says."""

    hidden: Count | None = None
    """Width."""
    layers: Count | None = None
    """Layers."""
    heads: Count | None = None
    """Attention heads of sasrec."""
    dropout: Dropout | None = None
    """Dropout."""
    learning_rate: Positive | None = None
    """Learning rate."""
    weight_decay: NotNegative | None = None
    """Decay of the weights."""
    batch_size: Count | None = None
    """Sequences of an optimiser step."""


class NetworkSection(Section):
    """A sequential recommender without language, trained here for the systems named network*."""

    kind: Literal["sasrec", "gru4rec", "fdsa"] = "sasrec"
    """sasrec: causal self-attention; gru4rec: gated recurrent units; fdsa: self-attention over
    items and over the words of their titles."""
    hidden: Count = 64
    """Width of the item embeddings and of the layers."""
    layers: Count = 2
    """Layers."""
    heads: Count = 2
    """Attention heads of sasrec and fdsa."""
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

    trials: Count = 3
    """Settings tried in validation: this one, then others, each until patience ends it."""
    settings: Annotated[list[Change], Field(min_length=1)] | None = None
    """The others; null: those of the house, which differ in dropout, learning rate and width."""
    at_once: Count = 1
    """Settings trained at the same time, each in a process of its own; they may share a GPU."""

    @model_validator(mode="after")
    def _divisible(self) -> "NetworkSection":
        for change in (None, *(self.settings or [])):
            hidden = (change and change.hidden) or self.hidden
            heads = (change and change.heads) or self.heads
            if self.kind != "gru4rec" and hidden % heads:
                raise ValueError(f"hidden = {hidden} must be a multiple of heads = {heads}")
        return self

    @model_validator(mode="after")
    def _enough(self) -> "NetworkSection":
        known = HOUSE if self.settings is None else 1 + len(self.settings)
        if self.trials > known:
            raise ValueError(f"trials = {self.trials}, but the settings are {known}, this one too")
        return self
