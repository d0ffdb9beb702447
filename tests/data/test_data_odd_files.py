"""Odd values in every reader: good rows kept, nothing forged, and what is left out is told."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.sources import RawData, read_source

NAMES = ["user_id", "item_id", "rating", "timestamp", "title"]
Row = tuple[Any, Any, Any, Any, Any]
PLAIN: list[Row] = [(f"u{n % 3}", f"i{n % 5}", n % 5, 100 + n, f"Film {n % 5}") for n in range(20)]

# What the first row is made of, and how that is to be read; None: it is a bad row.
ODD: dict[str, tuple[Row, Row | None]] = {
    "id as a float": (("u0", "70.0", 1, 5, "A"), ("u0", "70", 1, 5, "A")),
    "blanks around ids": ((" u9 ", "\ti9 ", 1, 5, "A"), ("u9", "i9", 1, 5, "A")),
    "no-break space": (("u9\u00a0", "i9", 1, 5, "A"), ("u9", "i9", 1, 5, "A")),
    "nobody": (("nan", "i9", 1, 5, "A"), None),
    "empty user": (("", "i9", 1, 5, "A"), None),
    "control code": (("u\x00", "i9", 1, 5, "A"), None),
    "cut by a spreadsheet": (("u9", "1.23457E+12", 1, 5, "A"), None),
    "quotes in a title": (("u9", "i9", 1, 5, 'The "A" Team'), ("u9", "i9", 1, 5, 'The "A" Team')),
    "quotes around a title": (("u9", "i9", 1, 5, '"Heroes"'), ("u9", "i9", 1, 5, '"Heroes"')),
    "marks in a title": (("u9", "i9", 1, 5, "a,b;c|d::e"), ("u9", "i9", 1, 5, "a,b;c|d::e")),
    "lines in a title": (
        ("u9", "i9", 1, 5, "a\nm,evil,1,2,x\nb"),
        ("u9", "i9", 1, 5, "a\nm,evil,1,2,x\nb"),
    ),
    "accents and emoji": (("é", "千", 1, 5, "Été 🎬"), ("é", "千", 1, 5, "Été 🎬")),
    "no title": (("u9", "i9", 1, 5, " "), ("u9", "i9", 1, 5, "")),
    "no rating": (("u9", "i9", None, 5, "A"), ("u9", "i9", None, 5, "A")),
    "no time": (("u9", "i9", 1, None, "A"), None),
    "leading zeros stay": (("007", "012", 1, 5, "A"), ("007", "012", 1, 5, "A")),
}
READERS = ("csv", "tsv", "jsonl", "array", "parquet")


def written(folder: Path, kind: str, rows: list[Row]) -> Path:
    """Numbers as numbers where the format has them, so that only the odd value is odd."""
    path = folder / f"log.{ {'array': 'json'}.get(kind, kind) }"
    if kind == "parquet":
        columns = dict(zip(NAMES, map(list, zip(*rows, strict=True)), strict=True))
        kinds = [pa.string(), pa.string(), pa.float64(), pa.int64(), pa.string()]
        schema = pa.schema(list(zip(NAMES, kinds, strict=True)))
        pq.write_table(pa.table(columns, schema=schema), path, row_group_size=7)
    elif kind in ("jsonl", "array"):
        objects = [dict(zip(NAMES, row, strict=True)) for row in rows]
        lines = [json.dumps(value, ensure_ascii=False) for value in objects]
        text = "\n".join(lines) if kind == "jsonl" else json.dumps(objects, indent=1)
        path.write_text(text, "utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            mark = "," if kind == "csv" else "\t"
            writer = csv.writer(stream, delimiter=mark, lineterminator="\n")
            writer.writerow(NAMES)
            writer.writerows(rows)
    return path


def rows_of(raw: RawData) -> list[Row]:
    log = raw.interactions
    assert log.rating is not None
    return [
        (log.user_ids[u], raw.item_ids[p], None if r != r else r, t, raw.titles[p])
        for u, p, r, t in zip(
            log.user, log.position, log.rating.tolist(), log.timestamp.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("odd", ODD)
def test_good_rows_stay_and_nothing_is_forged(tmp_path: Path, odd: str, kind: str) -> None:
    row, meant = ODD[odd]
    raw = read_source(written(tmp_path, kind, [row, *PLAIN]), max_bad_rows=1)
    assert rows_of(raw) == ([] if meant is None else [meant]) + PLAIN
    assert raw.bad_rows.count == (meant is None)
    assert raw.bad_rows.notices == []
