"""Ids have one form in every format, and files that do not join say so."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.catalog import normal_id
from llmrec.data.sources import BadRows, RawData, read_source, recognise
from llmrec.data.sources.values import identifiers
from llmrec.errors import DataError

IDS = ["7", "12", "7", "30"]
NAMES = ("user_id", "item_id", "timestamp")


def csv_of(path: Path, ids: list[str], space: str = "", header: str = ",".join(NAMES)) -> None:
    lines = [f"u{n % 2},{space}{item},{n}" for n, item in enumerate(ids)]
    path.write_text("\n".join([header, *lines]) + "\n", "utf-8")


def items_of(path: Path, ids: list[str]) -> None:
    path.write_text("item_id,title\n" + "".join(f"{i},Title {i}\n" for i in ids), "utf-8")


def written(folder: Path, kind: str) -> None:
    """The same log four ways; ids as a tool leaves them that has seen a gap in the column."""
    folder.mkdir()
    if kind == "integral floats":
        csv_of(folder / "interactions.csv", [f"{i}.0" for i in IDS])
    elif kind == "white space":
        csv_of(folder / "interactions.csv", IDS, " ", "user_id, item_id, timestamp")
    elif kind == "no-break space":
        csv_of(folder / "interactions.csv", [f"{i}\u00a0" for i in IDS])
    elif kind == "json":
        rows = [
            dict(zip(NAMES, (f"u{n % 2}", float(i), n), strict=True)) for n, i in enumerate(IDS)
        ]
        (folder / "interactions.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    elif kind == "json text":
        rows = [
            dict(zip(NAMES, (f"u{n % 2}", f" {i}.0", n), strict=True)) for n, i in enumerate(IDS)
        ]
        (folder / "interactions.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    else:
        columns: list[Any] = [["u0", "u1"] * 2, [float(i) for i in IDS], [0, 1, 2, 3]]
        pq.write_table(pa.table(columns, list(NAMES)), folder / "interactions.parquet")


@pytest.mark.parametrize(
    "kind", ["integral floats", "white space", "no-break space", "json", "json text", "parquet"]
)
def test_an_id_has_one_form_in_every_format(tmp_path: Path, kind: str) -> None:
    written(tmp_path / "log", kind)
    items_of(tmp_path / "items.csv", ["7", "12", "30"])
    raw = read_source(tmp_path / "log", items=tmp_path / "items.csv")
    assert raw.item_ids.tolist() == ["7", "12", "30"]
    assert raw.titles.tolist() == ["Title 7", "Title 12", "Title 30"]
    assert (raw.untitled_items, raw.bad_rows.count, raw.bad_rows.notices) == (0, 0, [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=20))
def test_however_a_number_is_written_it_is_one_id(numbers: list[int]) -> None:
    wanted = [str(n) for n in numbers]
    for values in (
        pa.array(numbers, pa.int64()),
        pa.array(numbers, pa.float64()),
        pa.array(wanted),
        pa.array([f"{n}.0" for n in numbers]),
        pa.array([f"  {n}.00 \u3000" for n in numbers]),
        pa.array(wanted).dictionary_encode(),
    ):
        found, reasons = identifiers(values)
        assert found.cast(pa.string()).to_pylist() == wanted
        if values.type == pa.string():
            assert [normal_id(text) for text in values.to_pylist()] == wanted
        assert not reasons


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["nan"], "stands for a missing value"),
        (["NULL"], "stands for a missing value"),
        (["1.23457E+12"], "spreadsheet"),
        ([1.2345678901234567e18], "too large for an id"),
        (pa.array([20_000_001.0], pa.float32()), "too large for an id"),
        ([" "], "is empty"),
        (["a\tb"], "control code"),
        ([None], "is missing"),
    ],
)
def test_what_is_nobodys_id_is_a_bad_row(values: Any, reason: str) -> None:
    _, reasons = identifiers(pa.array(values))
    assert reason in reasons[0]


# How the ids of the items file are written, and what the message says would make them match.
RULES = {
    "leading zeros": (lambda i: f"000{i}", "Without leading zeros they would match"),
    "upper case": (lambda i: f"B{i}".upper(), "In lower case they would match"),
    "prefix": (lambda i: f"movie:{i}", "By their digits alone they would match"),
    "quotes": (lambda i: f"'{i}'", "Without quotes and brackets they would match"),
}


@pytest.mark.parametrize("out_of_core", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_ids_that_do_not_join_are_refused_with_the_rule(
    tmp_path: Path, rule: str, out_of_core: bool
) -> None:
    write, said = RULES[rule]
    ours = [f"b{i}" if rule == "upper case" else i for i in ("7", "12", "8")]
    csv_of(tmp_path / "interactions.csv", ours)
    items_of(tmp_path / "items.csv", [write(i) for i in ("7", "12", "8")])
    if out_of_core:
        pytest.importorskip("duckdb")
    with pytest.raises(DataError) as caught:
        (read_filtered if out_of_core else read_source)(tmp_path)
    message = str(caught.value)
    assert said in message
    assert "3 of 3 items" in message
    for text in (*sorted(ours, key=len)[:1], write("7")):
        assert repr(text) in message or repr(text) in message.replace('"', "'")
    # The advice: alike in both files, or without titles.
    items_of(tmp_path / "items.csv", ours)
    assert read_source(tmp_path).untitled_items == 0
    items_of(tmp_path / "items.csv", ["other"])
    assert len(read_source(tmp_path / "interactions.csv").interactions) == 3


def read_filtered(folder: Path) -> RawData:
    from llmrec.data import out_of_core
    from llmrec.data.sources import read_layout

    layout, _ = out_of_core.filtered(recognise(folder), folder / "out", BadRows())
    return read_layout(layout, BadRows())


def test_ids_in_another_column_are_found_there(tmp_path: Path) -> None:
    csv_of(tmp_path / "interactions.csv", ["7", "12", "30"])
    (tmp_path / "items.csv").write_text("item_id,sku,title\nx,7,A\ny,12,B\nz,30,C\n")
    with pytest.raises(DataError, match=r"Column 'sku' of items\.csv has them"):
        read_source(tmp_path)


def test_a_small_share_without_a_row_is_said(tmp_path: Path) -> None:
    ids = [str(n) for n in range(40)]
    csv_of(tmp_path / "interactions.csv", ids)
    items_of(tmp_path / "items.csv", ids[2:])
    raw = read_source(tmp_path)
    assert raw.untitled_items == 2
    (notice,) = raw.bad_rows.notices
    assert "2 of 40 items (5%) have no row in items.csv" in notice
    assert "'0' and '1'" in notice
    items_of(tmp_path / "items.csv", ids)
    assert read_source(tmp_path).bad_rows.notices == []


def test_a_title_is_the_first_that_is_one(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text(
        "user_id,item_id,timestamp,title\nu,7,1,\nu,7,2,Seven\nu,8,3,nan\nu,8,4,Eight\nv,7,5,Other\n"
    )
    assert read_source(tmp_path).titles.tolist() == ["Seven", "Eight"]
    rows = ["7,,X", "8, ,", "7,Siete,Y", "9,?,", "7,Sept,Z"]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title,brand", *rows]))
    raw = read_source(tmp_path)
    assert raw.titles.tolist() == ["Siete", ""]
    assert raw.brands.tolist() == ["Y", ""]
    assert (raw.untitled_items, raw.repeated_items) == (0, 2)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp,title,title\nu,i,1,A,B\n")
    with pytest.raises(DataError, match="2 columns called 'title'"):
        read_source(path)
    path.write_text("user_id,item_id,timestamp,title,subtitle\nu,i,1,A,B\n")
    assert read_source(path).titles.tolist() == ["A"]
    columns = [pa.array(["u"]), pa.array(["i"]), pa.array([1]), pa.array(["A"]), pa.array(["B"])]
    table = pa.Table.from_arrays(columns, ["user_id", "item_id", "timestamp", "title", "title"])
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(DataError, match="2 columns called 'title'"):
        read_source(tmp_path / "log.parquet")
