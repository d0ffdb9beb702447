"""One table in several files, and a log of several kinds of events."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.sources import Events, RawData, Reading, read_source, recognise
from llmrec.errors import DataError

ROWS = [(f"u{n % 3}", f"i{n % 5}", n, f"Title {n % 5}") for n in range(12)]
NAMES = ("user_id", "item_id", "timestamp", "title")


def rows_of(raw: RawData) -> list[tuple[str, str, int, str]]:
    """What was read, in the order of the source rows."""
    log = raw.interactions
    columns = zip(log.user, log.position, log.timestamp, log.source_row, strict=True)
    found = [
        (int(row), (str(log.user_ids[u]), str(raw.item_ids[p]), int(t), str(raw.titles[p])))
        for u, p, t, row in columns
    ]
    assert [row for row, _ in sorted(found)] == sorted({row for row, _ in found})
    return [values for _, values in sorted(found)]


def write_parts(folder: Path, names: list[str]) -> None:
    """ROWS cut into as many files, in the order of `names`."""
    folder.mkdir()
    size = len(ROWS) // len(names)
    for at, name in enumerate(names):
        part = ROWS[at * size : (at + 1) * size]
        columns = dict(zip(NAMES, map(list, zip(*part, strict=True)), strict=True))
        if name.endswith(".parquet"):
            pq.write_table(pa.table(columns), folder / name)
        else:
            lines = [",".join(NAMES), *(",".join(map(str, row)) for row in part)]
            (folder / name).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", ["c000.snappy.parquet", "c000.csv"])
def test_a_folder_of_parts_is_one_table_in_the_order_of_their_numbers(
    tmp_path: Path, kind: str
) -> None:
    write_parts(tmp_path / "log", [f"part-{n}-{kind}" for n in (1, 2, 10)])
    (tmp_path / "log" / "_SUCCESS").write_text("")
    raw = read_source(tmp_path / "log")
    assert rows_of(raw) == ROWS
    assert len(raw.files) == 3
    assert rows_of(read_source(tmp_path / "log" / f"part-1-{kind}")) == ROWS


def test_a_pattern_names_files_and_nothing_else(tmp_path: Path) -> None:
    write_parts(tmp_path / "log", ["a-1.csv", "a-2.csv", "b-3.csv"])
    assert rows_of(read_source(tmp_path / "log" / "a-*.csv")) == ROWS[:8]
    assert rows_of(read_source(tmp_path / "*" / "b-3.csv")) == ROWS[8:]
    with pytest.raises(DataError, match="no file is called so"):
        read_source(tmp_path / "log" / "c-*.csv")
    odd = tmp_path / "log" / "[x].csv"
    (tmp_path / "log" / "b-3.csv").rename(odd)  # a name that looks like a pattern
    assert rows_of(read_source(odd)) == ROWS[8:]


def test_parts_of_other_columns_are_no_part(tmp_path: Path) -> None:
    write_parts(tmp_path / "log", ["part-0.csv", "part-1.csv"])
    second = tmp_path / "log" / "part-1.csv"
    second.write_text("user_id,item_id,when\nu,i,3\n")
    with pytest.raises(DataError, match=r"part-1\.csv has the columns user_id, item_id, when"):
        read_source(tmp_path / "log")
    lines = [",".join(reversed(NAMES)), *(",".join(map(str, reversed(row))) for row in ROWS[6:])]
    second.write_text("\n".join(lines) + "\n")  # the same in another order
    assert rows_of(read_source(tmp_path / "log")) == ROWS


KINDS = ["view", "buy", " cart ", ""] * 3


def events_file(folder: Path, suffix: str) -> Path:
    """ROWS, each of a kind; a row of another kind that could not be read."""
    path = folder / f"log{suffix}"
    if suffix == ".csv":
        lines = [f"{NAMES[0]},kind,{','.join(NAMES[1:])}"]
        lines += [f"{r[0]},{k},{r[1]},{r[2]},{r[3]}" for r, k in zip(ROWS, KINDS, strict=True)]
        path.write_text("\n".join([*lines, "u9,view,i9,never,No time"]) + "\n")
    elif suffix == ".jsonl":
        import json

        objects = [
            {**dict(zip(NAMES, row, strict=True)), **({"kind": kind} if kind else {})}
            for row, kind in zip(ROWS, KINDS, strict=True)
        ]
        path.write_text("".join(json.dumps(one) + "\n" for one in objects))
    else:
        columns = dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True))
        kinds = [kind or None for kind in KINDS]
        pq.write_table(pa.table({**columns, "kind": kinds}), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_events_that_are_not_kept_are_not_read(tmp_path: Path, suffix: str) -> None:
    path = events_file(tmp_path, suffix)
    raw = read_source(path, reading=Reading(events=Events("kind", ("buy", "cart"))))
    kept = [row for row, kind in zip(ROWS, KINDS, strict=True) if kind.strip() in ("buy", "cart")]
    assert rows_of(raw) == kept
    assert raw.bad_rows.count == 0
    views = 3 + (suffix == ".csv")
    [notice] = raw.bad_rows.notices
    assert "kept: 3 'buy', 3 'cart'" in notice
    assert f"left out: {views} 'view', 3 ''" in notice or f"{views} 'view'" in notice


def test_events_that_do_not_occur_are_told_with_those_that_do(tmp_path: Path) -> None:
    path = events_file(tmp_path, ".csv")
    with pytest.raises(
        DataError, match=r"no event of data\.events\.keep \(sale\); it has 4 'view'"
    ):
        read_source(path, reading=Reading(events=Events("kind", ("sale",))))
    with pytest.raises(DataError, match=r"no column for event \('what'\).*data\.events\.column"):
        recognise(path, reading=Reading(events=Events("what", ("buy",))))
