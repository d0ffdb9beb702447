"""Which files of a folder hold the interactions and the items, and how they are laid out.

Knows the published layouts of MovieLens, Amazon Reviews 2018 and 2023, RecBole's atomic files, and
plain CSV, TSV, JSON Lines and Parquet. Reads names and headers, no rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmrec.data.records import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from llmrec.data.sources.delimited import Delimited, column_names
from llmrec.data.sources.jsonl import keys_of
from llmrec.data.sources.parquet import parquet_columns
from llmrec.errors import DataError

YEAR, BRAND = "year", "brand"  # roles that only some items files fill
AUTO = "auto"
FORMATS = (
    AUTO,
    "movielens",
    "recbole",
    "amazon2023",
    "amazon2018",
    "csv",
    "tsv",
    "jsonl",
    "parquet",
)
PARQUET, JSONL = "parquet", "jsonl"

_CSV, _TSV = Delimited(",", quoted=True), Delimited("\t", quoted=True)
_DOUBLE_COLON = Delimited("::", latin1=True)
_GENRES = tuple(f"genre_{number}" for number in range(19))
_U_ITEM = ("item_id", "title", "release_date", "video_release_date", "imdb_url", *_GENRES)
_RATINGS = ("user_id", "item_id", "rating", "timestamp")
# Amazon 2018 as "ratings only" has no header, and the item comes first.
_AMAZON_2018_RATINGS = Delimited(",", names=("item_id", "user_id", "rating", "timestamp"))
_REQUIRED = (USER_ID, ITEM_ID, TIMESTAMP)
_SAME_NAMES = {name: name for name in (*_REQUIRED, RATING)}


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a file of one's own; rating and title may be missing there."""

    user_id: str = USER_ID
    item_id: str = ITEM_ID
    timestamp: str = TIMESTAMP
    rating: str | None = RATING
    title: str | None = TITLE


@dataclass(frozen=True)
class TableFile:
    """One file, how to read it, and which of its columns plays which role."""

    path: Path
    layout: Delimited | str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """A recognised source. Titles come from `items`, or where that is None from `interactions`."""

    format: str
    interactions: TableFile
    items: TableFile | None


def recognise(
    path: Path, format_name: str = AUTO, items: Path | None = None, columns: Columns | None = None
) -> Layout:
    """The layout of a file or folder; DataError where it is not what `format_name` says."""
    columns = columns or Columns()
    if format_name not in FORMATS:
        raise DataError(f"data.format is {format_name!r}; allowed: {', '.join(FORMATS)}")
    if not path.exists():
        raise DataError(f"data.source {path} does not exist")
    folder = _inner(path) if path.is_dir() else path.parent
    found = None
    own_columns = path.is_file() and columns != Columns()
    if format_name not in _EXTENSIONS and not (format_name == AUTO and own_columns):
        for name, recogniser in (
            ("movielens", _movielens),
            ("recbole", _recbole),
            ("amazon2023", _amazon2023),
            ("amazon2018", _amazon2018),
        ):
            if format_name in (AUTO, name) and found is None:
                found = recogniser(folder, path if path.is_file() else None)
    if found is None and format_name in (AUTO, *_EXTENSIONS):
        found = _plain(folder, path if path.is_file() else None, format_name, columns)
    if found is None:
        raise DataError(
            f"{path}: no {'known data set' if format_name == AUTO else format_name} found among "
            f"its files ({_listing(folder)}). Name the file in data.source and its kind in "
            "data.format; columns are mapped in data.columns."
        )
    return (
        found
        if items is None
        else Layout(found.format, found.interactions, _items_file(items, found, columns))
    )


def available(file: TableFile) -> tuple[str, ...]:
    """Column names (or keys) the file has."""
    return _names(file.path, file.layout)


def _names(path: Path, layout: Delimited | str) -> tuple[str, ...]:
    if isinstance(layout, Delimited):
        return column_names(path, layout)
    return parquet_columns(path) if layout == PARQUET else keys_of(path)


def _inner(folder: Path) -> Path:
    """The folder itself, or the one folder in it: archives unpack to a folder in a folder."""
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
    return _inner(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"


def _movielens(folder: Path, file: Path | None) -> Layout | None:
    renamed = {USER_ID: "userId", ITEM_ID: "movieId", RATING: "rating", TIMESTAMP: "timestamp"}
    dat = Delimited("::", names=_RATINGS)
    for ratings, layout, columns, movies, movie_layout, movie_columns in (
        (
            "u.data",
            Delimited("\t", names=_RATINGS),
            _SAME_NAMES,
            "u.item",
            Delimited("|", names=_U_ITEM, latin1=True),
            {ITEM_ID: ITEM_ID, TITLE: TITLE},
        ),
        (
            "ratings.dat",
            dat,
            _SAME_NAMES,
            "movies.dat",
            Delimited("::", names=("item_id", "title", "genres"), latin1=True),
            {ITEM_ID: ITEM_ID, TITLE: TITLE},
        ),
        ("ratings.csv", _CSV, renamed, "movies.csv", _CSV, {ITEM_ID: "movieId", TITLE: "title"}),
    ):
        if file is not None and file.name != ratings:
            continue
        if (folder / ratings).is_file() and (folder / movies).is_file():
            return Layout(
                "movielens",
                TableFile(folder / ratings, layout, columns),
                TableFile(folder / movies, movie_layout, movie_columns),
            )
    return None


def _recbole(folder: Path, file: Path | None) -> Layout | None:
    found = [file] if file is not None else sorted(folder.glob("*.inter"))
    found = [entry for entry in found if entry.suffix == ".inter"]
    if not found:
        return None
    if len(found) > 1:
        raise DataError(
            f"{folder} has {len(found)} .inter files ({_listing(folder)}). "
            "Name one of them in data.source."
        )
    layout = Delimited("\t", typed_header=True)
    items = found[0].with_suffix(".item")
    names = column_names(found[0], layout)
    columns = {role: name for role, name in _SAME_NAMES.items() if name in names}
    return Layout(
        "recbole",
        TableFile(found[0], layout, columns),
        _recbole_items(items, layout) if items.is_file() else None,
    )


def _recbole_items(path: Path, layout: Delimited) -> TableFile:
    names = column_names(path, layout)
    columns = {ITEM_ID: ITEM_ID}
    for role, choices in (
        (TITLE, ("movie_title", "title", "name", "item_name")),
        (YEAR, ("release_year", "year")),
        (BRAND, ("brand", "store", "artist", "author")),
    ):
        found = next((name for name in choices if name in names), None)
        if found is not None:
            columns[role] = found
    if TITLE not in columns:
        raise DataError(
            f"{path} has no title column; found {', '.join(names)}. "
            "Give a file with titles in data.items."
        )
    return TableFile(path, layout, columns)


def _amazon2023(folder: Path, file: Path | None) -> Layout | None:
    reviews = _amazon_file(folder, file, (".jsonl", ".jsonl.gz", ".csv", ".csv.gz"))
    if reviews is None:
        return None
    meta = _first(folder, f"meta_{_stem(reviews)}", (".jsonl", ".jsonl.gz"))
    if _suffix(reviews).startswith(".csv"):
        layout: Delimited | str = _CSV
        if "parent_asin" not in column_names(reviews, _CSV):
            return None
    else:
        layout = JSONL
        if "parent_asin" not in keys_of(reviews):
            return None
    columns = _SAME_NAMES | {ITEM_ID: "parent_asin"}
    about = {ITEM_ID: "parent_asin", TITLE: "title", BRAND: "store"}
    items = None if meta is None else TableFile(meta, JSONL, about)
    return Layout("amazon2023", TableFile(reviews, layout, columns), items)


def _amazon2018(folder: Path, file: Path | None) -> Layout | None:
    reviews = _amazon_file(folder, file, (".json.gz", ".json", ".csv", ".csv.gz"))
    if reviews is None:
        return None
    meta = _first(folder, f"meta_{_stem(reviews).removesuffix('_5')}", (".json.gz", ".json"))
    about = {ITEM_ID: "asin", TITLE: "title", BRAND: "brand"}
    items = None if meta is None else TableFile(meta, JSONL, about)
    if _suffix(reviews).startswith(".csv"):
        if meta is None or len(column_names(reviews, Delimited(","))) != 4:
            return None
        return Layout("amazon2018", TableFile(reviews, _AMAZON_2018_RATINGS, _SAME_NAMES), items)
    if not {"reviewerID", "asin", "unixReviewTime"} <= set(keys_of(reviews)):
        return None
    columns = {
        USER_ID: "reviewerID",
        ITEM_ID: "asin",
        RATING: "overall",
        TIMESTAMP: "unixReviewTime",
    }
    return Layout("amazon2018", TableFile(reviews, JSONL, columns), items)


def _amazon_file(folder: Path, file: Path | None, suffixes: tuple[str, ...]) -> Path | None:
    """The reviews file: the one named, or the first beside a meta_ file of the same stem."""
    if file is not None:
        return file if _suffix(file) in suffixes else None
    for meta in sorted(folder.glob("meta_*")):
        stem = _stem(meta).removeprefix("meta_")
        for name in (f"{stem}_5", stem):
            found = _first(folder, name, suffixes)
            if found is not None:
                return found
    return None


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0]


def _suffix(path: Path) -> str:
    return path.name.removeprefix(_stem(path)).lower()


def _first(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path | None:
    paths = (folder / f"{stem}{suffix}" for suffix in suffixes)
    return next((path for path in paths if path.is_file()), None)


_EXTENSIONS: dict[str, tuple[Delimited | str, tuple[str, ...]]] = {
    "parquet": (PARQUET, (".parquet",)),
    "csv": (_CSV, (".csv", ".csv.gz")),
    "tsv": (_TSV, (".tsv", ".tsv.gz")),
    "jsonl": (JSONL, (".jsonl", ".jsonl.gz", ".json", ".json.gz")),
}


def _plain(folder: Path, file: Path | None, format_name: str, columns: Columns) -> Layout | None:
    """A table of one's own: the file named, or `interactions.*` (and `items.*`) in a folder."""
    for name, (layout, suffixes) in _EXTENSIONS.items():
        if file is None:
            if format_name not in (AUTO, name):
                continue
            interactions = _first(folder, "interactions", suffixes)
            items = _first(folder, "items", suffixes)
        else:
            if format_name != name and not (format_name == AUTO and _suffix(file) in suffixes):
                continue
            interactions, items = file, None
        if interactions is None:
            continue
        roles = _roles(interactions, layout, columns, (*_REQUIRED,))
        found = Layout(name, TableFile(interactions, layout, roles), None)
        if items is None:
            return found
        return Layout(name, found.interactions, _items_file(items, found, columns))
    return None


def _items_file(path: Path, found: Layout, columns: Columns) -> TableFile:
    """An items file of one's own: its kind by its name, its columns by the mapping."""
    if not path.is_file():
        raise DataError(f"data.items {path} does not exist")
    for layout, suffixes in _EXTENSIONS.values():
        if _suffix(path) in suffixes:
            roles = _roles(path, layout, columns, (ITEM_ID, TITLE))
            return TableFile(
                path, layout, {r: c for r, c in roles.items() if r in (ITEM_ID, TITLE, BRAND)}
            )
    if found.items is not None and path.suffix == found.items.path.suffix:
        return TableFile(path, found.items.layout, found.items.columns)
    raise DataError(f"data.items {path}: its name must end in .parquet, .csv, .tsv or .jsonl")


def _roles(
    path: Path, layout: Delimited | str, columns: Columns, required: tuple[str, ...]
) -> dict[str, str]:
    names = _names(path, layout)
    wanted = {
        USER_ID: columns.user_id,
        ITEM_ID: columns.item_id,
        TIMESTAMP: columns.timestamp,
        RATING: columns.rating,
        TITLE: columns.title,
        BRAND: BRAND,
    }
    roles = {role: name for role, name in wanted.items() if name is not None and name in names}
    missing = [f"{role} ({wanted[role]!r})" for role in required if role not in roles]
    if columns.rating not in (None, RATING) and RATING not in roles and USER_ID in required:
        missing.append(f"{RATING} ({columns.rating!r})")
    if missing:
        raise DataError(
            f"{path} has no column for {', '.join(missing)}; it has "
            f"{', '.join(names)}. Map them in data.columns."
        )
    return roles
