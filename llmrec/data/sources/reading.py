"""Reading a recognised source into arrays: rows typed and checked, ids coded, titles looked up.

Knows nothing of file layouts (see `formats`) or of what happens to the rows afterwards.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.catalog import id_order
from llmrec.data.records import (
    ITEM_ID,
    RATING,
    SOURCE_ROW,
    TIMESTAMP,
    TITLE,
    USER_ID,
    Bools,
    Interactions,
    Ints,
    Longs,
)
from llmrec.data.sources.delimited import Delimited, delimited_blocks
from llmrec.data.sources.formats import (
    AUTO,
    BRAND,
    JSONL,
    YEAR,
    Columns,
    Layout,
    TableFile,
    available,
    recognise,
)
from llmrec.data.sources.jsonl import jsonl_blocks
from llmrec.data.sources.parquet import parquet_blocks
from llmrec.data.sources.rows import BadRows, Block
from llmrec.data.sources.values import (
    Reasons,
    as_text,
    identifiers,
    is_readable,
    ratings,
    timestamps,
)
from llmrec.errors import DataError

_OPTIONAL = frozenset({TITLE, YEAR, BRAND})
_RELEASE = re.compile(r"(?:1[89]|20)\d\d(?:\.0+)?")
_VIDEO_MARK = re.compile(r"(\((?:1[89]|20)\d\d\)) \((?:V|TV)\)\s*$")  # IMDb's, behind the year


@dataclass(frozen=True)
class RawData:
    """What a source holds, before any filter.

    `interactions`: `position` indexes `item_ids`, not yet a Catalog; users and items are in the
    order of `id_order`. `titles` and `brands` (I,) belong to `item_ids`; "" where there is none.
    `untitled_items`: items without a row in the items file; `repeated_items`: rows of the items
    file that repeat an id (the first counts).
    """

    format: str
    files: tuple[Path, ...]
    interactions: Interactions
    item_ids: npt.NDArray[np.object_]
    titles: npt.NDArray[np.object_]
    brands: npt.NDArray[np.object_]
    bad_rows: BadRows
    untitled_items: int
    repeated_items: int


def read_source(
    path: Path,
    format_name: str = AUTO,
    items: Path | None = None,
    columns: Columns | None = None,
    max_bad_rows: int = 0,
) -> RawData:
    """Read a file or folder; DataError past `max_bad_rows` or where nothing usable is left."""
    return read_layout(recognise(path, format_name, items, columns), BadRows(max_bad_rows))


def read_layout(layout: Layout, bad: BadRows) -> RawData:
    """Read what was recognised; DataError past the limit of `bad` or where nothing is left."""
    interactions, item_ids, in_line_titles = _interactions(layout.interactions, bad)
    if layout.items is not None:
        titles, brands, untitled, repeated = _item_titles(layout, item_ids, bad)
    else:
        titles, brands = in_line_titles, np.full(len(item_ids), "", dtype=object)
        untitled, repeated = int(np.count_nonzero(titles == "")), 0
    bad.check()
    if len(interactions) == 0:
        raise DataError(f"{layout.interactions.path} holds no interaction that can be used")
    files = (layout.interactions.path,) + (() if layout.items is None else (layout.items.path,))
    return RawData(
        layout.format, files, interactions, item_ids, titles, brands, bad, untitled, repeated
    )


def _blocks(file: TableFile, bad: BadRows) -> Iterator[Block]:
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


def _keep(file: TableFile, block: Block, reasons: dict[str, Reasons], bad: BadRows) -> Bools:
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


@dataclass(frozen=True)
class GoodRows:
    """R good rows of a block, ids and titles dictionary-encoded; None where there is no column."""

    user: pa.DictionaryArray
    item: pa.DictionaryArray
    timestamp: Longs
    source_row: Longs
    rating: npt.NDArray[np.float32] | None
    title: pa.DictionaryArray | None


def good_rows(file: TableFile, bad: BadRows) -> Iterator[GoodRows]:
    """Yield what can be used of every block of a file of interactions, typed and checked.

    Rows are numbered as a SOURCE_ROW column has it, else by their place in the file.
    """
    dates: bool | None = None
    header = file.layout.header_lines if isinstance(file.layout, Delimited) else 0
    for block in _blocks(file, bad):
        user, bad_users = identifiers(block.columns[USER_ID])
        item, bad_items = identifiers(block.columns[ITEM_ID])
        time, bad_times, dates = timestamps(block.columns[TIMESTAMP], dates)
        reasons = {USER_ID: bad_users, ITEM_ID: bad_items, TIMESTAMP: bad_times}
        score = None
        if RATING in file.columns:
            score, reasons[RATING] = ratings(block.columns[RATING])
        rows = block.lines - 1 - header
        if SOURCE_ROW in file.columns:
            rows = block.columns[SOURCE_ROW].to_numpy(False)
        keep = _keep(file, block, reasons, bad)
        mask = pa.array(keep)
        title = None
        if TITLE in file.columns:
            title = as_text(block.columns[TITLE]).dictionary_encode().filter(mask)
        yield GoodRows(
            user.filter(mask),
            item.filter(mask),
            time[keep],
            rows[keep],
            None if score is None else score[keep],
            title,
        )


def _interactions(
    file: TableFile, bad: BadRows
) -> tuple[Interactions, npt.NDArray[np.object_], npt.NDArray[np.object_]]:
    """Interactions with coded users and items, the item ids, and titles found in the same file."""
    blocks = list(good_rows(file, bad))
    user_codes, user_ids = _coded([block.user for block in blocks])
    item_codes, item_ids = _coded([block.item for block in blocks])
    scores = [block.rating for block in blocks if block.rating is not None]
    titles = [block.title for block in blocks if block.title is not None]
    interactions = Interactions(
        user_codes,
        item_codes,
        _joined([block.timestamp for block in blocks], np.int64),
        _joined([block.source_row for block in blocks], np.int64),
        user_ids,
        _joined(scores, np.float32) if RATING in file.columns else None,
    )
    in_line = np.full(len(item_ids), "", dtype=object)
    if titles and len(item_codes):
        _, first = np.unique(item_codes, return_index=True)
        column = pa.chunked_array(titles).cast(pa.string()).fill_null("")
        in_line[:] = column.take(pa.array(first)).to_pylist()
    return interactions, item_ids, in_line


def _joined(parts: list[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _coded(parts: list[pa.DictionaryArray]) -> tuple[Ints, npt.NDArray[np.object_]]:
    """(R,) codes and the ids they index, in `id_order`, ids of bad rows left out."""
    if not parts:
        return np.zeros(0, np.int32), np.zeros(0, dtype=object)
    unified = pa.chunked_array(parts).unify_dictionaries().combine_chunks()
    ids = np.array(unified.dictionary.to_pylist(), dtype=object)
    codes = unified.indices.to_numpy(False)
    used = np.flatnonzero(np.bincount(codes, minlength=len(ids)))
    in_order = used[id_order(ids[used])]
    rank = np.zeros(len(ids), dtype=np.int32)
    rank[in_order] = np.arange(len(in_order), dtype=np.int32)
    return rank[codes], ids[in_order]


def _item_titles(
    layout: Layout, item_ids: npt.NDArray[np.object_], bad: BadRows
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.object_], int, int]:
    """(I,) titles and brands of the items, how many have no row, how many rows repeat an id."""
    file = layout.items
    assert file is not None  # noqa: S101  the caller has looked
    titles = np.full(len(item_ids), "", dtype=object)
    brands = titles.copy()
    known = np.zeros(len(item_ids), dtype=np.bool_)
    wanted = pa.array(item_ids, pa.string())
    repeated = 0
    for block in _blocks(file, bad):
        ids, bad_ids = identifiers(block.columns[ITEM_ID])
        keep = _keep(file, block, {ITEM_ID: bad_ids}, bad)
        position = pc.index_in(ids.cast(pa.string()), wanted).fill_null(-1).to_numpy(False)
        rows = np.flatnonzero(keep & (position >= 0))
        _, first = np.unique(position[rows], return_index=True)
        fresh = rows[first]
        fresh = fresh[~known[position[fresh]]]
        repeated += len(rows) - len(fresh)
        known[position[fresh]] = True
        chosen = pa.array(fresh)
        texts = {
            role: as_text(block.columns[role]).take(chosen).fill_null("").to_pylist()
            for role in (TITLE, YEAR, BRAND)
            if role in file.columns
        }
        found = texts[TITLE]
        if YEAR in texts:
            found = [_with_year(*pair) for pair in zip(found, texts[YEAR], strict=True)]
        if layout.format in ("movielens", "recbole"):
            found = [_VIDEO_MARK.sub(r"\1", title) for title in found]
        titles[position[fresh]] = found
        if BRAND in texts:
            brands[position[fresh]] = texts[BRAND]
    return titles, brands, int(np.count_nonzero(~known)), repeated


def _with_year(title: str, year: str) -> str:
    """Title and release year as GroupLens writes them, "Toy Story (1995)"."""
    if not _RELEASE.fullmatch(year) or title.rstrip().endswith(f"({year[:4]})"):
        return title
    return f"{title} ({year[:4]})"
