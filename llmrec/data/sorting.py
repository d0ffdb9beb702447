"""Sorting rows by several columns, fast for tens of millions of rows.

The leading columns and the row number are packed into one integer, which NumPy sorts as a plain
value, several times faster than it finds an order; rows that are equal so far are sorted by what
did not fit. The result is that of `numpy.lexsort`, with the columns named most significant first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Bools, Longs

Column: TypeAlias = npt.NDArray[np.integer[Any]]
Columns: TypeAlias = Sequence[Column]
Unsigned: TypeAlias = npt.NDArray[np.uint64]

_CHUNK = 1 << 15  # rows packed at once: what is packed stays in the processor's cache


def rows_in_order(columns: Columns) -> Longs:
    """(R,) row numbers sorted by C integer columns (R,), the first deciding first; stable."""
    keys = list(columns)
    while keys and ascending(keys[-1]):
        keys.pop()  # a stable sort keeps this order without being told
    if not keys:
        return np.arange(len(columns[0]))
    rows, at, undecided = _sorted_by_first(keys)
    if undecided:
        rows[at] = rows[at][rows_in_order(undecided)]
    return rows


def first_of_each(columns: Columns) -> Bools:
    """(R,) True where no earlier row has the same values in all C integer columns (R,)."""
    first = np.ones(len(columns[0]), dtype=np.bool_)
    if len(first) < 2:
        return first
    rows, at, undecided = _sorted_by_first(list(columns))
    if len(undecided) > 1:
        first[rows[at]] = first_of_each(undecided)
    elif undecided:  # equal in everything
        first[rows[at[1:][np.diff(undecided[0]) == 0]]] = False
    return first


def ascending(column: npt.NDArray[Any]) -> bool:
    """Whether no value of (R,) is smaller than the one before it."""
    return bool((column[1:] >= column[:-1]).all())


@dataclass(frozen=True)
class _Part:
    """The upper `bits` of a column less its `least` value, `cut` lower bits of it left out."""

    column: Column
    least: int
    bits: int
    cut: int

    def upper(self, rows: slice) -> Unsigned:
        return self._from_zero(self.column[rows]) >> np.uint64(self.cut)

    def lower(self, rows: Longs) -> Longs:
        mask = np.uint64((1 << self.cut) - 1)
        return (self._from_zero(self.column[rows]) & mask).astype(np.int64)

    def _from_zero(self, values: Column) -> Unsigned:
        # In two's complement a difference is right even where it passes what int64 holds.
        return values.astype(np.int64).view(np.uint64) - np.uint64(self.least % (1 << 64))


def _sorted_by_first(keys: list[Column]) -> tuple[Longs, Longs, list[Column]]:
    """(R,) rows stably sorted by as much as fits; where equal ones stand; by what these differ.

    The second are the ascending places in the sorted rows that stand beside an equal one, the
    third columns over these places, the first of them numbering the groups of equal rows; no
    column where there is no such place. R is at most 2**31, which leaves room for progress.
    """
    total = len(keys[0])
    row_bits = max(total - 1, 1).bit_length()
    parts, rest = _parts(keys, 64 - row_bits)
    packed = _packed(parts, total, row_bits)
    packed.sort()
    rows = (packed & np.uint64((1 << row_bits) - 1)).astype(np.int64)
    packed >>= np.uint64(row_bits)
    beside = packed[1:] == packed[:-1]
    in_group = np.zeros(total, dtype=np.bool_)
    in_group[1:] = beside
    in_group[:-1] |= beside
    at = np.flatnonzero(in_group)
    if not len(at):
        return rows, at, []
    equal = np.zeros(len(at), dtype=np.bool_)
    equal[1:] = beside[at[1:] - 1]
    groups, chosen = np.cumsum(~equal, dtype=np.int64), rows[at]
    lower = [part.lower(chosen) for part in parts if part.cut]
    return rows, at, [groups, *lower, *(column[chosen] for column in rest)]


def _parts(keys: list[Column], room: int) -> tuple[list[_Part], list[Column]]:
    """What of the columns fits into `room` bits, the last perhaps in part, and the columns left."""
    parts = []
    for column in keys:
        if not room:
            break
        least, largest = (int(column.min()), int(column.max())) if len(column) else (0, 0)
        bits = (largest - least).bit_length()
        taken = min(bits, room)
        room -= taken
        parts.append(_Part(column, least, taken, bits - taken))
    return parts, keys[len(parts) :]


def _packed(parts: list[_Part], total: int, row_bits: int) -> Unsigned:
    """(R,) the parts and behind them the row number, as one integer."""
    packed = np.zeros(total, np.uint64)
    for begin in range(0, total, _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        chunk = packed[rows]
        for part in parts:
            chunk <<= np.uint64(part.bits)
            chunk |= part.upper(rows)
        chunk <<= np.uint64(row_bits)
        chunk |= np.arange(begin, begin + len(chunk), dtype=np.uint64)
    return packed
