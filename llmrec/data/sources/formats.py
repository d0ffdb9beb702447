"""Which files of a folder hold the interactions and the items, and how they are laid out.

Asks the published layouts (`published`) and knows plain CSV, TSV, JSON and Parquet. One layout has
to match: two are an error, and a column that is missing is named with what there is instead.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmrec.data.records import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from llmrec.data.sources.delimited import Delimited
from llmrec.data.sources.layouts import (
    BRAND,
    EVENT,
    GENRES,
    JSONL,
    PARQUET,
    YEAR,
    Columns,
    Events,
    ItemColumns,
    Layout,
    Reading,
    TableFile,
    available,
    missing_columns,
    names_in,
)
from llmrec.data.sources.opening import AUTO
from llmrec.data.sources.parts import is_pattern, matching, parts_in
from llmrec.data.sources.published import CSV, TSV, first_of, recognisers, suffix_of
from llmrec.errors import DataError

_KINDS: dict[str, tuple[Delimited | str, tuple[str, ...]]] = {
    "parquet": (PARQUET, (".parquet",)),
    "csv": (CSV, (".csv",)),
    "tsv": (TSV, (".tsv",)),
    "jsonl": (JSONL, (".jsonl", ".json")),
}
PART = "part-"
FORMATS = (AUTO, *recognisers(), *_KINDS)


def recognise(
    path: Path,
    format_name: str = AUTO,
    items: Path | None = None,
    columns: Columns | None = None,
    reading: Reading | None = None,
) -> Layout:
    """The layout of a file or folder; DataError where it is not what `format_name` says."""
    columns, reading = columns or Columns(), reading or Reading()
    if format_name not in FORMATS:
        raise DataError(f"data.format is {format_name!r}; allowed: {', '.join(FORMATS)}")
    named = matching(path) if is_pattern(path) else ()
    path = named[0] if named else path
    if not path.exists():
        raise DataError(f"data.source {path} does not exist")
    folder = _inner(path) if path.is_dir() else path.parent
    file = path if path.is_file() else None
    # A file by itself of which anything is said is a file of one's own.
    plain = columns == Columns() and (reading.delimiter, reading.encoding) == (None, AUTO)
    own = file is not None and not plain and suffix_of(file) in _all_suffixes()
    found = []
    for name, several in recognisers().items():
        if len(named) < 2 and (format_name == name or (format_name == AUTO and not own)):
            layouts = (recognised(folder, file, columns) for recognised in several)
            found += [layout for layout in layouts if layout is not None]
    if (format_name in (AUTO, *_KINDS) or named) and not (file and found):
        found += _plain(folder, file, format_name, columns, reading, items is not None)
    if len(found) > 1:
        both = " and ".join(f"{one.interactions.path.name} ({one.format})" for one in found[:2])
        raise DataError(
            f"{path} can be read in two ways: {both}. Name the file that is meant in data.source, "
            "or its kind in data.format."
        )
    if not found:
        raise DataError(
            f"{path}: no {'known data set' if format_name == AUTO else format_name} found among "
            f"its files ({_listing(folder)}). Name the file in data.source and its kind in "
            "data.format; columns are mapped in data.columns."
        )
    layout = _with_parts(found[0], named or _parts_of(found[0]), reading)
    if items is not None:
        layout = replace(layout, items=_items_file(items, layout, columns, reading))
    return _as_said(layout, reading)


def _as_said(layout: Layout, reading: Reading) -> Layout:
    """With the encoding, the form of times and the need of ratings that the recipe gives."""

    def told(file: TableFile, events: Events | None = None) -> TableFile:
        encoding = file.encoding if reading.encoding == AUTO else reading.encoding
        times = reading.timestamp_format
        times = file.timestamp_format if times == AUTO else times
        file = replace(file, encoding=encoding, timestamp_format=times, rated=reading.rated)
        if events is None:
            return file
        return replace(file, columns={**file.columns, EVENT: events.column}, keep=events.keep)

    items = None if layout.items is None else told(layout.items)
    if reading.events is not None:
        names = available(layout.interactions)
        if names and reading.events.column not in names:
            missing = [f"{EVENT} ({reading.events.column!r})"]
            raise missing_columns(layout.interactions.path, names, missing, "data.events.column")
    return Layout(layout.format, told(layout.interactions, reading.events), items)


def _parts_of(layout: Layout) -> tuple[Path, ...]:
    """The other part-* files beside the first."""
    path = layout.interactions.path
    named = layout.format in _KINDS and path.name.startswith(PART)
    return _parts(path.parent, _KINDS[layout.format][1]) if named else ()


def _parts(folder: Path, suffixes: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(path for path in parts_in(folder) if suffix_of(path) in suffixes)


def _with_parts(layout: Layout, parts: Sequence[Path], reading: Reading) -> Layout:
    """All the files of the interactions; DataError where one has other columns than the first."""
    if len(parts) < 2:
        return layout
    first = layout.interactions
    names = names_in(first.path, first.layout, reading.encoding)
    for path in parts[1:]:
        others = names_in(path, first.layout, reading.encoding)
        if first.layout != JSONL and set(others) != set(names):
            raise DataError(
                f"{path} has the columns {', '.join(others)} and {first.path.name} has "
                f"{', '.join(names)}; files that are read as one table need the same columns."
            )
    return replace(layout, interactions=replace(first, more=tuple(parts[1:])))


def _inner(folder: Path) -> Path:
    """The folder itself, or the one folder in it: archives unpack to a folder in a folder."""
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
    return _inner(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"


def _plain(
    folder: Path,
    file: Path | None,
    format_name: str,
    columns: Columns,
    reading: Reading,
    has_items: bool,
) -> list[Layout]:
    """Tables of one's own: the file named, or `interactions.*` or `part-*` (and `items.*`) in a
    folder.

    Where there is a file of items (`has_items`: one that the recipe names), it has the titles.
    """
    found = []
    for name, (layout, suffixes) in _KINDS.items():
        if format_name not in (AUTO, name):
            continue
        if file is None:
            parts = _parts(folder, suffixes)
            interactions = first_of(folder, "interactions", suffixes)
            interactions = interactions or (parts[0] if parts else None)
        else:
            interactions = file if format_name == name or suffix_of(file) in suffixes else None
        if interactions is None:
            continue
        layout = _divided(layout, reading)
        needed = (USER_ID, ITEM_ID, *(() if columns.timestamp is None else (TIMESTAMP,)))
        items = first_of(folder, "items", _all_suffixes()) if file is None else None
        titled = has_items or items is not None
        roles = _roles(interactions, layout, columns, needed, reading, titled)
        whole = Layout(name, TableFile(interactions, layout, roles), None)
        if items is not None:
            whole = replace(whole, items=_items_file(items, whole, columns, reading))
        found.append(whole)
    return found


def _all_suffixes() -> tuple[str, ...]:
    return tuple(suffix for _, suffixes in _KINDS.values() for suffix in suffixes)


def _divided(layout: Delimited | str, reading: Reading) -> Delimited | str:
    if isinstance(layout, Delimited) and reading.delimiter is not None:
        return replace(layout, delimiter=reading.delimiter)
    return layout


def _items_file(path: Path, found: Layout, columns: Columns, reading: Reading) -> TableFile:
    """An items file of one's own: its kind by its name, its columns by the mapping."""
    if not path.is_file():
        raise DataError(f"data.items {path} does not exist")
    for layout, suffixes in _KINDS.values():
        if suffix_of(path) in suffixes:
            layout = _items_layout(path, layout, reading)
            named = _item_columns(columns, reading.items)
            roles = _roles(path, layout, named, (ITEM_ID, TITLE), reading)
            wanted = {ITEM_ID, TITLE, YEAR, BRAND, GENRES}
            return TableFile(path, layout, {r: c for r, c in roles.items() if r in wanted})
    if found.items is not None and path.suffix == found.items.path.suffix:
        return replace(found.items, path=path)
    raise DataError(f"data.items {path}: its name must end in .parquet, .csv, .tsv or .jsonl")


def _items_layout(path: Path, layout: Delimited | str, reading: Reading) -> Delimited | str:
    """`data.delimiter` is that of both files, where the items' first line has it."""
    divided = _divided(layout, reading)
    if divided == layout or len(names_in(path, divided, reading.encoding)) > 1:
        return divided
    return layout


def _item_columns(columns: Columns, said: ItemColumns) -> Columns:
    return Columns(
        item_id=said.item_id or columns.item_id, title=said.title or columns.title or TITLE
    )


def _roles(
    path: Path,
    layout: Delimited | str,
    columns: Columns,
    required: tuple[str, ...],
    reading: Reading,
    titled_elsewhere: bool = False,
) -> dict[str, str]:
    names = names_in(path, layout, reading.encoding)
    wanted = {
        USER_ID: columns.user_id,
        ITEM_ID: columns.item_id,
        TIMESTAMP: columns.timestamp,
        RATING: columns.rating,
        TITLE: columns.title,
        YEAR: reading.items.year,
        BRAND: reading.items.brand or BRAND,
        GENRES: reading.items.genres or GENRES,
    }
    roles = {role: name for role, name in wanted.items() if name is not None and name in names}
    missing = [f"{role} ({wanted[role]!r})" for role in required if role not in roles]
    if USER_ID in required:
        for role, name, usual in ((RATING, columns.rating, RATING), (TITLE, columns.title, TITLE)):
            elsewhere = role == TITLE and titled_elsewhere
            if name not in (None, usual) and role not in roles and not elsewhere:
                missing.append(f"{role} ({name!r})")
    if missing:
        key = "data.columns" if USER_ID in required else "data.items_columns"
        raise missing_columns(path, names, missing, key)
    return roles
