"""Answers to raw histories in a file: kept user by user until all are there, whole at the end.

An interrupted list goes on behind the last user whose answer is whole, if the requests before it
are still the same and so is all that answers rest on. Knows no model and reads no request itself.
"""

import base64
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llmrec import stopping
from llmrec.data.checked_lines import digest, line, whole_lines
from llmrec.data.files import replacing
from llmrec.errors import DataError, RecipeError
from llmrec.systems.raw_histories import RawRequest

log = logging.getLogger("llmrec")
PARQUET, CSV = (".parquet", ".pq"), ".csv"
Rows = list[dict[str, Any]]
TOGETHER = 1024  # users of a row group


class Written(NamedTuple):
    """How many users were asked for, how many of them had been answered before, and all rows."""

    users: int
    before: int
    rows: int


def require_form(out: Path) -> None:
    """Raise RecipeError for a file whose name says of no form that is written."""
    if out.suffix.lower() not in (*PARQUET, CSV):
        raise RecipeError(f"--out {out}: written as .parquet or .csv; give it such a name")


def write_answers(
    batches: Iterable[list[RawRequest]],
    ask: Callable[[list[RawRequest]], pa.Table],
    out: Path,
    key: Callable[[], str],
) -> Written:
    """Write the answers to some batches of requests to `out`, going on where an earlier call was
    interrupted.

    `ask` gives the rows of a batch, user by user in their order, with columns `user` and `rank`.
    `key`: all that the answers rest on, asked for once there is a request. Until all are answered
    they stand beside `out`, in a file that ends in .part, which is removed at the end. Raises
    DataError where there is no request.
    """
    left = iter(batches)
    first = next(left, None)
    if first is None:
        raise DataError("there is no history to answer")
    part = out.with_name(f".{out.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    asked = key()
    known = list(_kept(part, asked))
    users, standing, goes_on = 0, 0, True
    with part.open("r+b" if known else "w+b") as stream:
        for batch in chain([first], left):
            stopping.check()
            users += len(batch)
            while goes_on and batch and known[standing:][:1] == [_hash(batch[0])]:
                standing, batch = standing + 1, batch[1:]
            if not batch:
                continue
            if goes_on:
                _cut(stream, part, standing)
                goes_on = False
            table = ask(batch)
            if stream.tell() == 0:
                schema = base64.b64encode(table.schema.serialize()).decode()
                stream.write(line({"key": asked, "schema": schema}))
            for request, rows in zip(batch, _by_user(batch, table.to_pylist()), strict=True):
                stream.write(line({"request": _hash(request), "rows": rows}))
            stream.flush()
            os.fsync(stream.fileno())
        if goes_on:
            _cut(stream, part, standing)
    rows = _put_in_place(part, out)
    part.unlink()
    return Written(users, standing, rows)


def _kept(part: Path, key: str) -> Iterator[str]:
    """The hashes of the requests that a file answers under this key, up to a line not whole."""
    for said, _ in _lines(part):
        if "key" not in said:
            yield said["request"]
        elif said["key"] != key:
            log.info("recommend: %s rests on other settings or weights; beginning anew", part)
            return


def _cut(stream: BinaryIO, part: Path, standing: int) -> None:
    """Leave the answers to so many requests in the file, and its end to be written at."""
    end = 0
    if standing:
        log.info("recommend: %d users are answered already, going on behind them", standing)
        end = next(islice((end for _, end in _lines(part)), standing, None))
    stream.truncate(end)
    stream.seek(end)


def _lines(part: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """What the whole lines say, each with where it ends; the first is the only one with a key."""
    before = 0
    for said, end in whole_lines(part):
        if said is None or (before == 0) != ("key" in said):
            log.warning("recommend: %s: what follows byte %d is not whole", part, before)
            return
        before = end
        yield said, end


def _hash(request: RawRequest) -> str:
    return digest(json.dumps(asdict(request)))


def _by_user(batch: Sequence[RawRequest], rows: Rows) -> list[Rows]:
    """The rows of each user of a batch; ranks begin at 1."""
    found: list[Rows] = [[] for _ in batch]
    at = 0
    for number, request in enumerate(batch):
        while at < len(rows) and (rows[at]["user"], rows[at]["rank"]) == (
            request.user,
            len(found[number]) + 1,
        ):
            found[number].append(rows[at])
            at += 1
    return found


def _put_in_place(part: Path, out: Path) -> int:
    """Write the rows of a whole file of answers to `out`; how many."""
    lines = (said for said, _ in _lines(part))
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(next(lines)["schema"])))
    make = pa.csv.CSVWriter if out.suffix.lower() == CSV else _parquet_writer
    count = 0
    with replacing(out) as temporary, make(temporary, schema) as writer:
        while some := list(islice(lines, TOGETHER)):
            rows = [row for said in some for row in said["rows"]]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def _parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, write_page_checksum=True)
