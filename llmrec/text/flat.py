"""Token ids of many texts in one array: a list of as many arrays takes several times the memory."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import overload

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
BLOCK = 50_000  # texts that are held as arrays of their own while they are put together


class FlatIds(Sequence[Ids]):
    """N texts; text i is `ids[offsets[i]:offsets[i + 1]]`, given as a view."""

    def __init__(self, ids: Ids, offsets: npt.NDArray[np.int64]) -> None:
        self.ids, self.offsets = ids, offsets

    @staticmethod
    def of(texts: Iterable[Ids]) -> "FlatIds":
        """Put together, a block at a time."""
        left, blocks, lengths = iter(texts), [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
        while some := list(islice(left, BLOCK)):
            blocks.append(np.concatenate(some).astype(np.int32))
            lengths.append(np.array([len(text) for text in some], np.int64))
        return FlatIds(np.concatenate(blocks), np.cumsum(np.concatenate(lengths)))

    def between(self, before: Ids, after: Ids) -> "FlatIds":
        """The same, each text behind `before` and in front of `after`."""
        count = len(self)
        more = len(before) + len(after)
        offsets = self.offsets + more * np.arange(count + 1)
        ids = np.empty(offsets[-1], np.int32)
        begins = offsets[:-1]
        for place, token in enumerate(before):
            ids[begins + place] = token
        for place, token in enumerate(after):
            ids[offsets[1:] - len(after) + place] = token
        moved = np.repeat(begins + len(before) - self.offsets[:-1], np.diff(self.offsets))
        ids[np.arange(len(self.ids)) + moved] = self.ids
        return FlatIds(ids, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int) -> Ids: ...

    @overload
    def __getitem__(self, at: slice) -> list[Ids]: ...

    def __getitem__(self, at: int | slice) -> Ids | list[Ids]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        place = at + len(self) if at < 0 else at
        if not 0 <= place < len(self):
            raise IndexError(f"text {at} of {len(self)}")
        return self.ids[self.offsets[place] : self.offsets[place + 1]]

    def __iter__(self) -> Iterator[Ids]:
        bounds = self.offsets.tolist()
        return (self.ids[a:b] for a, b in pairwise(bounds))
