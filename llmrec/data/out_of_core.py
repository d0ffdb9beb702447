"""Filtering a log that is larger than memory, with DuckDB: the same rows as `filters` and `order`.

The source is read in blocks by the readers of `llmrec.data.sources`, so its formats, its bad rows
and its source rows are theirs; no name and no value of it becomes part of an SQL text. Ids are
replaced by integer codes; duplicates, sorting and joins go to disk where `memory_limit` is short;
the k-core keeps one counter and one flag for every user and item in memory, beside that limit.
Knows nothing of splits, recipes or catalogs. Needs the extra `data`.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.files import replacing
from llmrec.data.records import ITEM_ID, RATING, SOURCE_ROW, TIMESTAMP, TITLE, USER_ID, Bools, Ints
from llmrec.data.sources.layouts import PARQUET, Layout, TableFile
from llmrec.data.sources.reading import good_rows
from llmrec.data.sources.rows import BadRows
from llmrec.data.sources.times import Clock
from llmrec.data.sources.values import has_text
from llmrec.errors import DataError, LlmrecError, RecipeError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BATCH = 1 << 20  # rows that leave DuckDB at once

_BY_NUMBER = """CREATE TABLE coded AS SELECT id, CAST(row_number() OVER (
    ORDER BY CAST(id AS BIGINT), id) - 1 AS INTEGER) AS code FROM ids"""
_BY_TEXT = """CREATE TABLE coded AS SELECT id, CAST(row_number() OVER (
    ORDER BY id) - 1 AS INTEGER) AS code FROM ids"""
_RATED = """SELECT users.id AS user_id, items.id AS item_id, timestamp, source_row, rating
    FROM log JOIN users ON users.code = user_code JOIN items ON items.code = item_code
    ORDER BY user_code, timestamp, source_row"""
_UNRATED = """SELECT users.id AS user_id, items.id AS item_id, timestamp, source_row
    FROM log JOIN users ON users.code = user_code JOIN items ON items.code = item_code
    ORDER BY user_code, timestamp, source_row"""


def filtered(
    layout: Layout,
    folder: Path,
    bad: BadRows,
    *,
    min_rating: float | None = None,
    k_core: int = 1,
    memory_limit: str = "4GB",
    scratch: Path | None = None,
) -> tuple[Layout, dict[str, int]]:
    """The layout with its interactions filtered, and how many rows each filter dropped.

    Writes `folder`/interactions.parquet: user_id, item_id, timestamp, source_row and, if any,
    rating; duplicates out (the least source row stays), then ratings below `min_rating`, then what
    is outside the k-core; by user (as `id_order` has them), timestamp, source row. Titles that
    stand beside the interactions go to items.parquet, each item's first that is one.
    `memory_limit`, as "4GB", is DuckDB's; a folder below `scratch` (the system's, where None) holds
    its tables and goes again. Raises DataError past the limit of `bad`, for a missing column, and
    where nothing is left; RecipeError for a limit that is none; LlmrecError without DuckDB and
    where memory or disk run out.
    """
    file = layout.interactions
    if min_rating is not None and RATING not in file.columns:
        raise DataError(
            f"min_rating is {min_rating}, but {file.path} has no ratings; name their "
            "column or drop the limit."
        )
    duckdb = _duckdb()
    with tempfile.TemporaryDirectory(prefix="llmrec-", dir=scratch) as temporary:
        log = _connected(Path(temporary), memory_limit)
        try:
            clock = Clock.of(file.timestamp_format)
            counts = _read(log, file, bad, clock)
            clock.tell(file.path.name, bad)
            _coded(log, clock.ticks)
            counts |= _filter(log, min_rating, k_core)
            if not _count(log):
                raise DataError(
                    f"no interaction of {file.path} is left after the filters "
                    f"({counts}); lower the k-core or the least rating."
                )
            return replace(layout, **_written(log, layout, folder)), counts
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            reason = str(error).partition("\n")[0]
            raise LlmrecError(
                f"DuckDB gave up filtering {file.path} with {memory_limit} of memory "
                f"and tables in {temporary}: {reason}. Give more memory, or a "
                "scratch folder on a larger disk."
            ) from error
        finally:
            log.close()


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise LlmrecError(
            "filtering out of memory needs DuckDB, which is not installed; run: "
            "pip install 'llmrec[data]'"
        ) from None
    return duckdb


def _connected(temporary: Path, memory_limit: str) -> "DuckDBPyConnection":
    duckdb: Any = _duckdb()
    settings = {
        "memory_limit": memory_limit,
        "temp_directory": str(temporary / "spilled"),
        "preserve_insertion_order": "false",
        "autoinstall_known_extensions": "false",
    }
    try:
        log: DuckDBPyConnection = duckdb.connect(temporary / "log.duckdb", config=settings)
    except (duckdb.ParserException, duckdb.InvalidInputException) as error:
        raise RecipeError(
            f"the memory limit {memory_limit!r} is none that DuckDB knows "
            f"({error}); write it as 4GB."
        ) from None
    return log


def _read(log: "DuckDBPyConnection", file: TableFile, bad: BadRows, clock: Clock) -> dict[str, int]:
    """Have the good rows in the table `raw` and the titles in `titles`."""
    log.execute("BEGIN")
    log.execute(
        "CREATE TABLE raw (user_id VARCHAR, item_id VARCHAR, timestamp BIGINT, "
        "fraction INTEGER, source_row BIGINT, rating FLOAT)"
    )
    log.execute("CREATE TABLE titles (item_id VARCHAR, source_row BIGINT, title VARCHAR)")
    rows = 0
    for block in good_rows(file, bad, clock):
        columns = {
            USER_ID: block.user.cast(pa.string()),
            ITEM_ID: block.item.cast(pa.string()),
            TIMESTAMP: block.timestamp,
            SOURCE_ROW: block.source_row,
        }
        if block.fraction is not None:
            columns["fraction"] = block.fraction
        if block.rating is not None:
            columns[RATING] = block.rating
        _insert(log, "INSERT INTO raw BY NAME SELECT * FROM block", pa.table(columns))
        rows += len(block.timestamp)
        if block.title is not None:
            titled = has_text(block.title)
            rows_in_order = np.concatenate([np.flatnonzero(titled), np.flatnonzero(~titled)])
            codes = block.item.indices.to_numpy(False)[rows_in_order]
            first = rows_in_order[np.unique(codes, return_index=True)[1]]
            texts = pc.if_else(pa.array(titled), block.title.cast(pa.string()), "")
            titles = pa.table(
                {ITEM_ID: columns[ITEM_ID], SOURCE_ROW: block.source_row, TITLE: texts}
            ).take(first)
            _insert(log, "INSERT INTO titles BY NAME SELECT * FROM block", titles)
    log.execute("COMMIT")
    bad.check()
    return {"rows_read": rows + bad.count, "bad_rows": bad.count}


def _insert(log: "DuckDBPyConnection", statement: str, rows: pa.Table) -> None:
    log.register("block", rows)
    log.execute(statement)
    log.unregister("block")


def _coded(log: "DuckDBPyConnection", ticks: int) -> None:
    """Turn `raw` into `log`: ids as codes in the order of `id_order`, kept in `users`, `items`.

    Times are multiplied by `ticks`, as `Clock.scaled` does it.
    """
    for distinct, named in (
        (
            "CREATE TABLE ids AS SELECT DISTINCT user_id AS id FROM raw",
            "ALTER TABLE coded RENAME TO users",
        ),
        (
            "CREATE TABLE ids AS SELECT DISTINCT item_id AS id FROM raw",
            "ALTER TABLE coded RENAME TO items",
        ),
    ):
        log.execute(distinct)
        numbers = _one(log, "SELECT bool_and(regexp_full_match(id, '-?[0-9]{1,18}')) FROM ids")
        log.execute(_BY_NUMBER if numbers else _BY_TEXT)
        log.execute(named)
        log.execute("DROP TABLE ids")
    log.execute(
        "CREATE TABLE log AS SELECT users.code AS user_code, items.code AS item_code, "
        "CAST(timestamp * $ticks + coalesce(fraction, 0) // $billionths AS BIGINT) AS timestamp, "
        "source_row, rating FROM raw JOIN users ON users.id = raw.user_id "
        "JOIN items ON items.id = raw.item_id",
        {"ticks": ticks, "billionths": 10**9 // ticks},
    )
    log.execute("DROP TABLE raw")


def _filter(log: "DuckDBPyConnection", min_rating: float | None, k: int) -> dict[str, int]:
    """Leave in `log` what passes; how many rows each filter dropped."""
    left = _count(log)
    counts = {}
    _replace(
        log,
        "SELECT user_code, item_code, timestamp, min(source_row) AS source_row, "
        "arg_min(rating, source_row) AS rating FROM log "
        "GROUP BY user_code, item_code, timestamp",
    )
    counts["duplicates_dropped"], left = left - _count(log), _count(log)
    if min_rating is not None:
        _replace(log, "SELECT * FROM log WHERE rating >= CAST($1 AS FLOAT)", [min_rating])
        counts["below_min_rating"], left = left - _count(log), _count(log)
    if k > 1:
        _k_core(log, k)
        counts["outside_k_core"] = left - _count(log)
    return counts


def _k_core(log: "DuckDBPyConnection", k: int) -> None:
    """Leave the rows of the k-core: count, drop the rare, and again until none is rare."""
    sizes = log.sql("SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM items)")
    gone = [np.zeros(size, dtype=np.bool_) for size in sizes.fetchall()[0]]
    stored = _count(log)
    while True:
        counts = _counted(log, gone)
        rare = [(count > 0) & (count < k) for count in counts]
        if not any(some.any() for some in rare):
            break
        for flags, some in zip(gone, rare, strict=True):
            flags |= some
        if 2 * counts[0].sum() < stored:  # fewer rows to look at from now on
            _drop(log, gone)
            stored = _count(log)
    _drop(log, gone)


def _counted(log: "DuckDBPyConnection", gone: list[Bools]) -> list[Ints]:
    """Rows of every user and of every item, without the rows of those that are gone."""
    counts = [np.zeros(len(flags), dtype=np.int32) for flags in gone]
    one = np.int32(1)  # a plain 1 sends NumPy down a path twenty times as slow
    rows: Any = log.sql("SELECT user_code, item_code FROM log").to_arrow_reader(_BATCH)
    for batch in rows:
        codes = [column.to_numpy() for column in batch.columns]
        left = ~(gone[0][codes[0]] | gone[1][codes[1]])
        for count, column in zip(counts, codes, strict=True):
            np.add.at(count, column[left], one)
    return counts


def _drop(log: "DuckDBPyConnection", gone: list[Bools]) -> None:
    """Take the rows of users and items that are gone out of `log`."""
    for name, flags in zip(("gone_users", "gone_items"), gone, strict=True):
        log.register(name, pa.table({"code": np.flatnonzero(flags).astype(np.int32)}))
    _replace(
        log,
        "SELECT * FROM log ANTI JOIN gone_users ON user_code = gone_users.code "
        "ANTI JOIN gone_items ON item_code = gone_items.code",
    )


def _written(log: "DuckDBPyConnection", layout: Layout, folder: Path) -> dict[str, Any]:
    """Write the Parquet files; the fields of the Layout that they change."""
    rated = RATING in layout.interactions.columns
    columns = [USER_ID, ITEM_ID, TIMESTAMP, SOURCE_ROW, *([RATING] if rated else [])]
    rows = log.sql(_RATED if rated else _UNRATED)
    path = folder / "interactions.parquet"
    with replacing(path) as temporary:
        rows.write_parquet(str(temporary), compression="zstd")
    changed: dict[str, Any] = {
        "interactions": TableFile(path, PARQUET, {name: name for name in columns})
    }
    if layout.items is None and TITLE in layout.interactions.columns:
        titles = log.sql(
            "SELECT titles.item_id, "
            "coalesce(arg_min(title, titles.source_row) FILTER (WHERE title <> ''), '') AS title "
            "FROM titles SEMI JOIN (SELECT id FROM log JOIN items ON code = item_code) AS kept "
            "ON kept.id = titles.item_id GROUP BY titles.item_id ORDER BY titles.item_id"
        )
        path = folder / "items.parquet"
        with replacing(path) as temporary:
            titles.write_parquet(str(temporary), compression="zstd")
        changed["items"] = TableFile(path, PARQUET, {ITEM_ID: ITEM_ID, TITLE: TITLE})
    return changed


def _replace(log: "DuckDBPyConnection", query: str, parameters: list[float] | None = None) -> None:
    """Make `log` what the query on it gives."""
    log.execute(f"CREATE TABLE fewer AS {query}", parameters)
    log.execute("DROP TABLE log")
    log.execute("ALTER TABLE fewer RENAME TO log")


def _count(log: "DuckDBPyConnection") -> int:
    return int(_one(log, "SELECT count(*) FROM log"))


def _one(log: "DuckDBPyConnection", query: str) -> Any:
    return log.sql(query).fetchall()[0][0]
