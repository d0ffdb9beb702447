"""What a recognised source is: its files, how each is laid out, which column plays which role.

Also how a recipe may say it (`Columns`, `ItemColumns`, `Reading`). Reads names, headers, no rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from llmrec.data.records import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from llmrec.data.sources.delimited import Delimited, column_names
from llmrec.data.sources.jsonl import keys_of, written_as
from llmrec.data.sources.opening import AUTO, packing, written_in
from llmrec.data.sources.parquet import parquet_columns
from llmrec.errors import DataError

YEAR, BRAND, GENRES = "year", "brand", "genres"  # roles that only some items files fill
EVENT = "event"  # a role that only a filter of events fills
PARQUET, JSONL, NETFLIX, MIND = "parquet", "jsonl", "netflix", "mind"


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a file of one's own; rating and title may be missing there.

    `timestamp` None: the rows stand in the order of time.
    """

    user_id: str = USER_ID
    item_id: str = ITEM_ID
    timestamp: str | None = TIMESTAMP
    rating: str | None = RATING
    title: str | None = TITLE

    def over(self, usual: Mapping[str, str]) -> dict[str, str]:
        """The usual columns of a known layout (role -> name), with what was said instead."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {f.name for f in fields(self) if said[f.name] != f.default}
        chosen = {role: said[role] if role in changed else name for role, name in usual.items()}
        chosen |= {role: said[role] for role in changed - set(usual)}
        return {role: name for role, name in chosen.items() if name is not None}


@dataclass(frozen=True)
class ItemColumns:
    """Names of the columns of the items file; None: as in the interactions, or the usual one."""

    item_id: str | None = None
    title: str | None = None
    year: str | None = None
    brand: str | None = None
    genres: str | None = None


@dataclass(frozen=True)
class Events:
    """The column that says what kind of event a row is, and the kinds that are interactions."""

    column: str
    keep: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """How files are written, where it is not to be found out, whether every row is rated, and
    which rows are read."""

    delimiter: str | None = None
    encoding: str = AUTO
    timestamp_format: str = AUTO
    items: ItemColumns = ItemColumns()
    rated: bool = False
    events: Events | None = None


@dataclass(frozen=True)
class TableFile:
    """One file, how to read it, and which of its columns plays which role.

    `more` are further files of the same layout, read after it. `keep`: the values of the EVENT
    column whose rows are read; empty: all rows are.
    """

    path: Path
    layout: Delimited | str
    columns: Mapping[str, str]
    encoding: str = AUTO
    timestamp_format: str = AUTO
    rated: bool = False
    more: tuple[Path, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All its files, in order."""
        return (self.path, *self.more)


@dataclass(frozen=True)
class Layout:
    """A recognised source. Titles come from `items`, or where that is None from `interactions`."""

    format: str
    interactions: TableFile
    items: TableFile | None


def names_in(path: Path, layout: Delimited | str, encoding: str = AUTO) -> tuple[str, ...]:
    """Column names (or keys) a file has."""
    if isinstance(layout, Delimited):
        return column_names(path, layout, encoding)
    if layout in (NETFLIX, MIND):
        return (USER_ID, ITEM_ID, RATING, TIMESTAMP) if layout == NETFLIX else ()
    return parquet_columns(path) if layout == PARQUET else keys_of(path, encoding)


def available(file: TableFile) -> tuple[str, ...]:
    """Column names (or keys) the file has."""
    return names_in(file.path, file.layout, file.encoding)


def described(file: TableFile, notices: Sequence[str] = ()) -> dict[str, object]:
    """How a file was understood: what it is, what divides and packs it, and its columns' roles.

    `notices`: what was noticed while it was read.
    """
    found: dict[str, object] = {"file": ", ".join(path.name for path in file.paths)}
    if file.layout == JSONL:
        found["written as"] = written_as(file.path, file.encoding)
    elif isinstance(file.layout, Delimited):
        found["delimiter"] = file.layout.delimiter
    if file.layout != PARQUET:
        found["packed as"] = packing(file.path) or "plain"
        western = any(text.startswith(f"{file.path.name} is not UTF-8") for text in notices)
        found["encoding"] = "cp1252" if western else written_in(file.path, file.encoding)
    return found | {"columns": dict(file.columns)}


def require(path: Path, names: tuple[str, ...], roles: Mapping[str, str], optional: object) -> None:
    """Raise DataError unless the file has the column of every role but the `optional` ones."""
    missing = [
        f"{role} ({name!r})"
        for role, name in roles.items()
        if name not in names and role not in optional  # type: ignore[operator]
    ]
    if missing:
        raise missing_columns(path, names, missing)


def missing_columns(
    path: Path, names: tuple[str, ...], missing: list[str], key: str = "data.columns"
) -> DataError:
    """What is missing, what is there, what the file looks like, and what to do."""
    hint = looks_like(path, names)
    advice = hint or f"Map them in {key}."
    if any(text.startswith(TIMESTAMP) for text in missing) and not hint:
        advice += (
            " Where there is no time and the rows stand in its order, set "
            "data.columns.timestamp: null."
        )
    return DataError(
        f"{path} has no column for {', '.join(missing)}; it has {', '.join(names)}. {advice}"
    )


def looks_like(path: Path, names: tuple[str, ...]) -> str:
    """What the first line shows of a file that was taken for something else; "" for nothing."""
    first = names[0] if names else ""
    if first.startswith(("{'", "{u'", '{"', "[{")) or first.strip() == "[":
        return f"Its first line begins with {first[:2]!r}, as JSON does: set data.format: jsonl."
    if first.startswith("PAR1"):
        return "It begins with 'PAR1', as Parquet does: set data.format: parquet."
    if len(names) == 1:
        for mark, said in ((";", ";"), ("\t", "\\t"), ("|", "|"), (",", ","), ("::", "::")):
            if mark in first:
                return (
                    f"Its first line is divided by {mark!r} ({first.count(mark) + 1} columns): set "
                    f'data.delimiter: "{said}".'
                )
    return ""
