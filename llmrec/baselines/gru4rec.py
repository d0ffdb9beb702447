"""GRU4Rec: gated recurrent units over a user's last items.

What `sequential` says of the output and the loss. Source: arXiv 1511.06939; its ranking losses over
sampled items gave way to cross-entropy in arXiv 1706.03847. Importing this module imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from llmrec.baselines.sequential import Network, Sequential


@dataclass(frozen=True)
class GRU4Rec(Sequential):
    """Sizes and training, see `Sequential`."""

    def network(self, catalog_size: int, titles: Sequence[str] = ()) -> Network:
        """An untrained network for N items."""
        return RecurrentNetwork(self, catalog_size)


class RecurrentNetwork(Network):
    """Layers of gated recurrent units over item embeddings."""

    def __init__(self, sizes: GRU4Rec, catalog_size: int) -> None:
        super().__init__(catalog_size, sizes.hidden, sizes.max_length)
        self.dropout = nn.Dropout(sizes.dropout)
        between = sizes.dropout if sizes.layers > 1 else 0.0  # it stands between layers alone
        self.units = nn.GRU(
            sizes.hidden, sizes.hidden, sizes.layers, batch_first=True, dropout=between
        )
        self.norm = nn.LayerNorm(sizes.hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        """A padded place comes after all real ones and is read by none of them."""
        return self.norm(self.units(self.dropout(self.items(inputs)))[0])
