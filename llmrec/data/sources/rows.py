"""Reading a file in blocks of whole lines, and keeping account of the rows that are bad.

A record is a line: that is what makes file:line:column:reason exact and keeps one broken record
from swallowing the next. Knows nothing of what the columns mean.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmrec.data.records import Longs
from llmrec.errors import DataError

BLOCK_BYTES = 1 << 24
MAX_LINE_BYTES = 1 << 26
# A gz file may unpack to this much, and to at most this many times its own size once it is large:
# text packs 3 to 20 times, a bomb a thousand times.
MAX_UNPACKED_BYTES = 1 << 37
MAX_UNPACKED_RATIO = 200
_RATIO_APPLIES_FROM = 1 << 28

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

    `notices`: what else a user should know of how the files were read, once each.
    """

    limit: int = 0
    count: int = 0
    rows: list[BadRow] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

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
    """R rows: `columns` maps a role (user_id, title, ...) to (R,) values; `lines` (R,) from 1."""

    columns: dict[str, pa.Array]
    lines: Longs


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


def line_blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield (whole lines, number of the first of them from 1); unpacks `.gz` while reading."""
    line = 1
    rest = b""
    for chunk in _chunks(path):
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            rest += tail
            if len(rest) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path.name}:{line}: a line of more than {MAX_LINE_BYTES} bytes; "
                    "is this a text file with one record a line?"
                )
            continue
        block = rest + head + newline
        yield block, line
        line += block.count(b"\n")
        rest = tail
    if rest:
        yield rest, line


def _chunks(path: Path) -> Iterator[bytes]:
    total, packed = 0, path.stat().st_size
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        while True:
            try:
                chunk = stream.read(BLOCK_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(
                    f"{path}: the gz file is damaged after {total:,} unpacked bytes ({error}). "
                    "Fetch it again."
                ) from error
            if not chunk:
                return
            total += len(chunk)
            if path.suffix == ".gz" and _too_much(total, packed):
                raise DataError(
                    f"{path}: {packed:,} bytes unpack to more than {total:,}; refused, because no "
                    "table packs that well. Unpack it yourself if you trust it."
                )
            yield chunk


def _too_much(total: int, packed: int) -> bool:
    if total > MAX_UNPACKED_BYTES:
        return True
    return total > _RATIO_APPLIES_FROM and total > MAX_UNPACKED_RATIO * packed
