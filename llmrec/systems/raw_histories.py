"""Histories that come from outside, line by line: JSON lines, Parquet, or a pipe.

Reads no more than is answered next, so a million users need no more memory than a few, and the
first are answered at once. Knows no model and no catalog.
"""

import json
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llmrec.data.records import ITEM_ID, TITLE
from llmrec.decoding.grounding import Entry
from llmrec.errors import DataError, RecipeError
from llmrec.evaluation.foreign import COLUMNS
from llmrec.systems.given_tables import TIMES, histories_of

T = TypeVar("T")
SHOWN = 80
_END = object()


@dataclass(frozen=True)
class RawRequest:
    """A user, a history of item ids or titles, and candidates; empty where there are none."""

    user: str
    history: list[Entry]
    candidates: list[Entry]


def read_histories(lines: Iterable[str]) -> Iterator[RawRequest]:
    """Requests from JSON lines: a list of entries, or {"user": ..., "history": [...]}.

    An entry is an item id or a title, or {"id": ...} or {"title": ...} where it could be both. A
    line without a user is called by its number, from 1; one may have "candidates" too, and then
    all have. Raises DataError naming a bad line.
    """
    return _alike(_of_json(lines))


def read_parquet(path: Path) -> Iterator[RawRequest]:
    """Requests from a Parquet file: a column `history` of lists of ids or titles, and `user` and
    `candidates` where there are some. Raises DataError for anything else."""
    try:
        file = pq.ParquetFile(path)
        names = [n for n in ("user", "history", "candidates") if n in file.schema_arrow.names]
        if "history" not in names:
            raise DataError(
                f"{path}: no column history; it has {', '.join(file.schema_arrow.names)}"
            )
        yield from _alike(_of_rows(path, file.iter_batches(columns=names, batch_size=1024)))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None


def of_rows(path: Path, rows: pa.RecordBatch, before: int) -> Iterator[RawRequest]:
    """Requests from rows of a Parquet file behind `before` others. Raises DataError as above."""
    return _alike(_of_rows(path, [rows], before))


def read_file(path: Path) -> Iterator[RawRequest]:
    """Requests from a file, by its name Parquet, CSV or TSV, and else JSON lines.

    CSV and TSV, and Parquet without a column `history`, have a row an item, as
    `given_tables.histories_of` describes. Raises RecipeError where there is no file, and DataError
    for one that is none of these.
    """
    if not path.is_file():
        raise RecipeError(f"--histories {path}: no such file; give one, or - for stdin")
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _of_table(path, _delimited(path, kind, but=TIMES))
        return
    if kind in (".parquet", ".pq"):
        if "history" in _columns(path):
            yield from read_parquet(path)
        else:
            yield from _of_table(path, pq.read_table(path))
        return
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from read_histories(stream)
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None


def read_items(path: Path, flag: str) -> list[Entry]:
    """The items of a file, as those in stock: ids or titles.

    Parquet, CSV and TSV with a column of item ids as `evaluation.foreign.COLUMNS` names it, or else
    a column `title`; JSON lines of entries; any other text, an item a line. Raises RecipeError
    where there is no file, DataError where it holds no item.
    """
    if not path.is_file():
        raise RecipeError(f"{flag} {path}: no such file")
    kind = path.suffix.lower()
    try:
        if kind in (".parquet", ".pq"):
            found = _column_of_items(path, pq.read_table(path))
        elif kind in (".csv", ".tsv"):
            found = _column_of_items(path, _delimited(path, kind))
        else:
            lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
            found = [line for line in lines if line]
            if kind in (".jsonl", ".json", ".ndjson"):
                found = _json_items(path, found)
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as {kind or 'text'} ({error})") from None
    if not found:
        raise DataError(f"{flag} {path}: holds no item")
    return found


def _columns(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None


def _delimited(path: Path, kind: str, but: tuple[str, ...] = ()) -> pa.Table:
    """A CSV or TSV file, its columns as text but for those named."""
    try:
        parse = pa.csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",")
        header = pa.csv.open_csv(path, parse_options=parse).schema.names
        texts = [name for name in header if name.strip().lower() not in but]
        as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
        return pa.csv.read_csv(path, parse_options=parse, convert_options=as_text)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as {kind} ({error})") from None


def _of_table(path: Path, table: pa.Table) -> Iterator[RawRequest]:
    users, histories = histories_of(table, str(path))
    for user, history in zip(users, histories, strict=True):
        yield RawRequest(user, [_entry(entry) for entry in history], [])


def _column_of_items(path: Path, table: pa.Table) -> list[Entry]:
    plain = [name.strip().lower() for name in table.column_names]
    for name in (*COLUMNS[ITEM_ID], TITLE):
        if name in plain:
            values = table.column(plain.index(name)).drop_null().to_pylist()
            kind = "title" if name == TITLE else "id"
            return [{kind: str(value)} for value in values]
    raise DataError(
        f"{path}: no column item_id or title; there are {', '.join(table.column_names)}"
    )


def _json_items(path: Path, lines: list[str]) -> list[Entry]:
    found: list[Any] = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: no JSON ({error})") from None
        found += value if isinstance(value, list) else [value]
    wrong = next((value for value in found if not _is_entry(value)), None)
    if wrong is not None:
        raise DataError(f"{path}: {str(wrong)[:SHOWN]!r} is no item id and no title")
    return [_entry(value) for value in found]


def in_batches(requests: Iterable[T], size: int) -> Iterator[list[T]]:
    """Batches of 1, 2, 4, ... up to `size`, so that the first are answered at once."""
    left, count = iter(requests), 1
    while batch := list(islice(left, count)):
        yield batch
        count = min(2 * count, size)


def as_they_come(requests: Iterable[T], size: int) -> Iterator[list[T]]:
    """Batches of what has come meanwhile, at most `size` and at least one.

    For a pipe whose other end waits for an answer before it goes on. A thread reads ahead by
    `size` requests; what it raises is raised when all before it has been given.
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=size)
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for request in requests:
                waiting.put(request)
        except BaseException as error:
            failed.append(error)
        waiting.put(_END)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        batch = [waiting.get()]
        while batch[-1] is not _END and len(batch) < size and not waiting.empty():
            batch.append(waiting.get())
        if batch[-1] is _END:
            ended = True
            batch.pop()
        if batch:
            yield batch
    if failed:
        raise failed[0]


def _of_json(lines: Iterable[str]) -> Iterator[tuple[str, RawRequest]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number}: no JSON ({error})") from None
        yield _request(value, number, f"line {number}", line.strip())


def _of_rows(
    path: Path, batches: Iterable[pa.RecordBatch], before: int = 0
) -> Iterator[tuple[str, RawRequest]]:
    number = before
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            said = {name: value for name, value in row.items() if value is not None}
            yield _request(said, number, f"{path}, row {number}", str(row))


def _request(value: Any, number: int, place: str, shown: str) -> tuple[str, RawRequest]:
    request = value if isinstance(value, dict) else {"history": value}
    lists = [request.get("history"), request.get("candidates", [])]
    if not all(_is_list_of_items(entries) for entries in lists):
        raise DataError(
            f'{place}: expected ["title or item id", ...] or {{"user": "u1", "history": [...]}}, '
            f"got {shown[:SHOWN]}"
        )
    history, among = ([_entry(entry) for entry in entries] for entries in lists)
    return place, RawRequest(str(request.get("user", number)), history, among)


def _alike(requests: Iterable[tuple[str, RawRequest]]) -> Iterator[RawRequest]:
    """The requests, all with candidates or none. Raises DataError at the first that differs."""
    count: int | None = None
    for place, request in requests:
        count = len(request.candidates) if count is None else count
        if len(request.candidates) != count:
            raise DataError(
                f"{place}: {len(request.candidates)} candidates, where the first has {count}; give "
                "every history equally many"
            )
        yield request


def _is_list_of_items(entries: Any) -> bool:
    return isinstance(entries, list) and all(map(_is_entry, entries))


def _is_entry(value: Any) -> bool:
    if isinstance(value, dict):  # which of the two it is
        (value,) = value.values() if len(value) == 1 and {"id", "title"} >= {*value} else (None,)
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _entry(value: Any) -> Entry:
    if isinstance(value, dict):
        return {kind: str(text) for kind, text in value.items()}
    return str(value)
