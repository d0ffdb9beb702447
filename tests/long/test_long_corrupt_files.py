"""500 files with some rows damaged at random, CSV, JSON lines and Parquet: the good rows are kept,
each bad one is reported with file, line, column and reason; none of the others is."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.sources import read_source
from tests.data.test_data_bad_rows import DELIMITED, JSON, NAMES, PARQUET, READING, kept
from tests.long.conftest import rounds

pytestmark = pytest.mark.long
# What a reader may rightly take for the beginning of more than one row.
ALONE = {"two objects"}


def rows(rng, count):
    return [(f"u{n % 7}", f"i{n % 9}", int(rng.integers(5)), 1000 + n) for n in range(count)]


def damaged(kind, good, at, rng, path):
    """Write the rows with those `at` damaged; the columns that are named, by line."""
    named = {}
    if kind == "csv":
        lines = [",".join(map(str, row)) for row in good]
        for row in at:
            fields, column, _ = DELIMITED[rng.choice(sorted(DELIMITED))]
            lines[row], named[row + 2] = ",".join(fields), column
        text = "\n".join([",".join(NAMES), *lines]) + "\n"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    elif kind == "jsonl":
        lines = [json.dumps(dict(zip(NAMES, row, strict=True))) for row in good]
        for row in at:
            lines[row], column, _ = JSON[rng.choice(sorted({*JSON} - ALONE))]
            named[row + 1] = column
        path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    else:
        columns = [list(values) for values in zip(*good, strict=True)]
        columns[2] = [float(value) for value in columns[2]]
        for row in at:
            where, value, column, _ = PARQUET[rng.choice(sorted(PARQUET))]
            columns[where][row], named[row + 1] = value, column
        pq.write_table(pa.table(dict(zip(NAMES, columns, strict=True))), path, row_group_size=8)
    return named


def test_500_files(tmp_path):
    rng, bad_rows = np.random.default_rng(3), 0
    for number in range(rounds(500)):
        kind = ("csv", "jsonl", "parquet")[number % 3]
        good = rows(rng, int(rng.integers(10, 60)))
        at = sorted(rng.choice(len(good), int(rng.integers(1, 6)), replace=False).tolist())
        path = tmp_path / f"log{number}.{kind}"
        named = damaged(kind, good, at, rng, path)
        raw = read_source(path, max_bad_rows=len(good), reading=READING)
        assert kept(raw) == [row for n, row in enumerate(good) if n not in at], path
        found = {bad.line: bad for bad in raw.bad_rows.rows}
        assert sorted(found) == sorted(named), path
        for line, column in named.items():
            assert (found[line].file, found[line].column) == (path.name, column)
            assert found[line].reason
        bad_rows += len(at)
        path.unlink()
    print(f"\n{rounds(500)} files, {bad_rows} bad rows, all reported; 0 good rows lost")
