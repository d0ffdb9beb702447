"""Every reader on tiny hand-written files in the published layouts."""

import datetime
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.catalog import Catalog, build_catalog
from llmrec.data.sources import Columns, RawData, opening, read_source, recognise
from llmrec.errors import DataError

LOG = [("7", "12", 4.0, 881250949), ("10", "2", 3.0, 881250950), ("7", "2", 5.0, 881250951)]
DRAMA, ANIMATED_COMEDY = (
    "".join("|1" if n in flagged else "|0" for n in range(19)) for flagged in ({8}, {3, 5})
)


def write(folder: Path, **files: str) -> Path:
    """Files by name; a double underscore stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, "utf-8")
    return folder


def as_rows(raw: RawData) -> list[tuple[str, str, float, int]]:
    log = raw.interactions
    assert log.rating is not None
    return [
        (log.user_ids[u], raw.item_ids[p], float(r), int(t))
        for u, p, r, t in zip(log.user, log.position, log.rating, log.timestamp, strict=True)
    ]


def catalog_of(raw: RawData) -> Catalog:
    return build_catalog(raw.item_ids, raw.titles, raw.brands)


def lines(separator: str, header: str = "") -> str:
    body = [separator.join([u, i, str(int(r)), str(t)]) for u, i, r, t in LOG]
    return "\n".join(([header] if header else []) + body) + "\n"


def ml_100k(folder: Path) -> Path:
    """GroupLens' layout: title with year, Latin-1."""
    write(folder, u__data=lines("\t"))
    items = [
        f"2|Cérémonie, La (1995)|01-Jan-1995||http://x{DRAMA}",
        f"12|Land Before Time III (1995) (V)|01-Jan-1995||{ANIMATED_COMEDY}",
    ]
    (folder / "u.item").write_bytes("\n".join(items).encode("latin-1"))
    return folder


def recbole_100k(folder: Path) -> Path:
    """RecBole's layout: title and year in two columns."""
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    items = (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "2\tCérémonie, La\t1995\tDrama\n12\tLand Before Time III (1995)\tV\tAnimation Comedy\n"
    )
    write(folder, **{"ml-100k__inter": lines("\t", header), "ml-100k__item": items})
    write(folder, **{"ml-100k__user": "user_id:token\n7\n", "source__json": "{}"})
    return folder


def test_both_editions_of_movielens_100k_are_one(tmp_path: Path) -> None:
    grouplens, recbole = (
        read_source(ml_100k(tmp_path / "a")),
        read_source(recbole_100k(tmp_path / "b")),
    )
    assert (grouplens.format, recbole.format) == ("movielens", "recbole")
    assert as_rows(grouplens) == as_rows(recbole) == LOG
    assert grouplens.item_ids.tolist() == ["2", "12"]
    assert catalog_of(grouplens) == catalog_of(recbole)
    assert (grouplens.genres.tolist(), recbole.genres.tolist()) == (
        ["Drama", "Animation|Comedy"],
        ["Drama", "Animation Comedy"],
    )
    assert catalog_of(grouplens).titles == ("La Cérémonie (1995)", "Land Before Time III (1995)")
    for name in ("user", "position", "timestamp", "source_row", "rating", "user_ids"):
        ours, theirs = (getattr(raw.interactions, name) for raw in (grouplens, recbole))
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_movielens_dat(tmp_path: Path, encoding: str) -> None:
    write(tmp_path / "ml" / "inner", ratings__dat=lines("::"))
    movies = "2::Misérables, Les (1995)::Drama\n12::Star Wars: Episode IV (1977)::Action|Sci-Fi\n"
    (tmp_path / "ml" / "inner" / "movies.dat").write_bytes(movies.encode(encoding))
    raw = read_source(tmp_path / "ml")
    assert as_rows(raw) == LOG
    assert catalog_of(raw).titles == ("Les Misérables (1995)", "Star Wars: Episode IV (1977)")


def test_movielens_csv(tmp_path: Path) -> None:
    movies = (
        'movieId,title,genres\r\n2,"Seven, ""The"" Film, A (1995)",Crime\r\n12,Heat (1995),x\r\n'
    )
    write(
        tmp_path,
        ratings__csv=lines(",", "userId,movieId,rating,timestamp"),
        movies__csv=movies,
        tags__csv="userId\n",
    )
    raw = read_source(tmp_path)
    assert as_rows(raw) == LOG
    assert catalog_of(raw).titles == ('A Seven, "The" Film (1995)', "Heat (1995)")


def amazon_2023_meta() -> str:
    rows = [
        {"parent_asin": "2", "title": "Cable", "store": "Sony", "images": [{"a": None}]},
        {"parent_asin": "99", "title": "Not in the log"},
        {"parent_asin": "12", "title": None, "store": None},
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_amazon_2023_reviews(tmp_path: Path) -> None:
    reviews = [
        {
            "rating": r,
            "text": "good\n",
            "asin": "x",
            "parent_asin": i,
            "user_id": u,
            "timestamp": t,
            "images": [],
        }
        for u, i, r, t in LOG
    ]
    with gzip.open(tmp_path / "Toys.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(review) + "\n" for review in reviews)
    with gzip.open(tmp_path / "meta_Toys.jsonl.gz", "wt") as stream:
        stream.write(amazon_2023_meta())
    raw = read_source(tmp_path)
    assert raw.format == "amazon2023"
    assert as_rows(raw) == LOG
    assert raw.brands.tolist() == ["Sony", ""]
    assert catalog_of(raw).titles == ("Cable", "Untitled item 12")
    assert read_source(tmp_path / "Toys.jsonl.gz", "amazon2023").titles.tolist() == ["Cable", ""]


def test_amazon_2023_ratings(tmp_path: Path) -> None:
    write(
        tmp_path,
        Toys__csv=lines(",", "user_id,parent_asin,rating,timestamp"),
        meta_Toys__jsonl=amazon_2023_meta(),
    )
    raw = read_source(tmp_path)
    assert (raw.format, as_rows(raw)) == ("amazon2023", LOG)


def test_amazon_2018(tmp_path: Path) -> None:
    reviews = "".join(
        json.dumps({"overall": r, "reviewerID": u, "asin": i, "unixReviewTime": t}) + "\n"
        for u, i, r, t in LOG
    )
    meta = "".join(
        json.dumps({"asin": i, "title": f"Tom &amp; {i}", "brand": "B"}) + "\n" for i in ("2", "12")
    )
    for name, text in (("Office_5.json.gz", reviews), ("meta_Office.json.gz", meta)):
        with gzip.open(tmp_path / name, "wt") as stream:
            stream.write(text)
    raw = read_source(tmp_path)
    assert (raw.format, as_rows(raw)) == ("amazon2018", LOG)
    assert catalog_of(raw).titles == ("Tom & 2", "Tom & 12")
    (tmp_path / "Office_5.json.gz").unlink()
    write(tmp_path, Office__csv="".join(f"{i},{u},{r},{t}\n" for u, i, r, t in LOG))
    raw = read_source(tmp_path)
    assert (raw.format, as_rows(raw)) == ("amazon2018", LOG)


def test_csv_with_mapped_columns_and_titles_in_the_same_file(tmp_path: Path) -> None:
    log = write(tmp_path, my__csv='who,what,when,stars,name\nb,"x,1",5,2,"A ""B"""\na,y,6,1,\n')
    columns = Columns("who", "what", "when", "stars", "name")
    raw = read_source(log / "my.csv", columns=columns)
    assert as_rows(raw) == [("b", "x,1", 2.0, 5), ("a", "y", 1.0, 6)]
    assert raw.titles.tolist() == ['A "B"', ""]
    assert raw.untitled_items == 1
    assert raw.interactions.source_row.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_plain_formats_agree(tmp_path: Path, kind: str) -> None:
    names = ["user_id", "item_id", "rating", "timestamp"]
    items = {"item_id": ["2", "12", "2"], "title": ["Two", "Twelve", "Again"]}
    if kind == "parquet":
        columns = dict(zip(names, map(list, zip(*LOG, strict=True)), strict=True))
        pq.write_table(pa.table(columns), tmp_path / "interactions.parquet", row_group_size=2)
        pq.write_table(pa.table(items), tmp_path / "items.parquet")
    elif kind == "jsonl":
        text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in LOG)
        titles = "".join(
            json.dumps({"item_id": i, "title": t}) + "\n"
            for i, t in zip(*items.values(), strict=True)
        )
        write(tmp_path, interactions__jsonl=text, items__jsonl=titles)
    else:
        separator = {"csv": ",", "tsv": "\t"}[kind]
        titles = [separator.join(pair) for pair in zip(*items.values(), strict=True)]
        log = lines(separator, separator.join(names))
        about = "\n".join([separator.join(items), *titles])
        write(tmp_path, **{f"interactions__{kind}": log, f"items__{kind}": about})
    raw = read_source(tmp_path)
    assert (raw.format, as_rows(raw)) == (kind, LOG)
    assert raw.titles.tolist() == ["Two", "Twelve"]
    assert (raw.repeated_items, raw.untitled_items) == (1, 0)
    alone = read_source(tmp_path / f"interactions.{kind}", items=tmp_path / f"items.{kind}")
    assert alone.titles.tolist() == ["Two", "Twelve"]


def test_ids_of_any_type_and_dates(tmp_path: Path) -> None:
    moment = datetime.datetime(2020, 1, 1, 0, 0, 1, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "user_id": pa.array(["b", "a"]).dictionary_encode(),
            "item_id": [12.0, 2.0],
            "timestamp": pa.array([moment, moment], pa.timestamp("us", tz="UTC")),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    raw = read_source(tmp_path / "log.parquet")
    assert raw.item_ids.tolist() == ["2", "12"]
    assert raw.interactions.timestamp.tolist() == [1577836801000] * 2
    assert raw.interactions.rating is None
    dates = ["2020-01-01 00:00:01", "2020-01-01T01:00:01+01:00", "2020-01-01"]
    text = "user_id,item_id,timestamp\n" + "".join(f"u,{n},{d}\n" for n, d in enumerate(dates))
    raw = read_source(write(tmp_path, d__csv=text) / "d.csv")
    assert raw.interactions.timestamp.tolist() == [1577836801000, 1577836801000, 1577836800000]


def test_whole_blocks_and_single_lines_read_alike(tmp_path: Path, monkeypatch) -> None:
    """Small blocks, blank lines, carriage returns and a byte order mark change nothing."""
    plain = "user_id,item_id,timestamp,title\n" + "".join(
        f'u{n % 7},i{n % 11},{n},"T, {n % 11}"\n' for n in range(300)
    )
    odd = "\ufeff" + plain.replace("\n", "\r\n").replace("u3,i3,3,", "\r\nu3,i3,3,")
    write(tmp_path, a__csv=plain, b__csv=odd.rstrip())
    first = read_source(tmp_path / "a.csv")
    monkeypatch.setattr(opening, "BLOCK_BYTES", 100)
    for path in (tmp_path / "a.csv", tmp_path / "b.csv"):
        again = read_source(path)
        assert again.interactions.timestamp.tolist() == [*range(300)]
        assert again.interactions.position.tolist() == first.interactions.position.tolist()
        assert again.interactions.user.tolist() == first.interactions.user.tolist()
        assert again.titles.tolist() == first.titles.tolist()
    assert np.diff(read_source(tmp_path / "b.csv").interactions.source_row).tolist() == (
        [1, 1, 2] + [1] * 296
    )


def test_what_cannot_be_recognised_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "none", readme__txt="x")
    with pytest.raises(DataError, match=r"no known data set found among its files \(readme.txt\)"):
        recognise(tmp_path / "none")
    with pytest.raises(DataError, match="does not exist"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no movielens found"):
        recognise(tmp_path / "none", "movielens")
    write(tmp_path / "two", a__inter="user_id:token\n", b__inter="user_id:token\n")
    with pytest.raises(DataError, match=r"2 \.inter files"):
        recognise(tmp_path / "two")
    write(tmp_path, my__csv="who,what\n1,2\n")
    with pytest.raises(DataError, match=r"no column for user_id \('user_id'\).*it has who, what"):
        recognise(tmp_path / "my.csv")
    write(tmp_path, empty__csv="")
    with pytest.raises(DataError, match="is empty"):
        recognise(tmp_path / "empty.csv")
    write(tmp_path, bare__csv="user_id,item_id,timestamp\n")
    with pytest.raises(DataError, match="holds no interaction"):
        read_source(tmp_path / "bare.csv")
    with pytest.raises(DataError, match="'stars'"):
        recognise(
            write(tmp_path, b__csv="user_id,item_id,timestamp\n") / "b.csv",
            columns=Columns(rating="stars"),
        )


def test_a_gz_bomb_is_refused_and_a_cut_gz_is_named(tmp_path: Path, monkeypatch) -> None:
    text = b"user_id,item_id,timestamp\n" + b"u,i,1\n" * 20_000
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(text))
    assert len(read_source(path).interactions) == 20_000
    monkeypatch.setattr(opening, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(opening, "MAX_UNPACKED_BYTES", 50_000)
    with pytest.raises(DataError, match="refused"):
        read_source(path)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged after"):
        read_source(path)
