"""Delimited text (CSV, TSV, `a::b`, RecBole's atomic files) as Blocks of strings.

Arrow parses a block of lines at once; a block with anything odd in it is parsed again line by
line, so that good rows stay and each bad one is named. Knows nothing of what the columns mean.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from llmrec.data.sources.rows import BadRows, Block, line_blocks, printable
from llmrec.errors import DataError

_BOM = b"\xef\xbb\xbf"
_UNIT_SEPARATOR = b"\x1f"  # stands in for a delimiter of two characters, which Arrow cannot take


@dataclass(frozen=True)
class Delimited:
    """How a file is laid out. `names` are given where the file has no header line.

    `typed_header`: names are followed by ":token" and the like (RecBole). `latin1`: a block that
    is not UTF-8 is Latin-1 (GroupLens' older files).
    """

    delimiter: str
    quoted: bool = False
    names: tuple[str, ...] | None = None
    typed_header: bool = False
    latin1: bool = False

    @property
    def header_lines(self) -> int:
        """Lines before the first record."""
        return 0 if self.names else 1


def column_names(path: Path, layout: Delimited) -> tuple[str, ...]:
    """The file's column names; DataError where the file is empty or its first line unreadable."""
    if layout.names:
        return layout.names
    for block, _ in line_blocks(path):
        head = block.partition(b"\n")[0].removeprefix(_BOM).rstrip(b"\r")
        try:
            fields = _fields(head, layout)
        except ValueError as error:
            raise DataError(f"{path}:1: the header cannot be read: {error}") from None
        names = [name.strip() for name in fields]
        return tuple(name.partition(":")[0] if layout.typed_header else name for name in names)
    raise DataError(f"{path} is empty")


def delimited_blocks(
    path: Path, layout: Delimited, columns: Mapping[str, str], bad: BadRows
) -> Iterator[Block]:
    """Yield the wanted columns (role -> column name) of every block of lines, as strings."""
    names = column_names(path, layout)
    index = {role: names.index(column) for role, column in columns.items()}
    for block, line in line_blocks(path):
        if line == 1:
            block = block.removeprefix(_BOM)
            if layout.header_lines:
                block, line = block.partition(b"\n")[2], 2
                if not block:
                    continue
        parsed = _at_once(block, layout, len(names), index)
        if parsed is not None:
            lines = np.arange(line, line + len(next(iter(parsed.values()))))
            yield Block(parsed, lines)
        else:
            yield _line_by_line(path.name, block, line, layout, names, index, bad)


def _at_once(
    block: bytes, layout: Delimited, width: int, index: Mapping[str, int]
) -> dict[str, pa.Array] | None:
    """Columns by role, or None where the block has to be looked at line by line."""
    try:
        block.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if block.count(b"\r") != block.count(b"\r\n"):
        return None
    delimiter = layout.delimiter
    if len(delimiter) > 1:
        if _UNIT_SEPARATOR in block:
            return None
        block = block.replace(delimiter.encode(), _UNIT_SEPARATOR)
        delimiter = _UNIT_SEPARATOR.decode()
    names = [str(column) for column in range(width)]
    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(block),
            arrow_csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
            arrow_csv.ParseOptions(delimiter=delimiter, quote_char='"' if layout.quoted else False),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=[names[at] for at in index.values()],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != block.count(b"\n") + (not block.endswith(b"\n")):
        return None  # an empty line, or a quote that runs over the end of its line
    table = table.combine_chunks()
    return {role: table[names[at]].combine_chunks() for role, at in index.items()}


def _line_by_line(
    file: str,
    block: bytes,
    line: int,
    layout: Delimited,
    names: tuple[str, ...],
    index: Mapping[str, int],
    bad: BadRows,
) -> Block:
    rows: list[list[str]] = []
    lines: list[int] = []
    for number, text in enumerate(block.removesuffix(b"\n").split(b"\n"), start=line):
        text = text.removesuffix(b"\r")
        if not text:
            continue
        try:
            fields = _fields(text, layout)
        except ValueError as error:
            bad.add(file, number, _column_of(text, layout, names), str(error))
            continue
        if len(fields) != len(names):
            column = names[len(fields)] if len(fields) < len(names) else str(len(names) + 1)
            bad.add(file, number, column, f"{len(names)} columns expected, {len(fields)} found")
            continue
        rows.append([fields[at] for at in index.values()])
        lines.append(number)
    columns = {
        role: pa.array([row[at] for row in rows], pa.string()) for at, role in enumerate(index)
    }
    return Block(columns, np.array(lines, dtype=np.int64))


def _fields(text: bytes, layout: Delimited) -> list[str]:
    """The fields of one line; ValueError says why there are none."""
    try:
        line = text.decode("utf-8")
    except UnicodeDecodeError as error:
        if not layout.latin1:
            raise ValueError(f"byte {text[error.start]:#04x} is not UTF-8") from None
        line = text.decode("latin-1")
    if not layout.quoted or '"' not in line:
        return line.split(layout.delimiter)
    try:
        return next(csv.reader([line], delimiter=layout.delimiter, strict=True))
    except csv.Error as error:
        if "end of data" in str(error):
            raise ValueError("a quote is opened and not closed on this line") from None
        raise ValueError(f"quotes are not balanced in {printable(line)}") from None


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
