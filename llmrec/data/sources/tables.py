"""Any recognised file as Blocks, whatever it is laid out as, and the account of its bad rows.

Knows nothing of what becomes of the rows.
"""

from collections.abc import Iterator

import numpy as np

from llmrec.data.records import TITLE, Bools
from llmrec.data.sources.delimited import Delimited, delimited_blocks
from llmrec.data.sources.formats import BRAND, JSONL, YEAR, TableFile, available
from llmrec.data.sources.jsonl import jsonl_blocks
from llmrec.data.sources.parquet import parquet_blocks
from llmrec.data.sources.rows import BadRows, Block
from llmrec.data.sources.values import Reasons, is_readable
from llmrec.errors import DataError

_OPTIONAL = frozenset({TITLE, YEAR, BRAND})


def blocks_of(file: TableFile, bad: BadRows) -> Iterator[Block]:
    """Yield the columns of a file's roles, block by block; DataError where one is missing."""
    if file.layout != JSONL:
        names = available(file)
        missing = [name for name in file.columns.values() if name not in names]
        if missing:
            raise DataError(
                f"{file.path} has no column {', '.join(missing)}; it has "
                f"{', '.join(names)}. Map them in data.columns."
            )
    if isinstance(file.layout, Delimited):
        return delimited_blocks(file.path, file.layout, file.columns, bad)
    if file.layout == JSONL:
        return jsonl_blocks(file.path, file.columns, _OPTIONAL, bad)
    return _readable(file, parquet_blocks(file.path, file.columns, bad))


def _readable(file: TableFile, blocks: Iterator[Block]) -> Iterator[Block]:
    for block in blocks:
        for role, values in block.columns.items():
            if not is_readable(values.type):
                raise DataError(
                    f"{file.path}: column {file.columns[role]} is of type "
                    f"{values.type}, which holds no {role}"
                )
        yield block


def header_lines(file: TableFile) -> int:
    """Lines of the file before its first record."""
    return file.layout.header_lines if isinstance(file.layout, Delimited) else 0


def kept_rows(file: TableFile, block: Block, reasons: dict[str, Reasons], bad: BadRows) -> Bools:
    """Note each bad row once, by its first bad column; (R,) the rows that are good."""
    keep = np.ones(len(block.lines), dtype=np.bool_)
    found: dict[int, tuple[str, str]] = {}
    for role in file.columns:
        for row, reason in reasons.get(role, {}).items():
            found.setdefault(row, (file.columns[role], reason))
    for row in sorted(found):
        bad.add(file.path.name, int(block.lines[row]), *found[row])
        keep[row] = False
    return keep
