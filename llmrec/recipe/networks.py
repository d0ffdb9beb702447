"""The sections of a recipe about sequential networks and fine-tuning with conformal prediction."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmrec.recipe.section import Count, NotNegative, Positive, Section

Dropout = Annotated[float, Field(ge=0, lt=1)]


class Network(Section):
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
    dropout: Dropout = 0.1
    """Dropout on embeddings and layers."""
    learning_rate: Positive = 5.0e-3
    """Learning rate; it falls to 0 at the last epoch."""
    weight_decay: NotNegative = 0.01
    """Decay of the weights."""
    batch_size: Count = 24
    """Sequences of an optimiser step."""
    max_epochs: Count = 10
    """Most epochs."""
    patience: Count = 5
    """Epochs in a row without a better validation NDCG@10 after which training stops."""

    @model_validator(mode="after")
    def _divisible(self) -> "Network":
        if self.kind == "sasrec" and self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} must be a multiple of heads = {self.heads}")
        return self
