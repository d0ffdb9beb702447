"""Token ids of many texts in one array: a list of as many arrays takes several times the memory."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import overload

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
BLOCK = 50_000  # texts that are held as arrays of their own while they are put together


class IdsOfTexts(Sequence[Ids]):
    """Texts as token ids; a class says how many there are, and what is `at` a place."""

    @abstractmethod
    def at(self, place: int) -> Ids:
        """Text `place`, from 0."""

    @overload
    def __getitem__(self, at: int) -> Ids: ...

    @overload
    def __getitem__(self, at: slice) -> list[Ids]: ...

    def __getitem__(self, at: int | slice) -> Ids | list[Ids]:
        if isinstance(at, slice):
            return [self.at(i) for i in range(*at.indices(len(self)))]
        place = at + len(self) if at < 0 else at
        if not 0 <= place < len(self):
            raise IndexError(f"text {at} of {len(self)}")
        return self.at(place)


class FlatIds(IdsOfTexts):
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

    def between(self, before: Ids, after: Ids) -> "Enclosed":
        """The same, each text behind `before` and in front of `after`."""
        return Enclosed(self, before, after)

    @property
    def longest(self) -> int:
        """How many ids the longest text has; 0 where there is none."""
        return int(np.diff(self.offsets).max(initial=0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def at(self, place: int) -> Ids:
        """Text `place`, from 0."""
        return self.ids[self.offsets[place] : self.offsets[place + 1]]

    def __iter__(self) -> Iterator[Ids]:
        bounds = self.offsets.tolist()
        return (self.ids[a:b] for a, b in pairwise(bounds))


@dataclass(frozen=True)
class Enclosed(IdsOfTexts):
    """Texts that each stand behind `before` and in front of `after`, put together when asked for:
    all of them would be a second copy of the first."""

    texts: FlatIds
    before: Ids
    after: Ids

    @property
    def longest(self) -> int:
        """How many ids the longest has."""
        return len(self.before) + self.texts.longest + len(self.after)

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, place: int) -> Ids:
        """Text `place`, from 0."""
        return self._around(self.texts.at(place))

    def __iter__(self) -> Iterator[Ids]:
        return map(self._around, self.texts)

    def flat(self) -> FlatIds:
        """The same, put together at once."""
        plain, before, after = self.texts, self.before, self.after
        offsets = plain.offsets + (len(before) + len(after)) * np.arange(len(self) + 1)
        ids = np.empty(offsets[-1], np.int32)
        for place, token in enumerate(before):
            ids[offsets[:-1] + place] = token
        for place, token in enumerate(after):
            ids[offsets[1:] - len(after) + place] = token
        moved = np.repeat(offsets[:-1] + len(before) - plain.offsets[:-1], np.diff(plain.offsets))
        ids[np.arange(len(plain.ids)) + moved] = plain.ids
        return FlatIds(ids, offsets)

    def _around(self, ids: Ids) -> Ids:
        return np.concatenate([self.before, ids, self.after], dtype=np.int32)
