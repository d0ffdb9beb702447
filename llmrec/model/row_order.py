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
Weights = tuple[float, ...]
EVEN: Weights = (1.0, 1.0)  # real targets, a model's own answers


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

    def __init__(
        self, lengths: Sequence[int], group: int, size: int, seed: int, weights: Weights = EVEN
    ) -> None:
        self.lengths, self.group, self.seed = list(lengths), group, seed
        self.fillers = -len(self.lengths) % size
        self.epoch, self.weights = 0, weights

    def __len__(self) -> int:
        return len(self.lengths) + self.fillers

    def __iter__(self) -> Iterator[tuple[int, Weights]]:
        weights = self.weights
        for index in self.numbers(self.epoch):
            yield index, weights
        for _ in range(self.fillers):
            yield FILLER, weights

    def numbers(self, epoch: int) -> Iterator[int]:
        """The row numbers of an epoch in their order, without fillers."""
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        yield from LengthGroupedSampler(self.group, lengths=self.lengths, generator=generator)

    def coming(self, step: int, steps: int) -> list[int]:
        """The numbers of the rows that `steps` optimiser steps read from `step` on, each once.

        Steps are counted from 0 over all epochs; each has `group` rows, an epoch's last one fewer.
        """
        in_epoch = -(-len(self) // self.group)
        found: dict[int, None] = {}
        orders: dict[int, list[int]] = {}
        for number in range(step, step + steps):
            epoch, place = divmod(number, in_epoch)
            if epoch not in orders:
                orders[epoch] = list(self.numbers(epoch))
            rows = orders[epoch][place * self.group : (place + 1) * self.group]
            found |= dict.fromkeys(rows)
        return list(found)
