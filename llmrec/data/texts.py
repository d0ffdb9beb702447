"""Many short texts in two flat arrays, which can be mapped from a file: as many Python strings take
several times the memory, in each process.
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

BLOCK = 50_000  # texts that are strings at a time where all are gone through


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """N texts; text i is `content[offsets[i]:offsets[i + 1]]` in UTF-8.

    `known_order` (N,): their positions, the texts ascending, where somebody has them.
    """

    content: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    known_order: npt.NDArray[np.int32] | None = None

    @staticmethod
    def of(column: pa.ChunkedArray) -> "Texts":
        """From a column of strings, of which none is null."""
        array = column.cast(pa.large_string()).combine_chunks()
        _, offsets, content = array.buffers()
        bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        whole = np.frombuffer(content or b"", np.uint8)
        return Texts(whole[bounds[0] : bounds[-1]], bounds - bounds[0])

    @staticmethod
    def of_strings(texts: Sequence[str]) -> "Texts":
        """From strings."""
        return Texts.of(pa.chunked_array([pa.array(texts, pa.large_string())]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...

    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        if isinstance(at, slice):
            return tuple(self[i] for i in range(*at.indices(len(self))))
        place = at + len(self) if at < 0 else at
        if not 0 <= place < len(self):
            raise IndexError(f"text {at} of {len(self)}")
        return self.content[self.offsets[place] : self.offsets[place + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for begin in range(0, len(self), BLOCK):
            bounds = self.offsets[begin : begin + BLOCK + 1].tolist()
            block = self.content[bounds[0] : bounds[-1]].tobytes()
            for low, high in pairwise(bounds):
                yield block[low - bounds[0] : high - bounds[0]].decode()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all of them."""
        return digest_of(self.content, self.offsets)

    @property
    def order(self) -> npt.NDArray[np.int32]:
        """(N,) their positions, the texts ascending."""
        if self.known_order is not None:
            return self.known_order
        offsets, content = pa.py_buffer(self.offsets), pa.py_buffer(self.content)
        array = pa.LargeStringArray.from_buffers(len(self), offsets, content)
        return np.asarray(pc.array_sort_indices(array)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Places(Mapping[str, int]):
    """Text -> the position of the last one equal to it, found in their order by halving; `single`:
    a text that is there more than once is not in it.
    """

    texts: Texts
    single: bool = False

    def __getitem__(self, text: str) -> int:
        order = self.texts.order
        place = bisect_right(order, text, key=self.texts.__getitem__) - 1
        same = [at for at in (place, place - 1) if at >= 0 and self.texts[order[at]] == text]
        if not same or (self.single and len(same) == 2):
            raise KeyError(text)
        return int(order[place])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        ordered = (self.texts[at] for at in self.texts.order)
        return (text for text, _ in groupby(ordered) if text in self)


def positions_of(texts: Sequence[str], single: bool = False) -> Mapping[str, int]:
    """Text -> its position, the last one's of equal ones; `single`: without those."""
    if isinstance(texts, Texts):
        return Places(texts, single)
    often = Counter(texts) if single else {}
    return {text: at for at, text in enumerate(texts) if often.get(text, 1) == 1}


def digest_of(*arrays: npt.NDArray[Any]) -> str:
    """SHA-256 over the bytes of some arrays, each with its length."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
