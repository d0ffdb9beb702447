"""FDSA: attention over a user's last items beside attention over what their titles say.

One stream reads item embeddings as SASRec does. The other reads a vector of each item's features,
here the words of its title: their embeddings, weighed by attention (the paper's vanilla attention,
softmax of a linear layer over the words of the item). Both ends are put together by a linear layer.
What `sequential` says of the output and the loss. Source: Zhang et al., Feature-level Deeper
Self-Attention Network for Sequential Recommendation (IJCAI 2019); its keywords come from a topic
model, and its loss samples negatives. Importing this module imports torch.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from llmrec.baselines.sasrec import AttentionBlock, SASRec
from llmrec.baselines.sequential import Network
from llmrec.data.records import Longs

_WORD = re.compile(r"\w+")
WORDS = 16  # of a title that are read, the first


@dataclass(frozen=True)
class FDSA(SASRec):
    """Sizes and training, see `Sequential`; both streams are alike."""

    reads_titles = True

    def network(self, catalog_size: int, titles: Sequence[str] = ()) -> Network:
        """An untrained network for N items with N titles."""
        return FeatureNetwork(self, catalog_size, title_words(titles or [""] * catalog_size))


class FeatureNetwork(Network):
    """`words` (N, W): the numbers of each title's words, 0 for none."""

    words: Tensor

    def __init__(self, sizes: FDSA, catalog_size: int, words: Longs) -> None:
        super().__init__(catalog_size, sizes.hidden, sizes.max_length)
        hidden = sizes.hidden
        # Made from the titles again wherever the network is, so it is not kept with the weights.
        self.register_buffer("words", torch.from_numpy(words), persistent=False)
        self.features = nn.Embedding(int(words.max(initial=0)) + 1, hidden, padding_idx=0)
        self.attention = nn.Linear(hidden, 1)
        self.places, self.feature_places = (nn.Embedding(sizes.max_length, hidden) for _ in "ab")
        for table in (self.features, self.places, self.feature_places):
            nn.init.normal_(table.weight, std=hidden**-0.5 / 2)
        with torch.no_grad():
            self.features.weight[0] = 0.0
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks, self.feature_blocks = (
            nn.ModuleList(AttentionBlock(sizes) for _ in range(sizes.layers)) for _ in "ab"
        )
        self.both = nn.Linear(2 * hidden, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        """A padded place comes after all real ones, so causality alone hides it."""
        at = torch.arange(inputs.shape[1], device=inputs.device)
        ends = []
        for read, places, blocks in (
            (self.items(inputs), self.places, self.blocks),
            (self.features_of(inputs), self.feature_places, self.feature_blocks),
        ):
            hidden = self.dropout(read + places(at))
            for block in blocks:
                hidden = block(hidden)
            ends.append(hidden)
        return self.norm(self.both(torch.cat(ends, dim=-1)))

    def features_of(self, inputs: Tensor) -> Tensor:
        """(..., hidden) features of items (...): words weighed by attention, 0 without words."""
        words = self.words[inputs]
        vectors = self.features(words)
        weights = self.attention(vectors).squeeze(-1).masked_fill(words == 0, -1e9).softmax(dim=-1)
        return (weights * (words > 0)).unsqueeze(-2).matmul(vectors).squeeze(-2)


def title_words(titles: Sequence[str]) -> Longs:
    """(N, W) numbers from 1 of the first words of N titles, each once, 0 behind them.

    A word of one title alone is left out: it says no more than the item itself.
    """
    found = [list(dict.fromkeys(_WORD.findall(title.casefold()))) for title in titles]
    shared = Counter(word for words in found for word in words)
    numbers: dict[str, int] = {}
    table = np.zeros((len(found), WORDS), np.int64)
    for row, words in enumerate(found):
        kept = [word for word in words if shared[word] > 1][:WORDS]
        table[row, : len(kept)] = [numbers.setdefault(word, len(numbers) + 1) for word in kept]
    return table[:, : max(1, int((table > 0).sum(axis=1).max(initial=0)))]
