"""Blocks of rows, and the account of the rows that are bad, as file:line:column:reason.

Knows nothing of what the columns mean.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmrec.data.records import Longs
from llmrec.errors import DataError

_LISTED, _REMEMBERED = 10, 10_000


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be used: where (line from 1; in Parquet the row from 1) and why."""

    file: str
    line: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.reason}"


@dataclass
class BadRows:
    """The bad rows met so far: all counted, the first ten thousand remembered.

    `notices`: what else a user should know of how the files were read, once each. `events`: rows of
    each kind of event, where events are filtered.
    """

    limit: int = 0
    count: int = 0
    rows: list[BadRow] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)

    def notice(self, text: str) -> None:
        """Note something that is no error and must not stay unsaid."""
        if text not in self.notices:
            self.notices.append(text)

    def add(self, file: str, line: int, column: str, reason: str, rows: int = 1) -> None:
        """Note a bad row, or `rows` of them from `line` on that are bad for one reason."""
        self.count += rows
        if len(self.rows) < _REMEMBERED:
            self.rows.append(BadRow(file, line, column, reason))

    def check(self) -> None:
        """Raise DataError where there are more than the limit."""
        if self.count <= self.limit:
            return
        listed = "\n".join(f"  {row}" for row in self.rows[:_LISTED])
        more = "" if len(self.rows) <= _LISTED else "\n  ..."
        raise DataError(
            f"{self.count} bad rows, {self.limit} allowed (data.max_bad_rows):\n{listed}{more}\n"
            f"Mend them, or set data.max_bad_rows={self.count} to leave them out."
        )


@dataclass(frozen=True)
class Block:
    """R rows: `columns` maps a role (user_id, title, ...) to (R,) values; `lines` (R,) from 1.

    `first`: the line of the file's first row, counted as rows go on over several files.
    """

    columns: dict[str, pa.Array]
    lines: Longs
    first: int = 1
    file: str = ""

    @property
    def rows(self) -> Longs:
        """(R,) the rows' places in the data, from 0."""
        return self.lines - self.first


def printable(text: Any, limit: int = 40) -> str:
    """A value quoted for a message: short, on one line, without control characters."""
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit - 4] + "..." + shown[-1]


def require_one_of_each(path: Path, names: Sequence[str], columns: Mapping[str, str]) -> None:
    """Raise DataError where a wanted column (role -> name) is there twice."""
    for name in columns.values():
        if (count := names.count(name)) > 1:
            raise DataError(
                f"{path} has {count} columns called {name!r}, and which of them is "
                "meant is not known; rename all but one."
            )
