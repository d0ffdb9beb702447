"""Filtering with DuckDB gives the rows of the array path: every format, id, rating and bad row."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest

from llmrec.data.filters import first_of_duplicates, k_core
from llmrec.data.records import Interactions
from llmrec.data.sources import BadRows, Columns, RawData, read_source, recognise
from llmrec.data.splits import order
from llmrec.errors import DataError, LlmrecError, RecipeError

pytest.importorskip("duckdb")
from llmrec.data import out_of_core

# Names that would end a literal or an identifier, if they ever stood in one.
USER, ITEM, TIME, RATING = 'us"er', "it'em; DROP TABLE log; --", "when?", "$1"
ODD = Columns(USER, ITEM, TIME, RATING, None)
ROWS = 3000


def table_of(seed: int, rated: bool = True) -> pa.Table:
    """A log with repeated rows and equal times, its ids in the style of the seed."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 120, ROWS), rng.zipf(1.3, ROWS) % 90
    when, score = rng.integers(0, 40, ROWS) - 5, rng.integers(1, 11, ROWS) / 2
    again, first = rng.integers(0, ROWS, (2, 300))  # the score of a repeated row may be another
    for column in (user, item, when):
        column[again] = column[first]
    named = {0: "{}", 1: "u{}", 2: "é'{}\"", 3: "{:03d}"}[seed % 4]
    columns = {USER: [named.format(u) for u in user], ITEM: item.astype(str), TIME: when}
    return pa.table(columns | ({RATING: score} if rated else {}))


def written(folder: Path, kind: str, table: pa.Table) -> Path:
    path = folder / f'it\'s a "log"; --.{kind}'
    if kind == "csv":
        arrow_csv.write_csv(table, path)
    elif kind == "parquet":
        pq.write_table(table, path, row_group_size=700)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()), "utf-8")
    return path


def array_path(raw: RawData, min_rating: float | None, k: int) -> Interactions:
    rows = raw.interactions
    rows = rows.take(first_of_duplicates(rows))
    if min_rating is not None:
        assert rows.rating is not None
        rows = rows.take(rows.rating >= np.float32(min_rating))
    return order(rows.take(k_core(rows, k)))


def assert_same(path: Path, raw: RawData, rows: Interactions) -> None:
    found = pq.read_table(path)
    assert found["user_id"].to_pylist() == rows.user_ids[rows.user].tolist()
    assert found["item_id"].to_pylist() == raw.item_ids[rows.position].tolist()
    for name in ("timestamp", "source_row", "rating"):
        expected = getattr(rows, name)
        if expected is None:
            assert name not in found.column_names
        else:
            assert found[name].to_numpy().tolist() == expected.tolist()
            assert found[name].to_numpy().dtype == expected.dtype


@pytest.mark.parametrize(
    ("kind", "seed", "min_rating", "k"),
    [
        ("csv", 0, None, 5),
        ("csv", 1, 2.2, 6),
        ("jsonl", 2, 1.0, 1),
        ("parquet", 3, 3.5, 4),
        ("parquet", 4, None, 12),
    ],
)
def test_the_rows_and_their_order_are_those_of_the_arrays(
    tmp_path: Path, kind: str, seed: int, min_rating: float | None, k: int
) -> None:
    path = written(tmp_path, kind, table_of(seed))
    layout = recognise(path, columns=ODD)
    (scratch := tmp_path / "scr'atch").mkdir()
    raw = read_source(path, columns=ODD)
    rows = array_path(raw, min_rating, k)
    filtered, counts = out_of_core.filtered(
        layout, tmp_path / "o'ut", BadRows(), min_rating=min_rating, k_core=k, scratch=scratch
    )
    assert_same(filtered.interactions.path, raw, rows)
    assert 0 < len(rows) < ROWS
    assert counts["rows_read"] == ROWS
    assert counts["duplicates_dropped"] > 100
    assert ROWS - sum(counts.values()) + counts["rows_read"] == len(rows)
    assert ("below_min_rating" in counts, "outside_k_core" in counts) == (
        min_rating is not None,
        k > 1,
    )
    assert not list(scratch.iterdir())
    # What was written is a source of its own, and gives the same users and items.
    again = read_source(tmp_path / "o'ut")
    assert again.interactions.user_ids[again.interactions.user].tolist() == (
        rows.user_ids[rows.user].tolist()
    )
    assert order(again.interactions).source_row.tolist() == list(range(len(rows)))


def test_a_log_without_ratings_has_none_afterwards(tmp_path: Path) -> None:
    path = written(tmp_path, "csv", table_of(1, rated=False))
    columns = Columns(USER, ITEM, TIME, None, None)
    raw = read_source(path, columns=columns)
    layout = recognise(path, columns=columns)
    filtered, _ = out_of_core.filtered(layout, tmp_path / "out", BadRows(), k_core=3)
    assert_same(filtered.interactions.path, raw, array_path(raw, None, 3))
    with pytest.raises(DataError, match="no ratings"):
        out_of_core.filtered(layout, tmp_path / "more", BadRows(), min_rating=1)


def test_a_core_that_falls_in_many_rounds(tmp_path: Path) -> None:
    """A chain falls from its end to its beginning, the block beside it stays."""
    chain = [(f"c{n // 2}", f"i{(n + 1) // 2}", n) for n in range(60)]
    block = [(f"b{u}", f"j{i}", u) for u in range(2) for i in range(2)]
    lines = "".join(f"{u},{i},{t}\n" for u, i, t in chain + block)
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n{lines}")
    layout = recognise(tmp_path / "log.csv")
    filtered, counts = out_of_core.filtered(layout, tmp_path / "out", BadRows(), k_core=2)
    assert pq.read_table(filtered.interactions.path)["source_row"].to_pylist() == [60, 61, 62, 63]
    assert counts["outside_k_core"] == 60


def test_bad_rows_are_those_that_reading_finds(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n7,a,5\n,b,5\n8,a,soon\n\n9,a,1.5\n9,a\n9,b,2020\n")
    theirs = read_source(path, max_bad_rows=9).bad_rows
    bad = BadRows(9)
    filtered, counts = out_of_core.filtered(recognise(path), tmp_path / "out", bad)
    assert [str(row) for row in bad.rows] == [str(row) for row in theirs.rows]
    assert len(bad.rows) == bad.count == counts["bad_rows"] == 3
    assert pq.read_table(filtered.interactions.path)["source_row"].to_pylist() == [0, 4, 6]
    with pytest.raises(DataError, match="3 bad rows, 2 allowed"):
        out_of_core.filtered(recognise(path), tmp_path / "none", BadRows(2))
    assert not (tmp_path / "none").exists()


def test_titles_beside_the_interactions_are_each_items_first(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [
        ("u", "x", 1, "First"),
        ("u", "y", 2, None),
        ("v", "x", 1, "Second"),
        ("v", "y", 2, "Later"),
        ("v", "z", 3, "Dropped"),
    ]
    keys = ("user_id", "item_id", "timestamp", "title")
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
    path.write_text("\n".join(lines))
    filtered, _ = out_of_core.filtered(recognise(path), tmp_path / "out", BadRows(), k_core=2)
    assert filtered.items is not None
    raw, again = read_source(path), read_source(tmp_path / "out")
    assert again.item_ids.tolist() == ["x", "y"]
    assert again.titles.tolist() == ["First", "Later"] == raw.titles[:2].tolist()


def test_what_cannot_be_done_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "parquet", table_of(0))
    layout, out = recognise(path, columns=ODD), tmp_path / "out"
    with pytest.raises(DataError, match=r"no interaction .* is left after the filters"):
        out_of_core.filtered(layout, out, BadRows(), k_core=1000)
    with pytest.raises(RecipeError, match="'much' is none that DuckDB knows"):
        out_of_core.filtered(layout, out, BadRows(), memory_limit="much")
    with pytest.raises(LlmrecError, match=r"gave up .* with 1MB of memory"):
        out_of_core.filtered(layout, out, BadRows(), memory_limit="1MB")
    pq.write_table(table_of(0).drop_columns([TIME]), path)  # after the file was recognised
    with pytest.raises(DataError, match=r"has no column for timestamp \('when\?'\); it has .*Map"):
        out_of_core.filtered(layout, out, BadRows())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        out_of_core.filtered(layout, out, BadRows())
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(LlmrecError, match=r"pip install 'llmrec\[data\]'"):
        out_of_core.filtered(layout, out, BadRows())
    assert not out.exists()
