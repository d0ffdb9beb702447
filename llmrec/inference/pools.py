"""Similar users of each prompt, with where every title comes from: a Parquet file a split.

What a prompt may show of other users is what stands here, and nothing else; `llmrec check leakage`
reads it. Knows neither how users are found nor text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.files import replacing
from llmrec.data.records import TIMESTAMP, USER_ID
from llmrec.errors import DataError
from llmrec.text.encoding import Demonstration

NEIGHBOURS = "neighbours"
_KIND = pa.list_(
    pa.struct(
        [
            ("user_id", pa.string()),
            ("history", pa.list_(pa.int32())),
            ("chosen", pa.int32()),
            ("rows", pa.list_(pa.int64())),
            ("score", pa.float32()),
        ]
    )
)


@dataclass(frozen=True)
class Neighbour:
    """A user as they stood before one choice: `history`, oldest first, and what they chose next.

    `rows`: the source rows of the history and, last, of the choice.
    """

    user_id: str
    history: npt.NDArray[np.int32]
    chosen: int
    rows: npt.NDArray[np.int64]
    score: float

    @property
    def titles(self) -> npt.NDArray[np.int32]:
        """The positions of all that is known of them, oldest first: what they can vote for."""
        return np.append(self.history, self.chosen).astype(np.int32)

    def shown(self) -> Demonstration:
        """As a prompt shows it."""
        return Demonstration(self.history, self.chosen)


@dataclass(frozen=True)
class Pools:
    """For each of E examples its user, its time and the similar users found, most alike first."""

    user_ids: npt.NDArray[np.object_]
    timestamps: npt.NDArray[np.int64]
    neighbours: Sequence[Sequence[Neighbour]]

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, rows: npt.NDArray[np.int64]) -> "Pools":
        """Those of the given examples, in that order."""
        kept = [self.neighbours[i] for i in rows.tolist()]
        return Pools(self.user_ids[rows], self.timestamps[rows], kept)

    def write(self, path: Path) -> None:
        """Write a row for each example."""
        said = [
            [
                {
                    "user_id": n.user_id,
                    "history": n.history,
                    "chosen": n.chosen,
                    "rows": n.rows,
                    "score": n.score,
                }
                for n in found
            ]
            for found in self.neighbours
        ]
        table = pa.table(
            {
                USER_ID: pa.array(self.user_ids, pa.string()),
                TIMESTAMP: self.timestamps,
                NEIGHBOURS: pa.array(said, _KIND),
            }
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            pq.write_table(table, temporary)

    @staticmethod
    def read(path: Path) -> "Pools":
        """Read what `write` wrote. Raises DataError for anything else."""
        try:
            table = pq.read_table(path)
            said = table[NEIGHBOURS].to_pylist()
            found = [
                [
                    Neighbour(
                        n["user_id"],
                        np.array(n["history"], np.int32),
                        n["chosen"],
                        np.array(n["rows"], np.int64),
                        n["score"],
                    )
                    for n in of_one
                ]
                for of_one in said
            ]
            users = np.array(table[USER_ID].to_pylist(), dtype=object)
            return Pools(users, table[TIMESTAMP].to_numpy(), found)
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: holds no similar users ({error}); remove it and run "
                "`llmrec retrieve` again"
            ) from None
