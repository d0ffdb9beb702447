"""Counting rows of a user that share their time, as written and as read. Knows nothing of files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmrec.data.sources.rows import BadRows

MOST_MORE = 0.05  # share of the rows


@dataclass
class Ties:
    """Rows with the time of another row of their user, within one block, over all blocks.

    `written`: where the values in the file are the same; `read`: where what was read of them is.
    """

    rows: int = 0
    written: int = 0
    read: int = 0

    def count(self, users: pa.DictionaryArray, values: pa.Array, *time: npt.NDArray[Any]) -> None:
        """Count a block: (R,) users, values as they stand in the file, and what was read."""
        user = users.indices.to_numpy(False)
        codes = values.dictionary_encode().indices.to_numpy(False)
        self.rows += len(user)
        self.written += _tied(user, codes)
        self.read += _tied(user, *time)

    def tell(self, file: str, bad: BadRows) -> None:
        """Notice where far more rows are tied than were so in the file."""
        if self.read - self.written > MOST_MORE * self.rows:
            read, written = self.read / self.rows, self.written / self.rows
            bad.notice(
                f"{file}: {read:.1%} of the rows share their time with another row of their user "
                f"as read, {written:.1%} as written: digits of the times were too fine to keep, "
                "and the order of the file stands in for them"
            )


def _tied(*keys: npt.NDArray[Any]) -> int:
    """Rows that some other row equals in all keys."""
    order = np.lexsort(keys)
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for key in keys:
        same &= np.diff(key[order]) == 0
    return (
        int(np.count_nonzero(np.append(same, False) | np.append(False, same))) if len(order) else 0
    )
