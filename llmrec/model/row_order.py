"""In which order the rows of an epoch are read, and what they weigh.

The epoch's weights travel with each index, so that worker processes need not be told of them.
Knows no model.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from llmrec.text.tree import FlatTree, TokenTree

FILLER = -1
KINDS = 2  # real targets, a model's own answers
Weights = tuple[float, ...]


class Rows(Dataset):
    """Token trees, asked for by (number, weights); FILLER is any row, not counted.

    What is handed on is the number and the weights: rows may be others by the time they are read,
    and batches are fetched ahead.
    """

    def __init__(self, rows: Sequence[TokenTree]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[int, Weights]) -> tuple[int, Weights]:
        return index

    def flat(self, number: int, weights: Weights) -> FlatTree:
        """The row as it is now, without the targets whose kind has weight 0."""
        row = self.rows[number]
        if 0.0 in weights:
            row = row.only([kind for kind, weight in enumerate(weights) if weight])
        return row.flatten()


class RowOrder(Sampler):
    """The order of an epoch's rows, and fillers up to a multiple of `size`, each with the weights.

    Rows of like length share a group, so that little is spent on padding. The order hangs on the
    seed and the epoch alone, so an interrupted epoch is read on as it began. Processes must run
    equally many batches; accelerate would repeat rows for that, and count them.
    """

    def __init__(self, lengths: Sequence[int], group: int, size: int, seed: int) -> None:
        self.lengths, self.group, self.seed = list(lengths), group, seed
        self.fillers = -len(self.lengths) % size
        self.epoch, self.weights = 0, (1.0,) * KINDS

    def __len__(self) -> int:
        return len(self.lengths) + self.fillers

    def __iter__(self) -> Iterator[tuple[int, Weights]]:
        weights = self.weights
        seed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        for index in LengthGroupedSampler(self.group, lengths=self.lengths, generator=generator):
            yield index, weights
        for _ in range(self.fillers):
            yield FILLER, weights
