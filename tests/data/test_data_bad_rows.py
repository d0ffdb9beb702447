"""Damaged files: good rows stay, each bad row is reported with file, line, column and reason."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.sources import RawData, Reading, read_source
from llmrec.errors import DataError

NAMES = ("user_id", "item_id", "rating", "timestamp")
GOOD = [(f"u{n % 4}", f"i{n % 9}", n % 5, 1000 + n) for n in range(30)]
READING = Reading(encoding="utf-8", rated=True)
AT = (0, 13, 29)  # the first row, one in the middle, the last

# What becomes of the fields of one row, the column that is named, and the reason that is given.
DELIMITED = {
    "a column too few": (["u", "i", "3"], "timestamp", "4 columns expected, 3 found"),
    "a column too many": (["u", "i", "3", "5", "x"], "5", "4 columns expected, 5 found"),
    "no user": (["", "i", "3", "5"], "user_id", "is empty"),
    "blank item": (["u", "  ", "3", "5"], "item_id", "is empty"),
    "control code": (["u", "i\x01", "3", "5"], "item_id", "'i\\x01' has a control code"),
    "nul": (["u\x00", "i", "3", "5"], "user_id", "'u\\x00' has a control code"),
    "word for a rating": (["u", "i", "good", "5"], "rating", "'good' is not a number"),
    "nan": (["u", "i", "nan", "5"], "rating", "'nan' is not a number"),
    "infinite": (["u", "i", "1e999", "5"], "rating", "'1e999' is not a number"),
    "no time": (["u", "i", "3", ""], "timestamp", "is empty"),
    "word for a time": (["u", "i", "3", "soon"], "timestamp", "'soon' is not a number"),
    "hexadecimal": (["u", "i", "3", "0x1F"], "timestamp", "'0x1F' is not a number"),
    "date among numbers": (["u", "i", "3", "2020-01-01"], "timestamp", "is not a number"),
    "far time": (["u", "i", "3", "9" * 20], "timestamp", "is out of range"),
    "not UTF-8": (["u", "i\udcff", "3", "5"], "item_id", "byte 0xff is not UTF-8"),
}
JSON = {
    "cut": ('{"user_id": "u", "item', "line", "not JSON"),
    "words": ("hello", "line", "not JSON: Expecting value at character 1"),
    "an array": ("[1, 2]", "line", "an object is expected, not [1, 2]"),
    "two objects": ('{"user_id": 1}{"user_id": 2}', "line", "not JSON: Extra data"),
    "deep": ("[" * 100_000, "line", "not JSON"),
    "not UTF-8": ('{"user_id": "\udcff"}', "line", "byte 0xff is not UTF-8"),
    "NaN": (
        '{"user_id": "u", "item_id": "i", "rating": NaN, "timestamp": 5}',
        "line",
        "NaN is not a number",
    ),
    "no user": ('{"item_id": "i", "rating": 1, "timestamp": 5}', "user_id", "is missing"),
    "null item": (
        '{"user_id": "u", "item_id": null, "rating": 1, "timestamp": 5}',
        "item_id",
        "is missing",
    ),
    "list": (
        '{"user_id": ["u"], "item_id": "i", "rating": 1, "timestamp": 5}',
        "user_id",
        "['u'] is neither text nor a number",
    ),
    "truth": (
        '{"user_id": true, "item_id": "i", "rating": 1, "timestamp": 5}',
        "user_id",
        "True is neither",
    ),
    "word": (
        '{"user_id": "u", "item_id": "i", "rating": "good", "timestamp": 5}',
        "rating",
        "'good' is not a number",
    ),
}
PARQUET = {
    "no user": (0, None, "user_id", "is missing"),
    "empty item": (1, "", "item_id", "is empty"),
    "no rating": (2, None, "rating", "is missing"),
    "nan": (2, float("nan"), "rating", "is missing"),
    "infinite": (2, float("inf"), "rating", "inf is not a number"),
    "no time": (3, None, "timestamp", "is missing"),
}


def assert_one_bad(path: Path, row: int, line: int, column: str, reason: str) -> None:
    """All rows but `row` stay; with no bad row allowed, the same row is named in the error."""
    raw = read_source(path, max_bad_rows=1, reading=READING)
    assert kept(raw) == [good for at, good in enumerate(GOOD) if at != row]
    assert raw.bad_rows.count == 1
    bad = raw.bad_rows.rows[0]
    assert (bad.file, bad.line, bad.column) == (path.name, line, column)
    assert reason in bad.reason
    with pytest.raises(DataError) as caught:
        read_source(path, reading=READING)
    assert f"  {path.name}:{line}:{column}: " in str(caught.value)
    assert caught.value.exit_code == 3


def kept(raw: RawData) -> list[tuple[str, str, int, int]]:
    log = raw.interactions
    assert log.rating is not None
    ids = zip(log.user_ids[log.user], raw.item_ids[log.position], strict=True)
    return [
        (*pair, int(r), int(t)) for pair, r, t in zip(ids, log.rating, log.timestamp, strict=True)
    ]


@pytest.mark.parametrize("row", AT)
@pytest.mark.parametrize("damage", DELIMITED)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "inter"])
def test_delimited(tmp_path: Path, suffix: str, damage: str, row: int) -> None:
    fields, column, reason = DELIMITED[damage]
    separator = "," if suffix == "csv" else "\t"
    kind = ":token" if suffix == "inter" else ""
    body = [separator.join(map(str, good)) for good in GOOD]
    body[row] = separator.join(fields)
    text = "\n".join([separator.join(name + kind for name in NAMES), *body]) + "\n"
    path = tmp_path / f"log.{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert_one_bad(path, row, row + 2, column, reason)


@pytest.mark.parametrize("row", AT)
def test_a_quote_that_stays_open_costs_one_row(tmp_path: Path, row: int) -> None:
    body = [",".join(map(str, good)) for good in GOOD]
    body[row] = 'u,"i,3,5'
    path = tmp_path / "log.csv"
    path.write_text("\n".join([",".join(NAMES), *body]))
    assert_one_bad(path, row, row + 2, "item_id", "a quote is opened and not closed")


@pytest.mark.parametrize("row", AT)
@pytest.mark.parametrize("damage", JSON)
def test_jsonl(tmp_path: Path, damage: str, row: int) -> None:
    text, column, reason = JSON[damage]
    body = [json.dumps(dict(zip(NAMES, good, strict=True))) for good in GOOD]
    body[row] = text
    path = tmp_path / "log.jsonl"
    path.write_bytes(("\n".join(body) + "\n").encode("utf-8", "surrogateescape"))
    assert_one_bad(path, row, row + 1, column, reason)


@pytest.mark.parametrize("row", AT)
@pytest.mark.parametrize("damage", PARQUET)
def test_parquet_values(tmp_path: Path, damage: str, row: int) -> None:
    at, value, column, reason = PARQUET[damage]
    columns = [list(values) for values in zip(*GOOD, strict=True)]
    columns[2] = [float(value) for value in columns[2]]
    columns[at][row] = value
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(dict(zip(NAMES, columns, strict=True))), path, row_group_size=8)
    assert_one_bad(path, row, row + 1, column, reason)


def test_parquet_bytes(tmp_path: Path) -> None:
    """Flipped bytes: a row group lost and reported, an error that names the file, or no harm."""
    path = tmp_path / "log.parquet"
    table = pa.table(dict(zip(NAMES, map(list, zip(*GOOD, strict=True)), strict=True)))
    pq.write_table(
        table,
        path,
        row_group_size=10,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    whole = path.read_bytes()
    outcomes = {"refused": 0, "reported": 0, "harmless": 0}
    for at in np.random.default_rng(0).integers(len(whole), size=60).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            raw = read_source(path, max_bad_rows=30)
        except DataError as error:
            outcomes["refused"] += path.name in str(error)
            continue
        rows = kept(raw)
        assert set(rows) <= set(GOOD)
        assert len(rows) + raw.bad_rows.count == len(GOOD)
        for bad in raw.bad_rows.rows:
            assert bad.file == path.name
            assert bad.line in (1, 11, 21)
            assert bad.column in NAMES
            assert "cannot be read" in bad.reason
        outcomes["reported" if raw.bad_rows.count else "harmless"] += 1
    assert min(outcomes.values()) > 0
    assert sum(outcomes.values()) == 60
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_source(path)


def test_bad_rows_of_items_files_count_too(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,1,1\nu,2,2\n")
    (tmp_path / "items.csv").write_text("item_id,title\n1,One\n2\n,Three\n")
    raw = read_source(tmp_path, max_bad_rows=2)
    assert [str(bad) for bad in raw.bad_rows.rows] == [
        "items.csv:3:title: 2 columns expected, 1 found",
        "items.csv:4:item_id: is empty",
    ]
    assert raw.titles.tolist() == ["One", ""]


def test_the_error_lists_ten_rows_and_counts_all(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "u,i,late\n" * 25)
    with pytest.raises(DataError) as caught:
        read_source(tmp_path / "log.csv", max_bad_rows=3)
    message = str(caught.value)
    assert message.startswith("25 bad rows, 3 allowed (data.max_bad_rows):\n")
    assert message.count("log.csv:") == 10
    assert "log.csv:11:timestamp" in message
    assert "log.csv:12:timestamp" not in message
