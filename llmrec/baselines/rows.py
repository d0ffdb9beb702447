"""Rows of items that a network reads in one pass, as index arithmetic over one array.

All items lie end to end where the network is; a row says where it begins and how much of it is
read. A step is a slice of an epoch's rows, so that nothing loops over rows and nothing waits for
the device. Importing this module imports torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec.data.records import Ints, Longs


@dataclass(frozen=True)
class Rows:
    """R rows of `items` (T,) int64, on the device.

    Row r reads `read[r]` items from `start[r]` on; each of its first `places[r]` is followed in
    `items` by its label, read or not. The counts (R,) are here and, as `there` (3, R), on the
    device.
    """

    items: Tensor
    start: Longs
    read: Longs
    places: Longs
    there: Tensor

    @staticmethod
    def of(items: Tensor, start: Longs, read: Longs, places: Longs) -> "Rows":
        """Rows by their counts, which are brought to the device at once."""
        counts = np.stack([start, read, places]).astype(np.int64)
        return Rows(items, *counts, torch.from_numpy(counts).to(items.device))

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, which: slice | Longs) -> "Rows":
        """The rows of a slice, or of indices in their order."""
        at = which if isinstance(which, slice) else torch.from_numpy(which).to(self.items.device)
        counts = (self.start[which], self.read[which], self.places[which])
        return Rows(self.items, *counts, self.there[:, at])

    def of_like_length(self) -> Iterator["Rows"]:
        """In parts, longest first, none twice as long as another of its part: less padding.

        All in one on a GPU, for which padding is cheaper than another pass.
        """
        if self.items.is_cuda:
            yield self
            return
        lengths = np.maximum(self.read, self.places + 1)
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            fits = int((2 * lengths[order] > lengths[order[0]]).sum())
            yield self[order[:fits]]
            order = order[fits:]

    def inputs(self) -> Tensor:
        """(R, S) what is read, padded on the right with item 0."""
        start, read, _ = self.there
        at = torch.arange(max(1, int(self.read.max())), device=self.items.device)
        if not len(self.items):
            return at.new_zeros((len(self), len(at)))
        items = self.items[(start[:, None] + at).clamp(max=len(self.items) - 1)]
        return items.masked_fill(at >= read[:, None], 0)

    def each(self, of: str) -> tuple[Tensor, Tensor]:
        """(P,) the row and (P,) the place in it of everything that is `read`, or of `places`."""
        counts = self.there[1 if of == "read" else 2]
        total = int((self.read if of == "read" else self.places).sum())
        row = torch.repeat_interleave(
            torch.arange(len(self), device=self.items.device), counts, output_size=total
        )
        before = counts.cumsum(0) - counts
        return row, torch.arange(total, device=self.items.device) - before[row]

    def labels(self) -> Tensor:
        """(P,) the item that follows each of `places`, row by row."""
        row, place = self.each("places")
        return self.items[self.there[0][row] + place + 1]


def spans(lengths: Longs, max_length: int, rng: np.random.Generator) -> Longs:
    """(W, 3) number, start and stop of windows of at most `max_length` transitions.

    They begin at a random phase of each sequence. Neighbouring windows share one item, so every
    transition of a sequence stands in one window.
    """
    begin = -rng.integers(max_length, size=len(lengths))
    counts = np.maximum(0, -(-(lengths - 1 - begin) // max_length))
    number = np.repeat(np.arange(len(lengths)), counts)
    nth = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = begin[number] + nth * max_length
    found = np.stack(
        [number, np.maximum(0, start), np.minimum(lengths[number], start + max_length + 1)], axis=1
    )
    return found[found[:, 2] - found[:, 1] > 1]


def shuffled(rows: Longs, rng: np.random.Generator) -> Longs:
    """The rows of a matrix in random order."""
    order = np.arange(len(rows))
    rng.shuffle(order)
    return rows[order]


def on(device: torch.device, items: Ints) -> Tensor:
    """Items as int64 on a device."""
    return torch.from_numpy(items.astype(np.int64)).to(device)
