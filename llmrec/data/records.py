"""The two tables everything else is made of: Interactions and Examples, as arrays.

Column names are written here and nowhere else. Knows nothing of files' formats outside Parquet,
of splits or of text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.files import replacing

USER_ID, ITEM_ID, TIMESTAMP, RATING, TITLE = "user_id", "item_id", "timestamp", "rating", "title"
POSITION, SOURCE_ROW, ROW_BEFORE, HISTORY, TARGET, TIED, COLD = (
    "position",
    "source_row",
    "row_before",
    "history",
    "target",
    "tied",
    "cold",
)

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Interactions:
    """R interactions of U users with the N items of a Catalog.

    `user` (R,) indexes `user_ids` (U,); `position` (R,) is a row of the Catalog; `timestamp` (R,)
    is any integer that grows with time; `source_row` (R,) is the row in the raw data, from 0;
    `rating` (R,) is optional. Once ordered (see `llmrec.data.splits`), the rows of a user are
    adjacent and oldest first.
    """

    user: Ints
    position: Ints
    timestamp: Longs
    source_row: Longs
    user_ids: npt.NDArray[np.object_]
    rating: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[Any]) -> "Interactions":
        """The given rows (indices or a mask), in the given order; `user_ids` stays whole."""
        rating = None if self.rating is None else self.rating[rows]
        return Interactions(
            self.user[rows],
            self.position[rows],
            self.timestamp[rows],
            self.source_row[rows],
            self.user_ids,
            rating,
        )

    def write(self, path: Path) -> None:
        """Write as Parquet: user_id, position, timestamp, source_row and, if any, rating."""
        users = pa.DictionaryArray.from_arrays(pa.array(self.user), pa.array(self.user_ids))
        columns = {
            USER_ID: users,
            POSITION: self.position,
            TIMESTAMP: self.timestamp,
            SOURCE_ROW: self.source_row,
        }
        if self.rating is not None:
            columns[RATING] = self.rating
        with replacing(path) as temporary:
            pq.write_table(pa.table(columns), temporary)

    @staticmethod
    def read(path: Path) -> "Interactions":
        """Read what `write` wrote."""
        table = pq.read_table(path).combine_chunks()
        users = table[USER_ID].combine_chunks()
        if not pa.types.is_dictionary(users.type):
            users = users.dictionary_encode()
        columns = {name: table[name].to_numpy() for name in table.column_names if name != USER_ID}
        return Interactions(
            users.indices.to_numpy().astype(np.int32),
            columns[POSITION],
            columns[TIMESTAMP],
            columns[SOURCE_ROW],
            np.array(users.dictionary.to_pylist(), dtype=object),
            columns.get(RATING),
        )


@dataclass(frozen=True)
class Example:
    """What one user had chosen (`history`, positions, oldest first) and what followed it."""

    user_id: str
    history: Ints
    target: int
    timestamp: int


@dataclass(frozen=True)
class Examples:
    """E Examples end to end.

    History i is `positions[offsets[i]:offsets[i + 1]]`. `tied` (E,): the target carries the same
    timestamp as the last history item. `cold` (E,): the target never occurs in training.
    `rows_before` (E,): the row of the training interactions that the last history item is, -1 where
    it is none of them; None where examples were made of something else. Behind it a train target is
    the next row, and a history the rows up to it.
    """

    user_ids: npt.NDArray[np.object_]
    offsets: Longs
    positions: Ints
    targets: Ints
    timestamps: Longs
    tied: Bools
    cold: Bools
    rows_before: Longs | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def history(self, index: int) -> Ints:
        """Positions before the target of one example, oldest first."""
        return self.positions[self.offsets[index] : self.offsets[index + 1]]

    def histories(self) -> list[Ints]:
        """All histories, as views."""
        return [self.history(i) for i in range(len(self))]

    def __iter__(self) -> Iterator[Example]:
        for i in range(len(self)):
            yield Example(
                self.user_ids[i], self.history(i), int(self.targets[i]), int(self.timestamps[i])
            )

    def take(self, rows: npt.NDArray[Any]) -> "Examples":
        """The given examples (indices or a mask), in the given order."""
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        histories = [self.history(i) for i in rows.tolist()]
        return Examples(
            self.user_ids[rows],
            offsets_of(histories),
            concatenated(histories),
            self.targets[rows],
            self.timestamps[rows],
            self.tied[rows],
            self.cold[rows],
            None if self.rows_before is None else self.rows_before[rows],
        )

    def write(self, path: Path) -> None:
        """Write as Parquet, one row an example, `history` as a list column."""
        columns = {
            USER_ID: pa.array(self.user_ids, pa.string()),
            HISTORY: pa.LargeListArray.from_arrays(self.offsets, self.positions),
            TARGET: self.targets,
            TIMESTAMP: self.timestamps,
            TIED: self.tied,
            COLD: self.cold,
        }
        if self.rows_before is not None:
            columns[ROW_BEFORE] = self.rows_before
        with replacing(path) as temporary:
            pq.write_table(pa.table(columns), temporary)

    @staticmethod
    def read(path: Path) -> "Examples":
        """Read what `write` wrote."""
        table = pq.read_table(path).combine_chunks()
        lists = table[HISTORY].combine_chunks()
        offsets = lists.offsets.to_numpy().astype(np.int64)
        known = ROW_BEFORE in table.column_names
        return Examples(
            np.array(table[USER_ID].to_pylist(), dtype=object),
            offsets - offsets[0],
            lists.flatten().to_numpy().astype(np.int32),
            table[TARGET].to_numpy(),
            table[TIMESTAMP].to_numpy(),
            table[TIED].to_numpy(),
            table[COLD].to_numpy(),
            table[ROW_BEFORE].to_numpy() if known else None,
        )


def offsets_of(sequences: Sequence[npt.NDArray[Any]]) -> Longs:
    """(E + 1,) where each of E sequences starts once they are laid end to end."""
    return np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)


def concatenated(sequences: Sequence[npt.NDArray[Any]]) -> Ints:
    """The sequences end to end as int32; an empty array for none."""
    if len(sequences) == 0:
        return np.zeros(0, np.int32)
    return np.concatenate(sequences).astype(np.int32)
