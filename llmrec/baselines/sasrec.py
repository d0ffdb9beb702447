"""SASRec: causal self-attention over a user's last items.

Learned positions; what `sequential` says of the output and the loss. Source: arXiv 1808.09781 (its
loss samples negatives, which understates it). Importing this module imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.baselines.sequential import Network, Sequential


@dataclass(frozen=True)
class SASRec(Sequential):
    """Sizes and training, see `Sequential`."""

    heads: int = 2

    def network(self, catalog_size: int, titles: Sequence[str] = ()) -> Network:
        """An untrained network for N items."""
        return AttentionNetwork(self, catalog_size)


class AttentionNetwork(Network):
    """Blocks of attention over item and place embeddings."""

    def __init__(self, sizes: SASRec, catalog_size: int) -> None:
        super().__init__(catalog_size, sizes.hidden, sizes.max_length)
        self.places = nn.Embedding(sizes.max_length, sizes.hidden)
        nn.init.normal_(self.places.weight, std=sizes.hidden**-0.5 / 2)
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(AttentionBlock(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        """A padded place comes after all real ones, so causality alone hides it."""
        places = torch.arange(inputs.shape[1], device=inputs.device)
        hidden = self.dropout(self.items(inputs) + self.places(places))
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)


class AttentionBlock(nn.Module):
    """Causal attention, then a feed-forward layer, each added to what came in."""

    def __init__(self, sizes: SASRec) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.attention_norm = nn.LayerNorm(sizes.hidden)
        self.query_key_value = nn.Linear(sizes.hidden, 3 * sizes.hidden)
        self.output = nn.Linear(sizes.hidden, sizes.hidden)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(sizes.hidden),
            nn.Linear(sizes.hidden, 2 * sizes.hidden),
            nn.GELU(),
            nn.Linear(2 * sizes.hidden, sizes.hidden),
        )
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        rows, length, width = hidden.shape
        qkv = self.query_key_value(self.attention_norm(hidden))
        split = qkv.view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split.unbind(0), is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(rows, length, width)
        hidden = hidden + self.dropout(self.output(mixed))
        return hidden + self.dropout(self.feed_forward(hidden))
