"""Sorting rows by several columns, fast for tens of millions of rows.

Packs the columns into one integer where their ranges allow it; the result is that of
`numpy.lexsort`, with the columns named most significant first.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Longs

_LARGEST = 2**63 - 1


def rows_in_order(columns: Sequence[npt.NDArray[Any]]) -> Longs:
    """(R,) row numbers sorted by C integer columns (R,), the first deciding first; stable."""
    keys = list(columns)
    while keys and _ascending(keys[-1]):
        keys.pop()  # a stable sort keeps this order without being told
    if not keys:
        return np.arange(len(columns[0]))
    packed = [keys.pop()]
    while keys:
        column = keys.pop()
        joined = _packed(column, packed[-1])
        if joined is None:
            packed.append(column)
        else:
            packed[-1] = joined
    if len(packed) == 1:
        return np.argsort(packed[0], kind="stable")
    return np.lexsort(packed)


def _ascending(column: npt.NDArray[Any]) -> bool:
    return bool((column[1:] >= column[:-1]).all())


def _packed(high: npt.NDArray[Any], low: npt.NDArray[Any]) -> Longs | None:
    """(R,) int64 that sorts as (high, low) does, or None where 63 bits are too few."""
    low_start, low_range = int(low.min()), int(low.max()) - int(low.min()) + 1
    high_start, high_range = int(high.min()), int(high.max()) - int(high.min()) + 1
    if low_range * high_range > _LARGEST:
        return None
    packed = high.astype(np.int64) - high_start
    packed *= low_range
    packed += low
    packed -= low_start
    return packed
