"""Any recognised file as Blocks, whatever it is laid out as, and the account of its bad rows.

Knows nothing of what becomes of the rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmrec.data.records import TITLE, Bools
from llmrec.data.sources.delimited import Delimited, delimited_blocks
from llmrec.data.sources.grouped import mind_blocks, netflix_blocks
from llmrec.data.sources.jsonl import jsonl_blocks
from llmrec.data.sources.layouts import (
    BRAND,
    EVENT,
    GENRES,
    JSONL,
    MIND,
    NETFLIX,
    YEAR,
    TableFile,
    available,
    missing_columns,
)
from llmrec.data.sources.parquet import parquet_blocks
from llmrec.data.sources.rows import BadRows, Block
from llmrec.data.sources.values import Reasons, is_readable
from llmrec.errors import DataError

_OPTIONAL = frozenset({TITLE, YEAR, BRAND, GENRES, EVENT})


def blocks_of(file: TableFile, bad: BadRows) -> Iterator[Block]:
    """Yield the columns of a file's roles, block by block; DataError where one is missing."""
    if file.layout not in (JSONL, MIND):
        names = available(file)
        missing = [f"{role} ({n!r})" for role, n in file.columns.items() if n not in names]
        if missing:
            raise missing_columns(file.path, names, missing)
    before = 0
    for path in file.paths:
        last = before
        for block in _blocks(path, file, bad):
            header = file.layout.header_lines if isinstance(file.layout, Delimited) else 0
            block = replace(block, first=1 + header - before, file=path.name)
            if len(block.lines):
                last = int(block.rows[-1]) + 1
            yield block
        before = last


def _blocks(path: Path, file: TableFile, bad: BadRows) -> Iterator[Block]:
    if isinstance(file.layout, Delimited):
        return delimited_blocks(path, file.layout, file.columns, bad, file.encoding)
    if file.layout == JSONL:
        return jsonl_blocks(path, file.columns, _OPTIONAL, bad, file.encoding)
    if file.layout == NETFLIX:
        return netflix_blocks(path, bad)
    if file.layout == MIND:
        return mind_blocks(path, bad)
    return _readable(path, file, parquet_blocks(path, file.columns, bad))


def _readable(path: Path, file: TableFile, blocks: Iterator[Block]) -> Iterator[Block]:
    for block in blocks:
        for role, values in block.columns.items():
            if not is_readable(values.type):
                raise DataError(
                    f"{path}: column {file.columns[role]} is of type "
                    f"{values.type}, which holds no {role}; map another in data.columns, or null"
                )
        yield block


def kept_rows(file: TableFile, block: Block, reasons: dict[str, Reasons], bad: BadRows) -> Bools:
    """Note each bad row once, by its first bad column; (R,) the rows that are good."""
    keep = np.ones(len(block.lines), dtype=np.bool_)
    found: dict[int, tuple[str, str]] = {}
    for role in file.columns:
        for row, reason in reasons.get(role, {}).items():
            found.setdefault(row, (file.columns[role], reason))
    for row in sorted(found):
        bad.add(block.file, int(block.lines[row]), *found[row])
        keep[row] = False
    return keep
