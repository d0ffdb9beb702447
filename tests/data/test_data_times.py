"""Times keep their order whatever they are written as, fractions of a second included."""

import datetime
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.records import Interactions
from llmrec.data.sources import BadRows, opening, read_source, recognise
from llmrec.data.sources.times import Clock
from llmrec.data.splits import leave_one_out, order

SECONDS = ["100.9", "100.3", "100.6", "100.1"]  # of one user; the last event is item 0
START = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def written(folder: Path, kind: str) -> Path:
    moments = [START + datetime.timedelta(seconds=float(s)) for s in SECONDS]
    path = folder / f"log.{kind.partition(' ')[0]}"
    columns = ("user_id", "item_id", "timestamp")
    times: list[object] = list(SECONDS)
    if kind == "csv dates":
        times = [m.strftime("%Y-%m-%d %H:%M:%S.%f") for m in moments]
    elif kind == "csv zones":
        times = [m.isoformat(timespec="microseconds") for m in moments]
    elif kind == "csv far":  # in milliseconds, with fractions of these
        times = [f"17000000000{s[-1]}.{s[-1]}" for s in SECONDS]
    elif kind in ("jsonl", "parquet"):
        times = [float(s) for s in SECONDS]
    elif kind == "parquet dates":
        times = list(moments)
    rows_of = [("u", str(n), t) for n, t in enumerate(times)]
    if path.suffix == ".parquet":
        table = pa.table(dict(zip(columns, map(list, zip(*rows_of, strict=True)), strict=True)))
        pq.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(columns, r, strict=True))) + "\n" for r in rows_of)
        )
    else:
        path.write_text("\n".join([",".join(columns), *(",".join(map(str, r)) for r in rows_of)]))
    return path


KINDS = ["csv", "csv dates", "csv zones", "csv far", "jsonl", "parquet", "parquet dates"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out_of_core", [False, True])
def test_the_last_event_is_the_target(tmp_path: Path, kind: str, out_of_core: bool) -> None:
    path = written(tmp_path, kind)
    raw = read_source(path)
    if out_of_core:
        pytest.importorskip("duckdb")
        from llmrec.data.out_of_core import filtered

        layout, _ = filtered(recognise(path), tmp_path / "out", BadRows())
        assert np.array_equal(
            pq.read_table(layout.interactions.path)["timestamp"].to_numpy(),
            np.sort(raw.interactions.timestamp),
        )
        raw = read_source(tmp_path / "out")
    ordered = order(raw.interactions)
    assert raw.item_ids[ordered.position].tolist() == ["3", "1", "2", "0"]
    test = leave_one_out(ordered).test
    assert test.targets.tolist() == [0]
    assert not test.tied.any()


def test_whole_numbers_stay_as_they_are_and_fractions_set_one_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.csv"
    lines = ["u,a,100", "u,b,99.0", "u,c,-3", *["u,d,5"] * 40]
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    raw = read_source(path)
    assert raw.interactions.timestamp[:3].tolist() == [100, 99, -3]
    assert raw.ticks == 1
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines, "u,e,-0.25", "u,f,1.000001"]))
    monkeypatch.setattr(opening, "BLOCK_BYTES", 60)  # the fraction is found in a later block
    raw = read_source(path)
    assert raw.ticks == 10**6
    assert raw.interactions.timestamp[:3].tolist() == [100_000_000, 99_000_000, -3_000_000]
    assert raw.interactions.timestamp[-2:].tolist() == [-250_000, 1_000_001]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.decimals(-(10**9), 10**9, places=6, allow_nan=False), min_size=2, max_size=30))
def test_text_floats_and_single_values_order_alike(times) -> None:
    exact = [Fraction(t) for t in times]
    for values in (
        pa.array([format(t, "f") for t in times]),
        pa.array([format(t, "f") + "0" * 6 for t in times]),
        pa.array(["1e0", *(format(t, "f") for t in times)]),
    ):
        clock = Clock()
        whole, part, reasons = clock.read(values)
        ticks = clock.scaled(whole, part)[-len(exact) :]
        assert not reasons
        assert ticks.tolist() == [t * clock.ticks for t in exact]
    clock = Clock()
    whole, part, _ = clock.read(pa.array([float(t) for t in times], pa.float64()))
    ticks = clock.scaled(whole, part)
    for earlier, later in zip(
        np.argsort(exact, kind="stable")[:-1], np.argsort(exact, kind="stable")[1:], strict=True
    ):
        assert ticks[earlier] <= ticks[later]
        assert (ticks[earlier] == ticks[later]) == (exact[earlier] == exact[later])


def test_fractions_that_no_integer_holds_are_said(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    far = 1_700_000_000_000_000  # microseconds
    path.write_text(f"user_id,item_id,timestamp\nu,a,{far}.9999\nu,b,{far}.9991\n")
    raw = read_source(path)
    assert raw.ticks == 1000
    assert raw.interactions.timestamp.tolist() == [far * 1000 + 999] * 2
    (notice,) = raw.bad_rows.notices
    assert "fractions finer than 1/1000 were cut off" in notice


def test_times_beyond_64_bits_are_bad_rows() -> None:
    for values in (pa.array([2**63], pa.uint64()), pa.array([1e30]), pa.array(["9" * 25])):
        _, _, reasons = Clock().read(values)
        assert reasons == {0: reasons[0]}
        assert "is out of range" in reasons[0]


def test_nothing_but_order_hangs_on_the_scale() -> None:
    user = np.zeros(4, np.int32)
    times = np.array([9, 3, 6, 1])
    names = np.array(["u"], dtype=object)
    plain = Interactions(user, np.arange(4, dtype=np.int32), times, np.arange(4), names)
    scaled = Interactions(user, plain.position, times * 10**9, plain.source_row, names)
    assert order(plain).position.tolist() == order(scaled).position.tolist()


@pytest.mark.parametrize("out_of_core", [False, True])
@pytest.mark.parametrize(
    "times", ["7.000000000{}", "7.500000000{}", "2020-01-01 00:00:00.123456789{}"]
)
def test_times_that_reading_made_equal_are_said(
    tmp_path: Path, times: str, out_of_core: bool
) -> None:
    path = tmp_path / "log.csv"
    far = times.replace("7.", "6.").replace("2020", "2019")
    mine = [times.format(1), times.format(2), far.format(1)]
    rows = [f"u{n},a,{time}\n" for n in range(3) for time in mine]
    path.write_text("user_id,item_id,timestamp\n" + "".join(rows))
    bad = BadRows()
    if out_of_core:
        pytest.importorskip("duckdb")
        from llmrec.data.out_of_core import filtered

        filtered(recognise(path), tmp_path / "out", bad)
    else:
        bad = read_source(path).bad_rows
    (notice,) = bad.notices
    assert "66.7% of the rows share their time" in notice
    assert "0.0% as written" in notice


def test_floats_too_fine_beside_the_largest_are_said(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    times = [0.5, 0.25, 0.125, 1e16]
    table = {"user_id": ["u"] * 4, "item_id": list("abcd"), "timestamp": times}
    pq.write_table(pa.table(table), path)
    (notice,) = read_source(path).bad_rows.notices
    assert "75.0% of the rows share their time" in notice


def test_ties_of_the_file_and_few_others_are_not_news(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    few = ["u,a,0.10000000001", "u,b,0.10000000002"] + [f"u,c,{n}.5" for n in range(1, 60)]
    many = ["u,a,1.25"] * 30 + ["v,a,1.25", "w,b,1.2500000001"]
    for rows in (few, many):
        path.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
        assert read_source(path).bad_rows.notices == []


@given(st.lists(st.decimals(0, 10, places=12), min_size=2, max_size=6, unique=True), st.booleans())
@settings(max_examples=50, deadline=None)
def test_distinct_times_stay_distinct_or_are_warned_of(times: list, binary: bool) -> None:
    values = pa.array([float(t) for t in times] if binary else [str(t) for t in times])
    clock, bad = Clock(), BadRows(0)
    whole, part, _ = clock.read(values)
    if clock.fine:
        users = pa.array(["u"] * len(times)).dictionary_encode()
        read = (whole,) if part is None else (whole, part)
        clock.ties.count(users, values, *read)
    clock.tell("log", bad)
    kept = len(set(clock.scaled(whole, part).tolist())) == len(set(values.to_pylist()))
    assert kept == (not bad.notices)
