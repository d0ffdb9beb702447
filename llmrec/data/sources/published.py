"""The published layouts: which files a data set comes as, and which columns play which role.

MovieLens, RecBole's atomic files, Amazon Reviews 2018 and 2023, Steam, Goodreads (UCSD), LastFM
(HetRec), Yelp, Book-Crossing, KuaiRec, MIND, Netflix, MerRec, MicroLens. Reads names and headers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmrec.data.records import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from llmrec.data.sources.delimited import Delimited, column_names
from llmrec.data.sources.jsonl import keys_of
from llmrec.data.sources.layouts import (
    BRAND,
    GENRES,
    JSONL,
    MIND,
    NETFLIX,
    PARQUET,
    YEAR,
    Columns,
    Layout,
    TableFile,
    names_in,
    require,
)
from llmrec.data.sources.opening import AUTO
from llmrec.data.sources.titles import FLAGS
from llmrec.errors import DataError

CSV, TSV = Delimited(",", quoted=True), Delimited("\t", quoted=True)
PACKINGS = ("", ".gz", ".bz2", ".zip", ".zst")
_U_ITEM = ("item_id", "title", "release_date", "video_release_date", "imdb_url", *FLAGS)
_RATINGS = ("user_id", "item_id", "rating", "timestamp")
SAME_NAMES = {name: name for name in (USER_ID, ITEM_ID, TIMESTAMP, RATING)}
# Amazon 2018 as "ratings only" has no header, and the item comes first.
_AMAZON_2018_RATINGS = Delimited(",", names=("item_id", "user_id", "rating", "timestamp"))
_ITEMS = {ITEM_ID: ITEM_ID, TITLE: TITLE}


@dataclass(frozen=True)
class Named:
    """A data set whose files have names of their own.

    `files` and `items` are patterns for their stems and ends; `columns` and `about` give role ->
    name. A file that lacks a column of `telling` is no file of this data set.
    """

    name: str
    files: str
    layout: Delimited | str
    columns: Mapping[str, str]
    items: str = ""
    items_layout: Delimited | str = CSV
    about: Mapping[str, str] = ()  # type: ignore[assignment]
    timestamp_format: str = AUTO
    encoding: str = AUTO
    telling: tuple[str, ...] = ()
    several: bool = False


_USER = {USER_ID: "user_id"}
_BX = Delimited(";", quoted=True, escaped=True)
_WESTERN_DATES = "%m/%d/%Y %I:%M:%S %p"
_GOODREADS_DATES = "%a %b %d %H:%M:%S %z %Y"
_MOVIELENS = (
    Named(
        "movielens",
        "u.data",
        Delimited("\t", names=_RATINGS),
        SAME_NAMES,
        "u.item",
        Delimited("|", names=_U_ITEM, latin1=True),
        _ITEMS | {flag: flag for flag in FLAGS},
    ),
    Named(
        "movielens",
        "ratings.dat",
        Delimited("::", names=_RATINGS),
        SAME_NAMES,
        "movies.dat",
        Delimited("::", names=("item_id", "title", "genres"), latin1=True),
        _ITEMS,
    ),
    Named(
        "movielens",
        "ratings.csv",
        CSV,
        {USER_ID: "userId", ITEM_ID: "movieId", RATING: "rating", TIMESTAMP: "timestamp"},
        "movies.csv",
        CSV,
        {ITEM_ID: "movieId", TITLE: "title"},
    ),
)
_OTHERS = (
    Named(
        "steam",
        "*steam_reviews*.json",
        JSONL,
        {USER_ID: "username", ITEM_ID: "product_id", TIMESTAMP: "date"},
        "*steam_games*.json",
        JSONL,
        {ITEM_ID: "id", TITLE: "app_name"},
        telling=("username", "product_id"),
    ),
    Named(
        "goodreads",
        "goodreads_interactions*.json",
        JSONL,
        {**_USER, ITEM_ID: "book_id", TIMESTAMP: "date_updated", RATING: "rating"},
        "goodreads_books*.json",
        JSONL,
        {ITEM_ID: "book_id", TITLE: "title"},
        timestamp_format=_GOODREADS_DATES,
        telling=("book_id", "date_updated"),
    ),
    Named(
        "lastfm",
        "user_taggedartists-timestamps.dat",
        Delimited("\t"),
        {USER_ID: "userID", ITEM_ID: "artistID", TIMESTAMP: "timestamp"},
        "artists.dat",
        Delimited("\t"),
        {ITEM_ID: "id", TITLE: "name"},
    ),
    Named(
        "yelp",
        "yelp_academic_dataset_review.json",
        JSONL,
        {**_USER, ITEM_ID: "business_id", TIMESTAMP: "date", RATING: "stars"},
        "yelp_academic_dataset_business.json",
        JSONL,
        {ITEM_ID: "business_id", TITLE: "name"},
    ),
    Named(
        "book-crossing",
        "BX-Book-Ratings.csv",
        _BX,
        {USER_ID: "User-ID", ITEM_ID: "ISBN", RATING: "Book-Rating"},
        "BX-Books.csv",
        _BX,
        {ITEM_ID: "ISBN", TITLE: "Book-Title", YEAR: "Year-Of-Publication", BRAND: "Book-Author"},
    ),
    Named(
        "kuairec",
        "big_matrix.csv",
        CSV,
        {**_USER, ITEM_ID: "video_id", TIMESTAMP: "timestamp", RATING: "watch_ratio"},
        "kuairec_caption_category.csv",
        CSV,
        {ITEM_ID: "video_id", TITLE: "caption"},
    ),
    Named(
        "mind",
        "behaviors.tsv",
        MIND,
        {USER_ID: USER_ID, ITEM_ID: ITEM_ID, TIMESTAMP: TIMESTAMP},
        "news.tsv",
        Delimited(
            "\t",
            names=(
                "item_id",
                "category",
                "subcategory",
                "title",
                "abstract",
                "url",
                "entities",
                "more",
            ),
        ),
        _ITEMS,
        timestamp_format=_WESTERN_DATES,
    ),
    Named(
        "netflix",
        "combined_data_*.txt",
        NETFLIX,
        SAME_NAMES,
        "movie_titles.csv",
        Delimited(",", names=("item_id", "year", "title"), latin1=True, rest_in_last=True),
        {**_ITEMS, YEAR: YEAR},
        several=True,
    ),
    Named(
        "merrec",
        "*.parquet",
        PARQUET,
        {**_USER, ITEM_ID: "product_id", TIMESTAMP: "stime", TITLE: "name"},
        telling=("sequence_id", "session_id", "event_id"),
        several=True,
    ),
    Named(
        "microlens",
        "MicroLens*_pairs.csv",
        CSV,
        {USER_ID: "user", ITEM_ID: "item", TIMESTAMP: "timestamp"},
        "MicroLens*_title_en.csv",
        CSV,
        {ITEM_ID: "item", TITLE: "title"},
    ),
)

Recogniser = Callable[[Path, Path | None, Columns], Layout | None]


def recognisers() -> dict[str, list[Recogniser]]:
    """What finds each data set by its name: from a folder or a file of it, its layout or None."""
    found: dict[str, list[Recogniser]] = {
        "movielens": [_recogniser(named) for named in _MOVIELENS],
        "recbole": [_recbole],
        "amazon2023": [_amazon2023],
        "amazon2018": [_amazon2018],
    }
    return found | {named.name: [_recogniser(named)] for named in _OTHERS}


def _recogniser(named: Named) -> Recogniser:
    def recognised(folder: Path, file: Path | None, columns: Columns) -> Layout | None:
        return _named(named, folder, file, columns)

    return recognised


def _named(named: Named, folder: Path, file: Path | None, columns: Columns) -> Layout | None:
    files = _matching(folder, named.files)
    if file is not None:
        files = [file] if file in files else []
    if not files or (len(files) > 1 and not named.several and named.layout != JSONL):
        return None
    items = _matching(folder, named.items) if named.items else []
    if named.name == "movielens" and not items:
        return None
    if named.layout == PARQUET and not set(named.telling) <= set(names_in(files[0], PARQUET)):
        return None
    names = names_in(files[0], named.layout, named.encoding)
    usual = {r: n for r, n in named.columns.items() if r != RATING or n in names or not names}
    other = named.layout == CSV and named.name == "movielens" and not {*usual.values()} <= {*names}
    if other and not _said(columns, names):
        return None  # another table by this name
    roles = columns.over(usual)
    if names:
        require(files[0], names, roles, (RATING, TITLE))
        roles = {role: name for role, name in roles.items() if name in names}
    interactions = TableFile(
        files[0], named.layout, roles, named.encoding, named.timestamp_format, more=tuple(files[1:])
    )
    about = _about(named, items, columns) if items else None
    return Layout(named.name, interactions, about)


def _about(named: Named, items: list[Path], columns: Columns) -> TableFile:
    names = names_in(items[0], named.items_layout, named.encoding)
    usual = dict(named.about)
    if columns.item_id != ITEM_ID and columns.item_id in names:
        usual[ITEM_ID] = columns.item_id
    if columns.title not in (None, TITLE) and columns.title in names:
        usual[TITLE] = columns.title
    require(items[0], names, usual, (YEAR, BRAND, GENRES, *FLAGS))
    roles = {role: name for role, name in usual.items() if name in names}
    return TableFile(items[0], named.items_layout, roles, named.encoding)


def _said(columns: Columns, names: Iterable[str]) -> bool:
    return {columns.user_id, columns.item_id} <= set(names)


def _matching(folder: Path, pattern: str) -> list[Path]:
    found = [path for packing in PACKINGS for path in folder.glob(pattern + packing)]
    return sorted(path for path in found if path.is_file())


def _recbole(folder: Path, file: Path | None, columns: Columns) -> Layout | None:
    found = [file] if file is not None else sorted(folder.glob("*.inter"))
    found = [entry for entry in found if entry.suffix == ".inter"]
    if not found:
        return None
    if len(found) > 1:
        raise DataError(
            f"{folder} has {len(found)} .inter files "
            f"({', '.join(entry.name for entry in found[:8])}). Name one of them in data.source."
        )
    layout = Delimited("\t", typed_header=True)
    names = column_names(found[0], layout)
    usual = {role: name for role, name in SAME_NAMES.items() if role != RATING or name in names}
    if columns.item_id == ITEM_ID and ITEM_ID not in names:
        others = [name for name in names if name.endswith("_id") and name != USER_ID]
        if len(others) == 1:  # business_id, artist_id, ...: the one id beside the user's
            usual[ITEM_ID] = others[0]
    if columns.timestamp == TIMESTAMP and TIMESTAMP not in names and "date" in names:
        usual[TIMESTAMP] = "date"
    roles = columns.over(usual)
    require(found[0], names, roles, (RATING, TITLE))
    roles = {role: name for role, name in roles.items() if name in names}
    items = found[0].with_suffix(".item")
    return Layout(
        "recbole",
        TableFile(found[0], layout, roles),
        _recbole_items(items, layout, roles[ITEM_ID], columns) if items.is_file() else None,
    )


def _recbole_items(path: Path, layout: Delimited, item_id: str, columns: Columns) -> TableFile:
    names = column_names(path, layout)
    chosen = {ITEM_ID: item_id}
    asked = () if columns.title is None else (columns.title,)
    for role, choices in (
        (TITLE, (*asked, "movie_title", "title", "name", "item_name", "business_name")),
        (YEAR, ("release_year", "year")),
        (BRAND, ("brand", "store", "artist", "author")),
        (GENRES, ("class", "genre", "genres", "categories", "category")),
    ):
        found = next((name for name in choices if name in names), None)
        if found is not None:
            chosen[role] = found
    if TITLE not in chosen:
        raise DataError(
            f"{path} has no title column; found {', '.join(names)}. "
            "Name it in data.columns.title, or give a file with titles in data.items."
        )
    require(path, names, chosen, ())
    return TableFile(path, layout, chosen)


def _amazon2023(folder: Path, file: Path | None, columns: Columns) -> Layout | None:
    reviews = _amazon_file(folder, file, (".jsonl", ".csv"))
    if reviews is None:
        return None
    meta = first_of(folder, f"meta_{stem_of(reviews)}", (".jsonl",))
    layout: Delimited | str = CSV if suffix_of(reviews) == ".csv" else JSONL
    names = names_in(reviews, layout)
    if "parent_asin" not in names:
        return None
    roles = columns.over(SAME_NAMES | {ITEM_ID: "parent_asin"})
    require(reviews, names, roles, (RATING, TITLE))
    about = {ITEM_ID: "parent_asin", TITLE: "title", BRAND: "store"}
    items = None if meta is None else TableFile(meta, JSONL, about)
    return Layout("amazon2023", TableFile(reviews, layout, roles), items)


def _amazon2018(folder: Path, file: Path | None, columns: Columns) -> Layout | None:
    reviews = _amazon_file(folder, file, (".json", ".csv"))
    if reviews is None:
        return None
    meta = first_of(folder, f"meta_{stem_of(reviews).removesuffix('_5')}", (".json",))
    about = {ITEM_ID: "asin", TITLE: "title", BRAND: "brand"}
    items = None if meta is None else TableFile(meta, JSONL, about)
    if suffix_of(reviews) == ".csv":
        if meta is None or len(column_names(reviews, Delimited(","))) != 4:
            return None
        return Layout("amazon2018", TableFile(reviews, _AMAZON_2018_RATINGS, SAME_NAMES), items)
    names = keys_of(reviews)
    if not {"reviewerID", "asin", "unixReviewTime"} <= set(names):
        return None
    roles = columns.over(
        {USER_ID: "reviewerID", ITEM_ID: "asin", RATING: "overall", TIMESTAMP: "unixReviewTime"}
    )
    require(reviews, names, roles, (RATING, TITLE))
    return Layout("amazon2018", TableFile(reviews, JSONL, roles), items)


def _amazon_file(folder: Path, file: Path | None, suffixes: tuple[str, ...]) -> Path | None:
    """The reviews file: the one named, or the first beside a meta_ file of the same stem."""
    if file is not None:
        return file if suffix_of(file) in suffixes else None
    for meta in sorted(folder.glob("meta_*")):
        stem = stem_of(meta).removeprefix("meta_")
        for name in (f"{stem}_5", stem):
            found = first_of(folder, name, suffixes)
            if found is not None:
                return found
    return None


def stem_of(path: Path) -> str:
    """A file's name without what it is packed with and without its kind."""
    name = path.name
    for packing in PACKINGS[1:]:
        name = name.removesuffix(packing)
    return name.rpartition(".")[0] or name


def suffix_of(path: Path) -> str:
    """A file's kind by its name, ".csv", whatever it is packed with."""
    name = path.name.lower()
    for packing in PACKINGS[1:]:
        name = name.removesuffix(packing)
    dot, kind = name.rpartition(".")[1:]
    return dot + kind if dot else ""


def first_of(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path | None:
    """The first file of a stem and a kind, packed or not."""
    paths = (folder / f"{stem}{kind}{packing}" for kind in suffixes for packing in PACKINGS)
    return next((path for path in paths if path.is_file()), None)
