"""Files as people have them: packed, encoded, divided, timed and shaped in their own ways.

The advice of each message is followed and leads to the rows."""

import bz2
import gzip
import json
import zipfile
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.sources import Columns, ItemColumns, RawData, Reading, read_source, recognise
from llmrec.errors import DataError
from llmrec.recipe.data import Data

HEAD = ["user_id", "item_id", "rating", "timestamp", "title"]
ROWS = [("u1", "7", 4.0, 100, "Amélie"), ("u1", "12", 3.0, 200, "Heat"), ("u2", "7", 5.0, 150, "")]
DELIMITED = "\n".join([",".join(HEAD), *(",".join(map(str, row)) for row in ROWS)]) + "\n"


def assert_read(raw: RawData) -> None:
    log = raw.interactions
    assert log.rating is not None
    found = [
        (log.user_ids[u], raw.item_ids[p], float(r), int(t))
        for u, p, r, t in zip(log.user, log.position, log.rating, log.timestamp, strict=True)
    ]
    assert found == [row[:4] for row in ROWS]
    assert raw.titles.tolist() == ["Amélie", "Heat"]
    assert raw.bad_rows.count == 0


def packed(kind: str, data: bytes) -> bytes:
    if kind == "gz":
        return gzip.compress(data)
    if kind == "bz2":
        return bz2.compress(data)
    if kind == "zst":
        return zst(data)
    return data


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", ["gz", "bz2", "zst", "zip"])
@pytest.mark.parametrize("named", [True, False])
def test_packed_files_are_known_by_their_first_bytes(
    tmp_path: Path, kind: str, named: bool
) -> None:
    path = tmp_path / (f"log.csv.{kind}" if named else "log.csv")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/log.csv", DELIMITED)
            archive.writestr("__MACOSX/._log.csv", "x")
    else:
        path.write_bytes(packed(kind, DELIMITED.encode()))
    assert_read(read_source(path))


def test_a_zip_of_several_files_names_them_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("log.csv", DELIMITED)
        archive.writestr("more.csv", DELIMITED)
    with pytest.raises(DataError, match=r"holds 2 files \(log\.csv, more\.csv\); unpack it"):
        read_source(path)
    for kind, pack in (("bz2", bz2.compress), ("zst", zst)):
        path = tmp_path / f"cut.csv.{kind}"
        path.write_bytes(pack(DELIMITED.encode() * 999)[:-20])
        with pytest.raises(DataError, match=r"damaged after|Fetch it again"):
            read_source(path)


@pytest.mark.parametrize(
    ("encoding", "said", "noticed"),
    [
        ("utf-8", "auto", False),
        ("utf-8-sig", "auto", False),
        ("utf-16", "auto", False),
        ("cp1252", "auto", True),
        ("cp1252", "cp1252", False),
        ("utf-16-le", "utf-16-le", False),
        ("latin-1", "latin-1", False),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_encodings(tmp_path: Path, suffix: str, encoding: str, said: str, noticed: bool) -> None:
    path = tmp_path / f"log.{suffix}"
    text = DELIMITED
    if suffix == "jsonl":
        rows = (dict(zip(HEAD, row, strict=True)) for row in ROWS)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode(encoding))
    raw = read_source(path, reading=Reading(encoding=said))
    assert_read(raw)
    assert [n for n in raw.bad_rows.notices if "Windows-1252" in n] == raw.bad_rows.notices
    assert bool(raw.bad_rows.notices) == noticed
    with pytest.raises(DataError, match="none that Python knows"):
        read_source(path, reading=Reading(encoding="utf-99"))


def test_a_damaged_line_in_utf_8_is_a_bad_row_and_not_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(DELIMITED.encode() + b"u3,\xff,1,1,\n")
    raw = read_source(path, max_bad_rows=1)
    assert [str(bad) for bad in raw.bad_rows.rows] == ["log.csv:5:item_id: byte 0xff is not UTF-8"]
    assert raw.titles.tolist() == ["Amélie", "Heat"]


@pytest.mark.parametrize("mark", [";", "\t", "|", "::"])
def test_another_delimiter_is_seen_said_and_followed(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(DELIMITED.replace(",", mark), "utf-8")
    with pytest.raises(DataError) as caught:
        read_source(path)
    assert "Its first line is divided by" in str(caught.value)
    advised = str(caught.value).partition('data.delimiter: "')[2].partition('"')[0]
    given = Data(source="log.csv", delimiter=advised).delimiter  # as a shell hands it on
    assert_read(read_source(path, reading=Reading(delimiter=given)))


def test_titles_of_an_items_file_are_mapped_once_and_a_wrong_name_is_told_where(
    tmp_path: Path,
) -> None:
    log, items = tmp_path / "log.csv", tmp_path / "items.tsv"
    log.write_text(
        "user_id,item_id,rating,timestamp\n"
        + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t, _ in ROWS)
    )
    items.write_text("item_id\tname\n7\tAmélie\n12\tHeat\n", "utf-8")
    assert_read(read_source(log, items=items, columns=Columns(title="name")))
    with pytest.raises(DataError, match=r"items.tsv .*'title'.* Map them in data.items_columns"):
        read_source(log, items=items)
    assert_read(read_source(log, items=items, reading=Reading(items=ItemColumns(title="name"))))
    with pytest.raises(DataError, match=r"log.csv .*'name'.* Map them in data.columns"):
        read_source(log, columns=Columns(title="name"))


def test_json_by_another_name_is_seen_and_the_advice_leads_to_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [dict(zip(HEAD, row, strict=True)) for row in ROWS]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    with pytest.raises(DataError, match=r"as JSON does: set data\.format: jsonl"):
        read_source(path)
    assert_read(read_source(path, "jsonl"))


@pytest.mark.parametrize("form", ["array", "array of lines", "python", "bom", "one line"])
def test_shapes_of_json(tmp_path: Path, form: str) -> None:
    rows = [dict(zip(HEAD, row, strict=True)) for row in ROWS]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = {
        "array": json.dumps(rows, indent=2, ensure_ascii=False),
        "array of lines": "[\n" + ",\n".join(lines) + "\n]\n",
        "python": "\n".join(f"{row!r}".replace("'user_id'", "u'user_id'") for row in rows),
        "bom": "\ufeff" + "\n".join(lines),
        "one line": json.dumps(rows, ensure_ascii=False),
    }[form]
    path = tmp_path / "log.json"
    path.write_text(text, "utf-8")
    assert_read(read_source(path))


def test_a_broken_array_and_a_hostile_literal(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text('[{"user_id": "u", "item_id": "i", "timestamp": 1}, {"user')
    with pytest.raises(DataError, match="not JSON from its element 2 on"):
        read_source(path)
    marker = tmp_path / "ran"
    good = "{'user_id': 'u', 'item_id': 'i', 'timestamp': 1}\n"
    path.write_text(good + f"{{'user_id': open({str(marker)!r}, 'w')}}\n")
    raw = read_source(path, max_bad_rows=1)
    assert "no Python literal" in raw.bad_rows.rows[0].reason
    assert not marker.exists()


def test_line_ends_of_old_macs(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(DELIMITED.replace("\n", "\r").encode())
    assert_read(read_source(path))


@pytest.mark.parametrize(
    ("form", "times"),
    [
        ("%d/%m/%Y", ["03/04/2020", "04/03/2020", "01/01/2021"]),
        (
            "%m/%d/%Y %I:%M:%S %p",
            ["4/3/2020 9:05:58 PM", "4/3/2020 9:05:58 AM", "4/4/2020 1:00:00 AM"],
        ),
        (
            "%a %b %d %H:%M:%S %z %Y",
            [
                "Fri Apr 03 10:00:00 -0700 2020",
                "Fri Apr 03 10:00:00 +0200 2020",
                "Sat Apr 04 00:00:00 -0700 2020",
            ],
        ),
    ],
)
def test_dates_in_other_forms(tmp_path: Path, form: str, times: list[str]) -> None:
    path = tmp_path / "log.csv"
    rows = "".join(f"u,{n},{time}\n" for n, time in enumerate(times))
    path.write_text(f"user_id,item_id,timestamp\n{rows}")
    with pytest.raises(DataError, match=r"data\.timestamp_format"):
        read_source(path)
    raw = read_source(path, reading=Reading(timestamp_format=form))
    assert raw.interactions.timestamp.argsort().tolist() == [1, 0, 2]
    path.write_text(f"user_id,item_id,timestamp\n{rows}u,9,2020-01-01\n")
    raw = read_source(path, max_bad_rows=1, reading=Reading(timestamp_format=form))
    assert "is not a date like" in raw.bad_rows.rows[0].reason
    for unit in ("s", "ms", "us", "iso"):
        with pytest.raises(DataError, match=r"4 bad rows|3 bad rows"):
            read_source(path, reading=Reading(timestamp_format=unit))


def test_rows_in_the_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id\nu,7\nu,5\nv,7\nu,7\n")
    with pytest.raises(DataError, match=r"set data\.columns\.timestamp: null"):
        read_source(path)
    raw = read_source(path, columns=Columns(timestamp=None))
    assert raw.interactions.timestamp.tolist() == [0, 1, 2, 3]
    assert "the order of its rows is taken for the order of time" in raw.bad_rows.notices[0]


def test_columns_of_the_items_file_by_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,7,1\nu,8,2\n")
    (tmp_path / "films.csv").write_text(
        "id,label,made,by\n7,Heat,1995,Mann\n8,Alien,1979.0,Scott\n"
    )
    columns = Columns("who", "what", "when")
    with pytest.raises(DataError, match=r"no column for item_id \('what'\), title \('title'\)"):
        read_source(tmp_path / "log.csv", items=tmp_path / "films.csv", columns=columns)
    raw = read_source(
        tmp_path / "log.csv",
        items=tmp_path / "films.csv",
        columns=columns,
        reading=Reading(items=ItemColumns("id", "label", "made", "by")),
    )
    assert raw.titles.tolist() == ["Heat (1995)", "Alien (1979)"]
    assert raw.brands.tolist() == ["Mann", "Scott"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "decimal", "bool", "nan"])
def test_ratings_that_are_blank_are_no_fault_unless_they_are_needed(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("log.csv" if kind == "csv" else "log.parquet")
    ids = {"user_id": ["u", "v", "w"], "item_id": ["1", "2", "3"], "timestamp": [1, 2, 3]}
    wanted = [4.5, 1.0]
    if kind == "csv":
        path.write_text("user_id,item_id,timestamp,rating\nu,1,1,4.5\nv,2,2, \nw,3,3,1\n")
    elif kind == "jsonl":
        path = tmp_path / "log.jsonl"
        rows = [dict(zip(ids, row, strict=True)) for row in zip(*ids.values(), strict=True)]
        path.write_text(
            "".join(
                json.dumps(row | extra) + "\n"
                for row, extra in zip(
                    rows, ({"rating": 4.5}, {"rating": None}, {"rating": True}), strict=True
                )
            )
        )
    else:
        values = {
            "decimal": pa.array([Decimal("4.5"), None, Decimal("1.0")], pa.decimal128(4, 1)),
            "bool": pa.array([True, None, True]),
            "nan": pa.array([4.5, float("nan"), 1.0]),
        }[kind]
        wanted = [1.0, 1.0] if kind == "bool" else wanted
        pq.write_table(pa.table({**ids, "rating": values}), path)
    raw = read_source(path)
    rating = raw.interactions.rating
    assert rating is not None
    assert rating[[0, 2]].tolist() == wanted
    assert rating[1] != rating[1]
    with pytest.raises(DataError, match=r"rating: is missing, and data\.min_rating needs it"):
        read_source(path, reading=Reading(rated=True))


def test_a_parquet_column_that_nothing_uses_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    columns = {"user_id": ["u"], "item_id": ["i"], "timestamp": [1], "tags": [["a", "b"]]}
    pq.write_table(pa.table(columns), path)
    assert len(read_source(path).interactions) == 1
    pq.write_table(pa.table({**columns, "title": [["a"]]}), path)
    with pytest.raises(DataError, match=r"holds no title; map another in data\.columns, or null"):
        read_source(path)
    assert len(read_source(path, columns=Columns(title=None)).interactions) == 1


def test_two_layouts_in_one_folder_are_an_error_that_names_both(tmp_path: Path) -> None:
    (tmp_path / "stray.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\nu\ti\t1\n"
    )
    (tmp_path / "interactions.csv").write_text(DELIMITED)
    with pytest.raises(
        DataError, match=r"two ways: stray\.inter \(recbole\) and interactions\.csv"
    ):
        recognise(tmp_path)
    assert_read(read_source(tmp_path / "interactions.csv"))
    assert_read(read_source(tmp_path, "csv"))
    assert len(read_source(tmp_path, "recbole").interactions) == 1
    (tmp_path / "stray.inter").unlink()
    (tmp_path / "interactions.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"no column for|two ways"):
        recognise(tmp_path)


def test_atomic_files_with_names_and_kinds_of_their_own(tmp_path: Path) -> None:
    head = "user_id:token\tbusiness_id:token\tstars:float\tdate:float"
    (tmp_path / "yelp.inter").write_text(f"{head}\nu\tb\t4\t5.5\nu\tc\t1\t5.25\n")
    raw = read_source(tmp_path)
    assert raw.item_ids.tolist() == ["b", "c"]
    assert raw.interactions.timestamp.tolist() == [5500, 5250]
    raw = read_source(tmp_path, columns=Columns(item_id="business_id", rating="stars"))
    assert raw.interactions.rating is not None
    assert raw.interactions.rating.tolist() == [4.0, 1.0]
    (tmp_path / "yelp.inter").write_text("user_id:token\tartist_id:token\tn:float\nu\tb\t4\n")
    with pytest.raises(
        DataError, match=r"no column for timestamp .*data\.columns\.timestamp: null"
    ):
        read_source(tmp_path)
    raw = read_source(tmp_path, columns=Columns(timestamp=None))
    assert raw.item_ids.tolist() == ["b"]
    (tmp_path / "yelp.item").write_text("artist_id:token\tname:token_seq\nb\tBjörk\n", "utf-8")
    assert read_source(tmp_path, columns=Columns(timestamp=None)).titles.tolist() == ["Björk"]


def test_columns_are_heard_where_files_have_names_of_movielens(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("u,m,stars,t\n1,2,3,4\n")
    (tmp_path / "movies.csv").write_text("m,name\n2,Heat\n")
    with pytest.raises(DataError, match="no known data set found"):
        read_source(tmp_path)
    columns = Columns("u", "m", "t", "stars", "name")
    raw = read_source(tmp_path, columns=columns)
    assert (raw.format, raw.titles.tolist()) == ("movielens", ["Heat"])
