"""Parquet as Blocks, one per row group. A row group that cannot be read counts as bad rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.sources.rows import BadRows, Block, require_one_of_each
from llmrec.errors import DataError


def parquet_columns(path: Path) -> tuple[str, ...]:
    """The file's column names."""
    return tuple(_opened(path).schema_arrow.names)


def parquet_blocks(path: Path, columns: Mapping[str, str], bad: BadRows) -> Iterator[Block]:
    """Yield the wanted columns (role -> column name) of every row group."""
    file = _opened(path)
    require_one_of_each(path, file.schema_arrow.names, columns)
    row = 1
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        block: dict[str, pa.Array] = {}
        for role, column in columns.items():
            try:
                values = file.read_row_group(group, columns=[column], use_threads=False)[column]
                if len(values) != rows:
                    raise pa.ArrowInvalid(f"{len(values)} values for {rows} rows")
                values.validate(full=True)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                why = str(error).partition("\n")[0]
                reason = f"rows {row} to {row + rows - 1} cannot be read: {why}"
                bad.add(path.name, row, column, reason, rows)
                break
            block[role] = values.combine_chunks()
        else:
            yield Block(block, np.arange(row, row + rows, dtype=np.int64))
        row += rows


def _opened(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        groups = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
        if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
            raise pa.ArrowInvalid(f"row groups of {groups} rows in {file.metadata.num_rows} rows")
        file.schema_arrow.names  # noqa: B018  names are decoded when they are asked for
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be read as Parquet: {reason}. Write it again.") from error
    return file
