"""One grammar of quotes: what stands beside a row never decides what the row says."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.sources import Columns, RawData, Reading, opening, read_source
from llmrec.data.sources.delimited import Delimited, delimited_blocks, read_at_once
from llmrec.data.sources.rows import BadRows

NAMES = ["user_id", "item_id", "timestamp", "title"]
HEAD = "\t".join(NAMES)


def titles(raw: RawData) -> dict[str, str]:
    return dict(zip(raw.item_ids.tolist(), raw.titles.tolist(), strict=True))


def read(folder: Path, text: str, suffix: str = "csv", allowed: int = 9) -> RawData:
    path = folder / f"log.{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return read_source(path, max_bad_rows=allowed, reading=Reading(encoding="utf-8"))


@pytest.mark.parametrize("beside", ["", "\n", "\tshort\n", "a\tb\t1\tc\td\n", "\udcff\t\t\t\n"])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"Weird" Alan', '"Weird" Alan'),
        ('"Heroes"', "Heroes"),
        ('12" Mix', '12" Mix'),
        ('"The ""A"" Team"', 'The "A" Team'),
        ('""', ""),
        ('"A" and "B"', '"A" and "B"'),
    ],
)
def test_a_row_is_read_alike_whatever_stands_beside_it(
    tmp_path: Path, written: str, meant: str, beside: str
) -> None:
    text = f"{HEAD}\nu\ti\t1\t{written}\n{beside}v\tj\t2\tPlain\n"
    raw = read(tmp_path, text, "tsv")
    assert titles(raw) == {"i": meant, "j": "Plain"}
    assert raw.bad_rows.count == (beside.strip("\n") != "")


FIELD = st.text(st.sampled_from('ab ,"\n;é'), max_size=6)
TITLES = st.lists(FIELD, min_size=1, max_size=12)
BAD = st.sampled_from(["", "x", "x,y", "x,y,1,z,w", "\udcff,y,1,z", '"x""",y', ",,,,,,", "\t"])


def log_of(fields: list[str], bad: list[tuple[int, str]]) -> str:
    """A CSV of one row for each title, and bad lines before some of them."""
    lines = []
    for n, title in enumerate(fields):
        lines += [line for at, line in bad if at == n]
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow([f"u{n}", f"i{n}", n, title])
        lines.append(out.getvalue().removesuffix("\n"))
    return "\n".join([",".join(NAMES), *lines]) + "\n"


def rows_of(raw: RawData) -> list[tuple[str, str, int, str]]:
    log = raw.interactions
    return [
        (log.user_ids[u], raw.item_ids[p], int(t), raw.titles[p])
        for u, p, t in zip(log.user, log.position, log.timestamp, strict=True)
    ]


@settings(max_examples=150, deadline=None)
@given(TITLES, st.lists(st.tuples(st.integers(0, 11), BAD), max_size=3), st.sampled_from([40, 999]))
def test_a_bad_line_changes_no_other_row(tmp_path_factory, fields, bad, block) -> None:
    folder = tmp_path_factory.mktemp("log")
    bad = [(at, line) for at, line in bad if at < len(fields)]
    wanted = [
        (f"u{n}", f"i{n}", n, title if title.strip() else "") for n, title in enumerate(fields)
    ]
    whole = read(folder, log_of(fields, []))
    before, opening.BLOCK_BYTES = opening.BLOCK_BYTES, block
    try:
        raw = read(folder, log_of(fields, bad), allowed=99)
    finally:
        opening.BLOCK_BYTES = before
    assert rows_of(raw) == rows_of(whole) == wanted
    assert raw.bad_rows.count == sum(line != "" for _, line in bad)


@settings(max_examples=150, deadline=None)
@given(TITLES)
def test_arrow_and_the_grammar_agree_where_arrow_is_asked(tmp_path_factory, fields) -> None:
    """Whatever `read_at_once` takes on, the reading record by record gives to the letter."""
    text = "\n".join(f"u,i{n},{n},{f}" for n, f in enumerate(fields)) + "\n"
    layout = Delimited(",", quoted=True, names=tuple(NAMES))
    at_once = read_at_once(text.encode(), layout, 4, {"title": 3, "item_id": 1})
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_bytes((text + "short\n").encode())
    [block] = delimited_blocks(path, layout, {"title": "title", "item_id": "item_id"}, BadRows(99))
    if at_once is not None:
        for role, values in at_once[0].items():
            assert values.to_pylist() == block.columns[role].to_pylist()
        assert (at_once[1] + 1).tolist() == block.lines.tolist()


def test_a_review_inside_quotes_is_never_a_row_of_its_own(tmp_path: Path) -> None:
    review = "Great\nmallory,evil,9,Forged\n\nbye"
    text = f'{",".join(NAMES)}\nu,i,1,"{review}"\nv,j,2,x\n'
    raw = read(tmp_path, text)
    assert rows_of(raw) == [("u", "i", 1, review), ("v", "j", 2, "x")]
    assert raw.interactions.source_row.tolist() == [0, 4]
    # The same beside a bad line, in small blocks, and with quotes inside that are not doubled.
    assert rows_of(read(tmp_path, text + "short\n")) == rows_of(raw)
    odd = text.replace("Great\n", 'He said "great"\n').replace("bye", '"bye')
    raw = read(tmp_path, odd)
    assert rows_of(raw) == [("v", "j", 2, "x")]
    (bad,) = raw.bad_rows.rows
    assert (bad.line, bad.column) == (2, "title")
    assert bad.reason.startswith("quotes are not balanced in 'u,i,1,\"He said")


@pytest.mark.parametrize("block", [30, 64, 1000, 1 << 20])
def test_long_quoted_texts_cross_blocks(tmp_path: Path, monkeypatch, block: int) -> None:
    fields = ["one\ntwo, three", 'a "b"\n\n"', "", "x" * 90 + "\n" + "y" * 40] * 5
    monkeypatch.setattr(opening, "BLOCK_BYTES", block)
    raw = read(tmp_path, log_of(fields, []))
    assert [row[3] for row in rows_of(raw)] == fields
    assert np.diff(raw.interactions.source_row).tolist() == [
        1 + field.count("\n") for field in fields[:-1]
    ]


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_stray_quote_costs_its_own_line(tmp_path: Path, at: int) -> None:
    fields = ["plain", "a, b", 'the "best"', "", "c; d", '"all"', "x", "y, z", "w", "v"]
    raw = read(tmp_path, log_of(fields, [(at, 'x,"y,7,z')]))
    assert [row[3] for row in rows_of(raw)] == fields
    [bad] = raw.bad_rows.rows
    assert (bad.line, bad.column) == (at + 2, "item_id")
    assert "a quote is opened and not closed" in bad.reason


def test_blanks_behind_delimiters_hide_no_quotes(tmp_path: Path) -> None:
    rows = ['u, i, 1, "A, ""B"""', 'u, j, 2, "C"', "u, k, 3, D", 'u, l, 4, ""']
    raw = read(tmp_path, "\n".join(["user_id, item_id, timestamp, title", *rows]))
    assert titles(raw) == {"i": 'A, "B"', "j": "C", "k": " D", "l": ""}
    # Without such blanks in the header a blank before a quote is part of the field.
    raw = read(tmp_path, 'user_id,item_id,timestamp,title\nu,i,1, "A"\n')
    assert titles(raw) == {"i": ' "A"'}


def test_a_mapped_column_with_quotes_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('"the ""user""",item_id,timestamp\nu,i,1\n')
    raw = read_source(path, columns=Columns(user_id='the "user"'))
    assert raw.interactions.user_ids.tolist() == ["u"]
