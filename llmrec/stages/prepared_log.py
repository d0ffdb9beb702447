"""The whole log that a recipe's `data` names, filtered, and its Catalog, before any split.

Reads in memory or out of core. Knows no split, no text and no model.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.catalog import Catalog, build_catalog
from llmrec.data.files import sha256_of
from llmrec.data.filters import compacted, first_of_duplicates, k_core
from llmrec.data.records import Interactions
from llmrec.data.sources import (
    BadRows,
    Columns,
    Events,
    ItemColumns,
    Layout,
    RawData,
    Reading,
    is_pattern,
    read_layout,
    recognise,
)
from llmrec.errors import DataError

if TYPE_CHECKING:
    from llmrec.recipe.data import Data


def source_path(source: str, offline: bool) -> Path:
    """A path on disk as it is, else the folder of the fetched data set of that name."""
    from llmrec.fetch.cache import cache_root, data_path
    from llmrec.fetch.hub_data import as_parquet, is_hub_data

    if is_hub_data(source):
        return as_parquet(source, cache_root(), offline)
    path = Path(source).expanduser()
    if path.exists() or is_pattern(path):
        return path
    fetched = data_path(source, offline)
    if fetched is None:
        raise DataError(
            f"data.source {source!r} is neither a file or folder here nor the name of "
            "a data set that `llmrec fetch data` knows."
        )
    return fetched


def recognised(path: Path, data: "Data") -> Layout:
    names, items = data.columns, data.items_columns
    return recognise(
        path,
        data.format,
        None if data.items is None else Path(data.items),
        Columns(names.user_id, names.item_id, names.timestamp, names.rating, names.title),
        Reading(
            data.delimiter,
            data.encoding,
            data.timestamp_format,
            ItemColumns(items.item_id, items.title, items.year, items.brand),
            rated=data.min_rating is not None,
            events=None
            if data.events is None
            else Events(data.events.column, tuple(data.events.keep)),
        ),
    )


def source_files(layout: Layout) -> dict[str, Path]:
    parts = {"interactions": layout.interactions, "items": layout.items}
    return {
        name if number == 0 else f"{name} {number + 1}": path
        for name, table in parts.items()
        if table is not None
        for number, path in enumerate(table.paths)
    }


def fingerprint(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def read(
    layout: Layout, data: "Data", scratch: Path | None = None
) -> tuple[RawData, Interactions, dict[str, int]]:
    """The raw data, its rows that pass the filters, and how many each filter dropped.

    Out of core the filters come first, and only what they leave is read; tables go below `scratch`.
    """
    bad = BadRows(data.max_bad_rows)
    if not data.out_of_core:
        raw = read_layout(layout, bad)
        return raw, *passing(raw, data)
    from llmrec.data.out_of_core import filtered

    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".out-of-core-", dir=scratch) as temporary:
        fewer, counts = filtered(
            layout,
            Path(temporary),
            bad,
            min_rating=data.min_rating,
            k_core=data.k_core,
            memory_limit=data.memory_limit,
            scratch=Path(temporary),
        )
        found_before = bad.count
        raw = read_layout(fewer, bad)
    of_items = bad.count - found_before
    counts |= {"rows_read": counts["rows_read"] + of_items, "bad_rows": bad.count}
    return raw, raw.interactions, counts


def passing(raw: RawData, data: "Data") -> tuple[Interactions, dict[str, int]]:
    """Rows that pass the filters, in the order stated in the rules, and how many each dropped."""
    rows = raw.interactions
    counts = {"rows_read": len(rows) + raw.bad_rows.count, "bad_rows": raw.bad_rows.count}
    fewer = rows.take(first_of_duplicates(rows))
    counts["duplicates_dropped"] = len(rows) - len(fewer)
    rows = fewer
    if data.min_rating is not None:
        if rows.rating is None:
            raise DataError(
                f"data.min_rating is {data.min_rating}, but the data has no ratings; name their "
                "column in data.columns.rating or drop data.min_rating."
            )
        fewer = rows.take(rows.rating >= np.float32(data.min_rating))
        counts["below_min_rating"] = len(rows) - len(fewer)
        rows = fewer
    if data.k_core > 1:
        fewer = rows.take(k_core(rows, data.k_core))
        counts["outside_k_core"] = len(rows) - len(fewer)
        rows = fewer
    if len(rows) == 0:
        raise DataError(
            f"no interaction is left after the filters ({counts}); "
            "lower data.k_core or data.min_rating."
        )
    return rows, counts


def catalogued(rows: Interactions, raw: RawData, data: "Data") -> tuple[Interactions, Catalog]:
    """Users and items that are left, renumbered without gaps, and the Catalog of the items."""
    position, items = compacted(rows.position, len(raw.item_ids))
    user, users = compacted(rows.user, len(rows.user_ids))
    catalog = build_catalog(
        raw.item_ids[items].tolist(),
        raw.titles[items].tolist(),
        raw.brands[items].tolist(),
        year_in_title=data.year_in_title,
        max_title_chars=data.max_title_chars,
        genres=None if raw.genres is None else raw.genres[items].tolist(),
    )
    return Interactions(
        user, position, rows.timestamp, rows.source_row, rows.user_ids[users], rows.rating
    ), catalog
