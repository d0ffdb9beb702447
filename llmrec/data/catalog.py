"""The Catalog: all recommendable items in a fixed order, each with one title of its own.

Cleans titles (`clean_title`) and makes equal ones unique by a recorded rule. Knows nothing of
users or of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.files import replacing
from llmrec.data.records import ITEM_ID, TITLE, Ints

RAW_TITLE = "raw_title"


@dataclass(frozen=True)
class Catalog:
    """N items: `item_ids`, `titles` (clean, unique) and `raw_titles` (as the data had them)."""

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    raw_titles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def position_of(self) -> dict[str, int]:
        """item_id -> position."""
        return {item_id: position for position, item_id in enumerate(self.item_ids)}

    def titles_at(self, positions: Sequence[int] | Ints) -> list[str]:
        """Titles of the given positions, in their order."""
        return [self.titles[p] for p in positions]

    def write(self, path: Path) -> None:
        """Write as Parquet: item_id, title, raw_title; the row is the position."""
        table = pa.table(
            {ITEM_ID: self.item_ids, TITLE: self.titles, RAW_TITLE: self.raw_titles},
            schema=pa.schema([(name, pa.string()) for name in (ITEM_ID, TITLE, RAW_TITLE)]),
        )
        with replacing(path) as temporary:
            pq.write_table(table, temporary)

    @staticmethod
    def read(path: Path) -> "Catalog":
        """Read what `write` wrote."""
        table = pq.read_table(path, columns=[ITEM_ID, TITLE, RAW_TITLE])
        return Catalog(*(tuple(table[name].to_pylist()) for name in table.column_names))
