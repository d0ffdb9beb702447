"""Preparing a log side by side with dicts of lists: duplicates, 5-core, order, leave-one-out.

The log is drawn: users and items by Zipf's law, milliseconds over twenty years, one row in a
hundred repeated. The peer keeps a dict of lists for every user, as recommender scripts do. Both
start from integer codes in memory; what they give is checked equal first. The arrays then run alone
on more rows, and with --out-of-core DuckDB on a Parquet file of as many. Memory is the peak of a
process of its own, less what it held before it began. One line of JSON for each figure on stdout,
and with --out a Markdown page.

    python tools/bench/prepare.py --repeats 3 --out results/prepare-bench.md
    python tools/bench/prepare.py --rows 20000000 --out-of-core 20000000
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.filters import first_of_duplicates, k_core
from llmrec.data.out_of_core import filtered as out_of_core_filtered
from llmrec.data.records import ITEM_ID, SOURCE_ROW, TIMESTAMP, USER_ID, Examples, Interactions
from llmrec.data.sources import BadRows, read_source, recognise
from llmrec.data.splits import Split, leave_one_out, order

CORE, RATIO = 5, 20.0
ROWS_OF_A_USER, ROWS_OF_AN_ITEM, LARGEST = 10, 12, 571_000_000  # Amazon Reviews 2023
ROW_GROUP = 100_000
LIMIT_MB, LEAST_MB = 10_000, 100  # DuckDB's limit for the largest log, and for the smallest
BYTES_OF_A_CODE = 20  # counter, flags and, while rows are dropped, the list of who is gone

Lists = tuple[list, list, list, list]  # training rows; train, valid and test examples


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--dict-rows", type=int, default=200_000, help="rows for both sides")
    options.add_argument("--rows", type=int, default=2_000_000, help="rows for the arrays alone")
    options.add_argument("--out-of-core", type=int, default=0, help="rows for DuckDB; 0: none")
    options.add_argument("--memory-mb", type=int, help="DuckDB's limit; default: in proportion")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    figures = []
    runs = [
        lambda: against_dicts(given.dict_rows, given.repeats),
        lambda: in_process(arrays_alone, given.rows, given.repeats),
    ]
    if given.out_of_core:
        runs.append(lambda: out_of_core(given.out_of_core, given.memory_mb))
    for run in runs:
        figures.append(run())
        print(json.dumps(figures[-1]), flush=True)
    if given.out:
        given.out.write_text(page(figures, given), "utf-8")


def drawn(rows: int, texts: bool = True) -> Interactions:
    """R rows in no order of time."""
    rng = np.random.default_rng(0)
    users, items = rows // ROWS_OF_A_USER, rows // ROWS_OF_AN_ITEM
    user, item = zipf(rng, users, rows, 0.8), zipf(rng, items, rows, 1.0)
    time_ = rng.integers(1_070_000_000_000, 1_700_000_000_000, rows)
    again, first = rng.integers(0, rows, (2, rows // 100))
    for column in (user, item, time_):
        column[again] = column[first]
    names = np.array([f"U{code:08d}" for code in range(users if texts else 0)], dtype=object)
    return Interactions(user, item, time_, np.arange(rows), names)


def zipf(rng, values: int, rows: int, exponent: float) -> np.ndarray:
    """(R,) int32 codes; the r-th most frequent falls off as r to the minus exponent."""
    shares = np.cumsum(np.arange(1, values + 1) ** -exponent)
    drawn_ranks = np.searchsorted(shares, rng.random(rows) * shares[-1])
    return rng.permutation(values).astype(np.int32)[drawn_ranks]


def by_arrays(log: Interactions) -> Split:
    """What `llmrec prepare` does between reading and writing."""
    log = log.take(first_of_duplicates(log))
    log = log.take(k_core(log, CORE))
    return leave_one_out(order(log))


def by_dicts(rows: list[tuple[int, int, int]]) -> Lists:
    """The same from (user, item, time) tuples, with a set, Counters and a dict of lists."""
    seen, kept = set(), []
    for row in rows:
        if row not in seen:
            seen.add(row)
            kept.append(row)
    while True:
        of_user = Counter(user for user, _, _ in kept)
        of_item = Counter(item for _, item, _ in kept)
        fewer = [r for r in kept if of_user[r[0]] >= CORE and of_item[r[1]] >= CORE]
        if len(fewer) == len(kept):
            break
        kept = fewer
    past: dict[int, list] = {}
    for user, item, when in kept:
        past.setdefault(user, []).append((when, item))
    training, train, valid, test = [], [], [], []
    for user in sorted(past):
        items = [item for _, item in sorted(past[user], key=lambda pair: pair[0])]
        training.extend((user, item) for item in items[:-2])
        train.append((user, items[:-3], items[-3]))
        valid.append((user, items[:-2], items[-2]))
        test.append((user, items[:-1], items[-1]))
    return training, train, valid, test


def as_lists(split: Split, log: Interactions) -> Lists:
    """A split as the dicts give it; in a 5-core every user has all three examples."""
    code_of = {name: code for code, name in enumerate(log.user_ids)}
    kept = split.interactions

    def tuples(part: Examples) -> list:
        return [(code_of[e.user_id], e.history.tolist(), int(e.target)) for e in part]

    training = list(zip(kept.user.tolist(), kept.position.tolist(), strict=True))
    return training, tuples(split.train), tuples(split.valid), tuples(split.test)


def against_dicts(rows: int, repeats: int) -> dict:
    """Rows per second both ways on one log, and their ratio, after equality."""
    log = drawn(rows)
    columns = (log.user.tolist(), log.position.tolist(), log.timestamp.tolist())
    tuples = list(zip(*columns, strict=True))
    split = by_arrays(log)
    if as_lists(split, log) != by_dicts(tuples):
        sys.exit("arrays and dicts give different splits; nothing is timed")
    mine, peers = [], []
    for _ in range(repeats):  # alternating, so that a slow spell of the machine hits both
        mine.append(seconds(lambda: by_arrays(log)))
        peers.append(seconds(lambda: by_dicts(tuples)))
    ratios = [p / m for p, m in zip(peers, mine, strict=True)]
    return {
        "figure": "duplicates, 5-core, order and leave-one-out, rows per second",
        "dicts": round(rows / statistics.median(peers)),
        "llmrec": round(rows / statistics.median(mine)),
        "ratio": round(statistics.median(ratios), 1),
        "ratio_range": [round(min(ratios), 1), round(max(ratios), 1)],
        "goal": RATIO,
        "test_users": len(split.test),
        "repeats": repeats,
        **shape(rows),
        **provenance(),
    }


def arrays_alone(rows: int, repeats: int) -> dict:
    """Rows per second of the arrays, and the peak memory with the log itself."""
    before = peak_bytes()
    log = drawn(rows)
    with contextlib.suppress(OSError):  # where there is such a file, drawing is not counted
        Path("/proc/self/clear_refs").write_text("5")
    taken = [seconds(lambda: by_arrays(log)) for _ in range(repeats)]
    per_row = (peak_bytes() - before) / rows
    rate = rows / statistics.median(taken)
    return {
        "figure": "duplicates, 5-core, order and leave-one-out in memory, rows per second",
        "llmrec": round(rate),
        "bytes_per_row": round(per_row, 1),
        "projected_rows": LARGEST,
        "projected_minutes": round(LARGEST / rate / 60, 1),
        "projected_gb": round(LARGEST * per_row / 1e9, 1),
        "repeats": repeats,
        **shape(rows),
        **provenance(),
    }


def in_process(run, *arguments):
    """What `run` returns, from a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, arguments)


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss begins with what its parent held
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def seconds(run) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def shape(rows: int) -> dict:
    """What the drawn log looks like."""
    return {
        "rows": rows,
        "users": rows // ROWS_OF_A_USER,
        "items": rows // ROWS_OF_AN_ITEM,
        "zipf": [0.8, 1.0],
        "k_core": CORE,
    }


def provenance() -> dict:
    """What every figure ran on."""
    return {
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "duckdb": version("duckdb"),
        "threads": os.cpu_count(),
        "machine": platform.machine(),
    }


def out_of_core(rows: int, memory_mb: int | None) -> dict:
    """Rows per second from a Parquet file to the filtered one; peak memory and peak disk.

    A smaller log is checked first to give the rows that the arrays give. Where nothing else is
    given, DuckDB's limit has the same proportion to the rows as it is to have for the largest log.
    """
    limit = memory_mb or max(round(LIMIT_MB * rows / LARGEST), LEAST_MB)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if not in_process(agree, folder / "few", min(rows, 200_000)):
            sys.exit("DuckDB and arrays give different rows; nothing is timed")
        source = in_process(written, folder / "many", rows)
        found = in_process(filtered, source, folder, f"{limit}MB")
        size = source.stat().st_size
    memory, disk, taken = found["peak_memory"], found["peak_disk"], found["seconds"]
    return {
        "figure": "duplicates, 5-core and order out of memory, rows per second",
        "llmrec": round(rows / taken),
        "kept": found["kept"],
        "memory_limit_mb": limit,
        "peak_mb": round(memory / 1e6),
        "source_mb": round(size / 1e6),
        "disk_bytes_per_row": round(disk / rows, 1),
        "projected_rows": LARGEST,
        "projected_minutes": round(LARGEST * taken / rows / 60, 1),
        "projected_disk_gb": round(LARGEST * disk / rows / 1e9, 1),
        "projected_gb": round(projected(memory, limit, rows) / 1e9, 1),
        "within_gb": 16,
        **shape(rows),
        **provenance(),
    }


def projected(memory: int, limit: int, rows: int) -> float:
    """Bytes for the largest log: DuckDB's limit and the counters grow with it, a block does not."""
    counters = BYTES_OF_A_CODE * (rows // ROWS_OF_A_USER + rows // ROWS_OF_AN_ITEM)
    growing = limit * 1e6 + counters
    return LARGEST / rows * growing + max(memory - growing, 0)


def written(folder: Path, rows: int) -> Path:
    """The drawn log as Parquet, its ids as text."""
    folder.mkdir(parents=True)
    log, path = drawn(rows, texts=False), folder / "interactions.parquet"
    names = (USER_ID, ITEM_ID, TIMESTAMP)
    kinds = (pa.string(), pa.string(), pa.int64())
    with pq.ParquetWriter(path, pa.schema(list(zip(names, kinds, strict=True)))) as file:
        for begin in range(0, rows, ROW_GROUP):
            some = slice(begin, begin + ROW_GROUP)
            ids = [
                [f"{letter}{code:08d}" for code in codes[some].tolist()]
                for letter, codes in (("U", log.user), ("B", log.position))
            ]
            table = pa.table([*ids, log.timestamp[some]], names)
            file.write_table(table)
    return path


def agree(folder: Path, rows: int) -> bool:
    """Whether both ways keep the same rows in the same order."""
    source = written(folder, rows)
    log = read_source(source).interactions
    log = log.take(first_of_duplicates(log))
    log = order(log.take(k_core(log, CORE)))
    kept, _ = out_of_core_filtered(recognise(source), folder / "kept", BadRows(), k_core=CORE)
    ours = pq.read_table(kept.interactions.path)
    return bool(
        np.array_equal(ours[SOURCE_ROW].to_numpy(), log.source_row)
        and ours[USER_ID].to_pylist() == log.user_ids[log.user].tolist()
    )


def filtered(source: Path, folder: Path, memory_limit: str) -> dict:
    """Seconds, rows kept, and peaks of memory beyond the imports and of files in the scratch."""
    scratch = folder / "scratch"
    scratch.mkdir()
    before = peak_bytes()
    peaks, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            peaks.append(size_of(scratch))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        begun = time.perf_counter()
        kept, _ = out_of_core_filtered(
            recognise(source),
            folder / "kept",
            BadRows(),
            k_core=CORE,
            memory_limit=memory_limit,
            scratch=scratch,
        )
        taken = time.perf_counter() - begun
    finally:
        done.set()
        watcher.join()
    rows = pq.ParquetFile(kept.interactions.path).metadata.num_rows
    return {
        "seconds": taken,
        "kept": rows,
        "peak_memory": peak_bytes() - before,
        "peak_disk": max(peaks),
    }


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, of which some may go while it is looked at."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def page(figures: list[dict], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    on = figures[0]
    lines = [
        "# Preparing a large log",
        "",
        f"`python tools/bench/prepare.py --dict-rows {given.dict_rows} --rows {given.rows} "
        f"--out-of-core {given.out_of_core} --repeats {given.repeats}`: a drawn log, "
        f"{ROWS_OF_A_USER} rows a user and {ROWS_OF_AN_ITEM} an item in the mean, both by Zipf's "
        "law (exponents 0.8 and 1.0), one row in a hundred repeated, 5-core, leave-one-out; numpy "
        f"{on['numpy']}, duckdb {on['duckdb']} ({on['machine']}). Peer: a set, Counters and a dict "
        "of lists, from tuples of integers; splits equal in every history, target and training "
        f"row. Goal: {RATIO:g}x. Projections to the {LARGEST:,} rows of Amazon Reviews 2023 are in "
        "proportion to the rows, not run.",
        "",
    ]
    for figure in figures:
        lines.append(f"- {figure['figure']}, {figure['rows']:,} rows: {said(figure)}.")
    return "\n".join([*lines, ""])


def said(figure: dict) -> str:
    """One figure in words."""
    if "dicts" in figure:
        low, high = figure["ratio_range"]
        return (
            f"dicts {figure['dicts']:,}, llmrec {figure['llmrec']:,}, ratio "
            f"{figure['ratio']} ({low} to {high})"
        )
    if "bytes_per_row" in figure:
        return (
            f"{figure['llmrec']:,}, peak {figure['bytes_per_row']} bytes a row with the log; "
            f"projected {figure['projected_minutes']} minutes and "
            f"{figure['projected_gb']} GB"
        )
    return (
        f"{figure['llmrec']:,} with {figure['memory_limit_mb']} MB for DuckDB, peak "
        f"{figure['peak_mb']:,} MB in all, {figure['disk_bytes_per_row']} bytes a row on disk; "
        f"projected {figure['projected_minutes']} minutes, {figure['projected_gb']} GB (of "
        f"{figure['within_gb']}) and {figure['projected_disk_gb']} GB of disk"
    )


if __name__ == "__main__":
    main()
