"""Delimited text (CSV, TSV, `a::b`, RecBole's atomic files) as Blocks of strings.

Arrow parses a block at once where it reads it as `quoting` does; a block with anything odd in it
is parsed again record by record, by the same grammar, so that good rows stay and each bad one is
named. Knows nothing of what the columns mean.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from llmrec.data.records import Longs
from llmrec.data.sources.opening import AUTO, HEAD_BYTES, UTF_8, line_blocks
from llmrec.data.sources.quoting import (
    Record,
    Records,
    ends_of_records,
    field_quotes,
    fields_of,
    whole_records,
)
from llmrec.data.sources.rows import BadRows, Block, require_one_of_each
from llmrec.errors import DataError

_UNIT_SEPARATOR = b"\x1f"  # stands in for a delimiter of two characters, which Arrow cannot take


@dataclass(frozen=True)
class Delimited:
    """How a file is laid out. `names` are given where the file has no header line.

    `typed_header`: names are followed by ":token" and the like (RecBole). `latin1`: a line that
    is not UTF-8 is Latin-1 (GroupLens' older files). `escaped`: a quote inside a quoted field has
    a backslash in front (Book-Crossing). `rest_in_last`: what stands behind the last column is
    part of it (Netflix).
    """

    delimiter: str
    quoted: bool = False
    names: tuple[str, ...] | None = None
    typed_header: bool = False
    latin1: bool = False
    escaped: bool = False
    rest_in_last: bool = False

    @property
    def header_lines(self) -> int:
        """Lines before the first record."""
        return 0 if self.names else 1


def column_names(path: Path, layout: Delimited, encoding: str = AUTO) -> tuple[str, ...]:
    """The file's column names; DataError where the file is empty or its first line unreadable."""
    if layout.names:
        return layout.names
    names = [name.strip() for name in _header(path, layout, encoding)]
    return tuple(name.partition(":")[0] if layout.typed_header else name for name in names)


def _header(path: Path, layout: Delimited, encoding: str) -> list[str]:
    for block, _ in line_blocks(path, UTF_8 if layout.latin1 else encoding, size=HEAD_BYTES):
        head = block.partition(b"\n")[0].removesuffix(b"\r")
        try:
            return fields_of(_text(head, layout), layout.delimiter, layout.quoted)
        except ValueError as error:
            raise DataError(f"{path}:1: the header cannot be read: {error}") from None
    raise DataError(f"{path} is empty")


def delimited_blocks(
    path: Path, layout: Delimited, columns: Mapping[str, str], bad: BadRows, encoding: str = AUTO
) -> Iterator[Block]:
    """Yield the wanted columns (role -> column name) of every block of records, as strings."""
    names = column_names(path, layout, encoding)
    require_one_of_each(path, names, columns)
    index = {role: names.index(column) for role, column in columns.items()}
    before_quotes = _blank_before_quotes(path, layout, encoding)
    rest, blocks = b"", line_blocks(path, UTF_8 if layout.latin1 else encoding, bad)
    following = next(blocks, None)
    while following is not None:
        (block, line), following = following, next(blocks, None)
        if line == 1 and layout.header_lines:
            block, line = block.partition(b"\n")[2], 2
        if before_quotes is not None and b'"' in block:
            block = before_quotes.sub(rb"\1", block)
        if layout.escaped:
            block = block.replace(b'\\"', b'""')
        line -= rest.count(b"\n")
        block, rest = rest + block, b""
        if not block:
            continue
        whole = len(block)
        if layout.quoted and following is not None and block.count(b'"') % 2:
            whole = whole_records(block)
        parsed = read_at_once(block[:whole], layout, len(names), index) if whole else None
        if parsed is not None:
            rest = block[whole:]
            columns_read, places = parsed
            yield Block(columns_read, places + line)
        else:
            found, rest = _one_by_one(
                path.name, block, line, layout, names, index, bad, last=following is None
            )
            yield found


def _blank_before_quotes(path: Path, layout: Delimited, encoding: str) -> re.Pattern[bytes] | None:
    """What finds a blank between delimiter and quote, where the header has such blanks too."""
    if layout.names or not layout.quoted:
        return None
    later = _header(path, layout, encoding)[1:]
    if not later or not all(name.startswith(" ") for name in later):
        return None
    return re.compile(b"(" + re.escape(layout.delimiter.encode()) + b') +(?="(?!"[^"]))')


def read_at_once(
    block: bytes, layout: Delimited, width: int, index: Mapping[str, int]
) -> tuple[dict[str, pa.Array], Longs] | None:
    """Columns by role and where each record begins, in lines from 0; None where Arrow cannot."""
    if not block.isascii():
        try:
            block.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if layout.rest_in_last or block.count(b"\r") != block.count(b"\r\n"):
        return None
    delimiter = layout.delimiter.encode()
    quotes = None
    if layout.quoted and b'"' in block:
        quotes = field_quotes(block, delimiter) if len(delimiter) == 1 else None
        if quotes is None:
            return None
    if len(delimiter) > 1:
        if _UNIT_SEPARATOR in block:
            return None
        block = block.replace(delimiter, _UNIT_SEPARATOR)
        delimiter = _UNIT_SEPARATOR
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    ends = None if quotes is None else ends_of_records(block, quotes)
    names = [str(column) for column in range(width)]
    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(block),
            arrow_csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
            arrow_csv.ParseOptions(
                delimiter=delimiter.decode(),
                quote_char=False if quotes is None else '"',
                newlines_in_values=ends is not None,
            ),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=[names[at] for at in index.values()],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != (lines if ends is None else len(ends)):
        return None  # an empty line
    table = table.combine_chunks()
    places = np.arange(lines) if ends is None else np.concatenate([[0], ends[:-1]])
    return {role: table[names[at]].combine_chunks() for role, at in index.items()}, places


def _one_by_one(
    file: str,
    block: bytes,
    line: int,
    layout: Delimited,
    names: tuple[str, ...],
    index: Mapping[str, int],
    bad: BadRows,
    *,
    last: bool,
) -> tuple[Block, bytes]:
    """The good records, and the beginning of one that the next block may close."""
    rows: list[list[str]] = []
    lines: list[int] = []
    texts = block.removesuffix(b"\n").split(b"\n")
    decoded = [_decoded(text, layout) for text in texts]
    records = Records(decoded, layout.delimiter, layout.quoted, len(names), last)
    for at, record in records:
        if not isinstance(record, Record):
            column = _column_of(texts[at].removesuffix(b"\r"), layout, names)
            bad.add(file, line + at, column, record)
        elif layout.rest_in_last and len(record.fields) > len(names):
            behind = layout.delimiter.join(record.fields[len(names) - 1 :])
            fields = [*record.fields[: len(names) - 1], behind]
            rows.append([fields[at] for at in index.values()])
            lines.append(line + at)
        elif len(record.fields) != len(names):
            found = len(record.fields)
            column = names[found] if found < len(names) else str(len(names) + 1)
            bad.add(file, line + at, column, f"{len(names)} columns expected, {found} found")
        else:
            rows.append([record.fields[at] for at in index.values()])
            lines.append(line + at)
    columns = {
        role: pa.array([row[at] for row in rows], pa.string()) for at, role in enumerate(index)
    }
    rest = b"" if records.open_at is None else b"\n".join(texts[records.open_at :])
    if rest and block.endswith(b"\n"):
        rest += b"\n"
    return Block(columns, np.array(lines, dtype=np.int64)), rest


def _decoded(text: bytes, layout: Delimited) -> str | ValueError:
    try:
        return _text(text, layout)
    except ValueError as error:
        return error


def _text(line: bytes, layout: Delimited) -> str:
    """A line as text; ValueError names a byte that is none."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        if not layout.latin1:
            raise ValueError(f"byte {line[error.start]:#04x} is not UTF-8") from None
        return line.decode("latin-1")


def _column_of(text: bytes, layout: Delimited, names: tuple[str, ...]) -> str:
    """The column in which a line that cannot be split goes wrong, as well as it can be told."""
    for at, field in enumerate(text.split(layout.delimiter.encode())):
        try:
            field.decode("utf-8")
        except UnicodeDecodeError:
            return names[min(at, len(names) - 1)]
        if layout.quoted and field.count(b'"') % 2:
            return names[min(at, len(names) - 1)]
    return names[0]
