"""Reading files of interactions in this checkout and in another, one after the other.

The files hold the same drawn rows as plain CSV, quoted CSV, JSON lines and Parquet. Each reading is
a process of its own that imports `llmrec` from its checkout and times its second `read_source`, all
that it imports being there; the two take turns, and who begins changes with every repeat. What is
read is checked equal first. One line of JSON on stdout: medians in seconds by file, and the other's
divided by this one's.

    python tools/bench/reading.py --other ../llmrec-before
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parents[2]
ROWS_OF_A_USER, ROWS_OF_AN_ITEM = 10, 12
READ = """
import json, sys, time
from pathlib import Path
import llmrec
from llmrec.data.sources import read_source
read_source(Path(sys.argv[1]))  # imports what it needs, which is not timed
start = time.perf_counter()
raw = read_source(Path(sys.argv[1]))
seconds = time.perf_counter() - start
rows = raw.interactions
sums = [len(rows), len(raw.item_ids), int(rows.user.sum()), int(rows.position.sum())]
print(json.dumps({
    "seconds": seconds,
    "from": str(Path(llmrec.__file__).parents[1]),
    "held": [*sums, int(rows.timestamp.sum())],
}))
"""


def main() -> None:
    """Write, read in turns, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--other", type=Path, required=True, help="folder of another checkout")
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    sides = {"this": HERE, "other": given.other.resolve()}
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in written(Path(folder), given.rows).items():
            figures[name] = compared(path, sides, given.repeats)
    print(json.dumps({"rows": given.rows, "repeats": given.repeats, "seconds": figures}))


def written(folder: Path, rows: int) -> dict[str, Path]:
    """Name -> file; the same rows in each, titles with commas and quotes where they are quoted."""
    rng = np.random.default_rng(0)
    users = [f"u{n}" for n in rng.integers(0, max(rows // ROWS_OF_A_USER, 1), rows)]
    items = rng.integers(0, max(rows // ROWS_OF_AN_ITEM, 1), rows)
    table = {
        "user_id": users,
        "item_id": [f"i{n}" for n in items],
        "rating": rng.integers(1, 6, rows).tolist(),
        "timestamp": rng.integers(1_070_000_000, 1_700_000_000, rows).tolist(),
        "title": [f"Title of item {n}" for n in items],
    }
    quoted = table | {"title": [f'Title, "the {n}th"' for n in items]}
    paths = {"csv": folder / "plain.csv", "csv_quoted": folder / "quoted.csv"}
    paths |= {"jsonl": folder / "rows.jsonl", "parquet": folder / "rows.parquet"}
    for name, columns in (("csv", table), ("csv_quoted", quoted)):
        with paths[name].open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    with paths["jsonl"].open("w", encoding="utf-8") as out:
        for row in zip(*table.values(), strict=True):
            out.write(json.dumps(dict(zip(table, row, strict=True))) + "\n")
    pq.write_table(pa.table(table), paths["parquet"])
    return paths


def compared(path: Path, sides: dict[str, Path], repeats: int) -> dict[str, float]:
    """Medians of both sides, and their ratio: above 1 this checkout is faster."""
    held = {name: read(path, checkout)["held"] for name, checkout in sides.items()}
    if held["this"] != held["other"]:
        sys.exit(f"{path.name}: this checkout reads {held['this']}, the other {held['other']}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            seconds[name].append(read(path, sides[name])["seconds"])
    medians = {name: round(statistics.median(taken), 4) for name, taken in seconds.items()}
    return medians | {"other/this": round(medians["other"] / medians["this"], 3)}


def read(path: Path, checkout: Path) -> dict:
    """One reading by a process that imports that checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(  # in a folder without code, so that PYTHONPATH decides
        command, env=environment, cwd=path.parent, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    if Path(found["from"]) != checkout:
        sys.exit(f"llmrec was imported from {found['from']}, not from {checkout}")
    return found


if __name__ == "__main__":
    main()
