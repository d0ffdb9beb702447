"""Reading a recognised source into arrays: rows typed and checked, ids coded, titles looked up.

Knows nothing of file layouts (see `formats`) or of what happens to the rows afterwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec import progress
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
from llmrec.data.sources.formats import recognise
from llmrec.data.sources.layouts import EVENT, Columns, Layout, Reading, TableFile
from llmrec.data.sources.opening import AUTO
from llmrec.data.sources.rows import BadRows, Block, printable
from llmrec.data.sources.tables import blocks_of, kept_rows
from llmrec.data.sources.times import Clock, Fractions
from llmrec.data.sources.titles import About, item_titles
from llmrec.data.sources.values import as_text, has_text, identifiers, ratings
from llmrec.errors import DataError

_TOLD_EVENTS = 8


@dataclass(frozen=True)
class RawData:
    """What a source holds, before any filter.

    `interactions`: `position` indexes `item_ids`, not yet a Catalog; users and items are in the
    order of `id_order`. `titles`, `brands` and `genres` (I,) belong to `item_ids`; "" for none.
    `untitled_items`: items without a row in the items file; `repeated_items`: rows of the items
    file that repeat an id (the first with a title counts). Timestamps count `ticks` to a unit of
    the file, which is more than 1 where it has fractions.
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
    ticks: int = 1
    genres: npt.NDArray[np.object_] | None = None


def read_source(
    path: Path,
    format_name: str = AUTO,
    items: Path | None = None,
    columns: Columns | None = None,
    max_bad_rows: int = 0,
    reading: Reading | None = None,
) -> RawData:
    """Read a file or folder; DataError past `max_bad_rows` or where nothing usable is left."""
    layout = recognise(path, format_name, items, columns, reading)
    return read_layout(layout, BadRows(max_bad_rows))


def read_layout(layout: Layout, bad: BadRows) -> RawData:
    """Read what was recognised; DataError past the limit of `bad` or where nothing is left."""
    clock = Clock.of(layout.interactions.timestamp_format)
    interactions, item_ids, in_line_titles = _interactions(layout.interactions, bad, clock)
    if layout.items is not None:
        about = item_titles(layout, item_ids, bad)
    else:
        nothing = np.full(len(item_ids), "", dtype=object)
        untitled = int(np.count_nonzero(in_line_titles == ""))
        about = About(in_line_titles, nothing, nothing, untitled, 0)
    bad.check()
    if len(interactions) == 0:
        raise DataError(f"{layout.interactions.path} holds no interaction that can be used")
    files = (*layout.interactions.paths, *(() if layout.items is None else layout.items.paths))
    if TIMESTAMP not in layout.interactions.columns:
        bad.notice(
            f"{layout.interactions.path.name} has no times: the order of its rows is taken for "
            "the order of time"
        )
    return RawData(
        layout.format,
        files,
        interactions,
        item_ids,
        about.titles,
        about.brands,
        bad,
        about.untitled,
        about.repeated,
        clock.ticks,
        about.genres,
    )


@dataclass(frozen=True)
class GoodRows:
    """R good rows of a block, ids and titles dictionary-encoded; None where there is no column.

    `timestamp` and `fraction` are as the clock read them, not yet scaled.
    """

    user: pa.DictionaryArray
    item: pa.DictionaryArray
    timestamp: Longs
    fraction: Fractions | None
    source_row: Longs
    rating: npt.NDArray[np.float32] | None
    title: pa.DictionaryArray | None


def good_rows(file: TableFile, bad: BadRows, clock: Clock) -> Iterator[GoodRows]:
    """Yield what can be used of every block of a file of interactions, typed and checked.

    Rows are numbered as a SOURCE_ROW column has it, else by their place in the file.
    """
    behind = 0
    with progress.over("prepare: row") as told:
        for whole in blocks_of(file, bad):
            block = _of_events(whole, file.keep, bad)
            user, bad_users = identifiers(block.columns[USER_ID])
            item, bad_items = identifiers(block.columns[ITEM_ID])
            reasons = {USER_ID: bad_users, ITEM_ID: bad_items}
            rows = block.rows
            if SOURCE_ROW in file.columns:
                rows = block.columns[SOURCE_ROW].to_numpy(False)
            time, part = rows, None  # without times the order of the rows is theirs
            if TIMESTAMP in file.columns:
                time, part, reasons[TIMESTAMP] = clock.read(block.columns[TIMESTAMP])
            score = None
            if RATING in file.columns:
                score, reasons[RATING] = ratings(block.columns[RATING])
                if file.rated:
                    none = np.flatnonzero(np.isnan(score)).tolist()
                    reasons[RATING] |= dict.fromkeys(
                        none, "is missing, and data.min_rating needs it"
                    )
            keep = kept_rows(file, block, reasons, bad)
            mask = pa.array(keep)
            user = user.filter(mask)
            if TIMESTAMP in file.columns and clock.fine:
                read = (time,) if part is None else (time, part)
                clock.ties.count(
                    user, block.columns[TIMESTAMP].filter(mask), *(t[keep] for t in read)
                )
            title = None
            if TITLE in file.columns:
                title = as_text(block.columns[TITLE]).dictionary_encode().filter(mask)
            yield GoodRows(
                user,
                item.filter(mask),
                time[keep],
                None if part is None else part[keep],
                rows[keep],
                None if score is None else score[keep],
                title,
            )
            behind += len(whole.lines)
            told.at(behind)
    if file.keep:
        _tell_events(file, bad)


def _of_events(block: Block, keep: tuple[str, ...], bad: BadRows) -> Block:
    """The rows of the events that are kept; what the others hold is not looked at."""
    if not keep:
        return block
    kinds = pc.fill_null(pc.utf8_trim_whitespace(as_text(block.columns[EVENT])), "")
    for found in pc.value_counts(kinds).to_pylist():
        bad.events[found["values"]] += found["counts"]
    rows = pc.is_in(kinds, pa.array(keep, pa.string()))
    columns = {role: values.filter(rows) for role, values in block.columns.items()}
    return replace(block, columns=columns, lines=block.lines[rows.to_numpy(False)])


def _tell_events(file: TableFile, bad: BadRows) -> None:
    """What was kept and left out; DataError where no row is of an event to keep."""
    found = {True: "", False: ""}
    for kept in found:
        counts = [(n, kind) for kind, n in bad.events.most_common() if (kind in file.keep) == kept]
        found[kept] = ", ".join(f"{n} {printable(kind)}" for n, kind in counts[:_TOLD_EVENTS])
    if not found[True]:
        raise DataError(
            f"{file.path.name}: column {file.columns[EVENT]!r} has no event of data.events.keep "
            f"({', '.join(file.keep)}); it has {found[False] or 'nothing'}."
        )
    bad.notice(
        f"{file.path.name}: rows by {file.columns[EVENT]!r} kept: {found[True]}; left out: "
        f"{found[False] or 'none'}"
    )


def _interactions(
    file: TableFile, bad: BadRows, clock: Clock
) -> tuple[Interactions, npt.NDArray[np.object_], npt.NDArray[np.object_]]:
    """Interactions with coded users and items, the item ids, and titles found in the same file."""
    blocks = list(good_rows(file, bad, clock))
    user_codes, user_ids = _coded([block.user for block in blocks])
    item_codes, item_ids = _coded([block.item for block in blocks])
    scores = [block.rating for block in blocks if block.rating is not None]
    times = [clock.scaled(block.timestamp, block.fraction) for block in blocks]
    clock.tell(file.path.name, bad)
    interactions = Interactions(
        user_codes,
        item_codes,
        _joined(times, np.int64),
        _joined([block.source_row for block in blocks], np.int64),
        user_ids,
        _joined(scores, np.float32) if RATING in file.columns else None,
    )
    in_line = np.full(len(item_ids), "", dtype=object)
    if TITLE in file.columns and len(item_codes):
        column = pa.chunked_array([b.title for b in blocks if b.title is not None])
        titled = np.flatnonzero(_joined([_titled(b.title) for b in blocks], np.bool_))
        first = np.zeros(len(item_ids), dtype=np.int64)
        first[item_codes[titled[::-1]]] = titled[::-1]  # of rows of one item the last written stays
        has_one = np.zeros(len(item_ids), dtype=np.bool_)
        has_one[item_codes[titled]] = True
        texts = column.cast(pa.string()).take(pa.array(first[has_one]))
        in_line[has_one] = np.array(texts.to_pylist(), dtype=object)
    return interactions, item_ids, in_line


def _titled(titles: pa.DictionaryArray | None) -> Bools:
    """(R,) whether there is a title and more to it than white space."""
    if titles is None:
        return np.zeros(0, dtype=np.bool_)
    if not len(titles.dictionary):
        return np.zeros(len(titles), dtype=np.bool_)
    found: Bools = has_text(titles.dictionary)[titles.indices.fill_null(0).to_numpy(False)]
    found &= titles.is_valid().to_numpy(False)
    return found


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
