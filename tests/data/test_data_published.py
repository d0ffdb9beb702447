"""Data sets with names, from files of their exact shape."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.sources import Columns, read_source

Written = tuple[list[tuple[str, str]], dict[str, str]]  # (user, item) oldest first, titles


def lines(path: Path, *rows: dict[str, object], python: bool = False) -> None:
    text = "".join((repr(row) if python else json.dumps(row)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, "utf-8")


def steam(folder: Path) -> Written:
    lines(
        folder / "steam_reviews.json.gz",
        {"username": "Bob", "product_id": "70", "date": "2018-01-02", "text": 'it\'s "fun"'},
        {"username": "Ann", "product_id": "440", "date": "2017-12-31", "early_access": False},
        python=True,
    )
    lines(
        folder / "steam_games.json.gz",
        {"app_name": "Half-Life", "id": "70", "price": 9.99},
        {"app_name": "Team Fortress 2", "id": "440"},
        {"publisher": "nameless"},
        python=True,
    )
    return [("Ann", "440"), ("Bob", "70")], {"70": "Half-Life", "440": "Team Fortress 2"}


def goodreads(folder: Path) -> Written:
    about = {"is_read": True, "review_text_incomplete": "", "date_added": "x"}
    lines(
        folder / "goodreads_interactions_poetry.json.gz",
        {
            "user_id": "a",
            "book_id": "9",
            "rating": 5,
            "date_updated": "Sat Mar 26 01:00:00 +0000 2016",
            **about,
        },
        {
            "user_id": "a",
            "book_id": "8",
            "rating": 0,
            "date_updated": "Fri Mar 25 23:30:00 -0700 2016",
            **about,
        },
    )
    lines(
        folder / "goodreads_books_poetry.json.gz",
        {"book_id": "8", "title": "Odes"},
        {"book_id": "9", "title": "Poems"},
    )
    return [("a", "9"), ("a", "8")], {"8": "Odes", "9": "Poems"}


def lastfm(folder: Path) -> Written:
    (folder / "user_taggedartists-timestamps.dat").write_text(
        "userID\tartistID\ttagID\ttimestamp\r\n2\t52\t13\t1238536800000\r\n2\t63\t13\t1238536700000\r\n"
    )
    (folder / "user_artists.dat").write_text("userID\tartistID\tweight\n2\t52\t11690\n")
    (folder / "artists.dat").write_text(
        'id\tname\turl\tpictureURL\n52\tMorcheeba "live"\thttp://x\t\n63\tAir\thttp://y\t\n'
    )
    return [("2", "63"), ("2", "52")], {"52": 'Morcheeba "live"', "63": "Air"}


def yelp(folder: Path) -> Written:
    lines(
        folder / "yelp_academic_dataset_review.json",
        {
            "review_id": "r",
            "user_id": "u",
            "business_id": "b",
            "stars": 4.0,
            "date": "2016-05-28 20:38:24",
            "text": "ok\n",
        },
        {
            "review_id": "s",
            "user_id": "u",
            "business_id": "c",
            "stars": 1.0,
            "date": "2016-05-28 20:38:23",
            "text": "no",
        },
    )
    lines(
        folder / "yelp_academic_dataset_business.json",
        {"business_id": "b", "name": "Bar"},
        {"business_id": "c", "name": "Café"},
    )
    return [("u", "c"), ("u", "b")], {"b": "Bar", "c": "Café"}


def book_crossing(folder: Path) -> Written:
    ratings = (
        '"User-ID";"ISBN";"Book-Rating"\n"276725";"034545104X";"0"\n"276726";"0155061224";"5"\n'
    )
    (folder / "BX-Book-Ratings.csv").write_bytes(ratings.encode("latin-1"))
    head = '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher"\n'
    books = (
        '"034545104X";"Flesh \\"Tones\\" (A Novel)";"M. J. Rose";"2002";"Ballantine"\n'
        '"0155061224";"Rites &amp; Passage; Señor";"Judith Rae";"2001";"Heinle"\n'
    )
    (folder / "BX-Books.csv").write_bytes((head + books).encode("latin-1"))
    return [("276725", "034545104X"), ("276726", "0155061224")], {
        "034545104X": 'Flesh "Tones" (A Novel) (2002)',
        "0155061224": "Rites &amp; Passage; Señor (2001)",
    }


def kuairec(folder: Path) -> Written:
    (folder / "big_matrix.csv").write_text(
        "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
        "0,3649,13838,10867,2020-07-05 00:08:23.438,20200705,1593878903.438,1.27\n"
        "0,9598,13665,10984,2020-07-05 00:08:23.120,20200705,1593878903.12,1.24\n"
    )
    (folder / "kuairec_caption_category.csv").write_text(
        "video_id,manual_cover_text,caption,topic_tag\n3649,UNKNOWN,精神小伙,[]\n"
        '9598,x,"a, b",[c]\n',
        "utf-8",
    )
    return [("0", "9598"), ("0", "3649")], {"3649": "精神小伙", "9598": "a, b"}


def mind(folder: Path) -> Written:
    (folder / "behaviors.tsv").write_text(
        "1\tU13740\t11/11/2019 9:05:58 PM\tN5 N6\tN55689-1 N35729-0\n"
        "2\tU91836\t11/11/2019 9:05:57 AM\t\tN20678-0 N39317-1 N55689-1\n"
    )
    (folder / "news.tsv").write_text(
        'N55689\tsports\tnfl\t"Hot" take\tabstract\thttps://x\t[]\t[]\n'
        "N39317\tnews\tus\tQueen's day\t\thttps://y\t[]\t[]\n"
    )
    return (
        [("U91836", "N39317"), ("U91836", "N55689"), ("U13740", "N55689")],
        {"N55689": '"Hot" take', "N39317": "Queen's day"},
    )


def netflix(folder: Path) -> Written:
    (folder / "combined_data_1.txt").write_text(
        "1:\n1488844,3,2005-09-06\n822109,5,2005-05-13\n2:\n"
    )
    (folder / "combined_data_2.txt").write_text("3:\n822109,4,2005-05-12\n")
    (folder / "movie_titles.csv").write_bytes(
        "1,2003,Dinosaur Planet\n3,1997,Character, The: Été\n".encode("latin-1")
    )
    return [("822109", "3"), ("822109", "1"), ("1488844", "1")], {
        "1": "Dinosaur Planet (2003)",
        "3": "Character, The: Été (1997)",
    }


def merrec(folder: Path) -> Written:
    for number, rows in enumerate(
        ([("1", 5, "2023-05-03 12:00:00 UTC")], [("1", 6, "2023-05-03 11:00:00 UTC")])
    ):
        users, items, times = zip(*rows, strict=True)
        table = {
            "user_id": users,
            "sequence_id": ["1"],
            "session_id": ["1"],
            "item_id": [9],
            "product_id": items,
            "event_id": ["item_view"],
            "name": [f"Bag {items[0]}"],
            "stime": [time.removesuffix(" UTC") for time in times],
        }
        pq.write_table(pa.table(table), folder / f"00000000000{number}.parquet")
    return [("1", "6"), ("1", "5")], {"5": "Bag 5", "6": "Bag 6"}


def microlens(folder: Path) -> Written:
    (folder / "MicroLens-100k_pairs.csv").write_text("user,item,timestamp\n1,11,1654\n1,12,1653\n")
    (folder / "MicroLens-100k_title_en.csv").write_text('item,title\n11,"Cat, dog"\n12,Rain\n')
    return [("1", "12"), ("1", "11")], {"11": "Cat, dog", "12": "Rain"}


WRITERS: dict[str, Callable[[Path], Written]] = {
    "steam": steam,
    "goodreads": goodreads,
    "lastfm": lastfm,
    "yelp": yelp,
    "book-crossing": book_crossing,
    "kuairec": kuairec,
    "mind": mind,
    "netflix": netflix,
    "merrec": merrec,
    "microlens": microlens,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("asked", ["auto", "by name"])
def test_a_data_set_is_known_by_its_files(tmp_path: Path, name: str, asked: str) -> None:
    wanted, titles = WRITERS[name](tmp_path)
    columns = Columns(timestamp=None) if name == "book-crossing" else None
    allowed = int(name == "steam")  # some games have no id
    raw = read_source(
        tmp_path, "auto" if asked == "auto" else name, columns=columns, max_bad_rows=allowed
    )
    assert raw.format == name
    log = raw.interactions
    rows = sorted(
        zip(log.timestamp.tolist(), log.source_row.tolist(), log.user, log.position, strict=True)
    )
    assert [(log.user_ids[u], raw.item_ids[p]) for _, _, u, p in rows] == wanted
    assert dict(zip(raw.item_ids.tolist(), raw.titles.tolist(), strict=True)) == titles
    assert (raw.bad_rows.count, raw.untitled_items) == (allowed, 0)
