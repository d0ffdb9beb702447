"""Finding similar users: an approximate index against flat search, and six measures against loops.

Users: histories of 10 items, each from one of a user's 3 tastes, where the item at place r of a
taste is chosen about as often as 1 / r. Index: a user is the unit mean of its items' vectors, an
item's the direction of one of 200 tastes and 0.7 of a random one; batches of new users ask for the
10 nearest, against faiss's flat search. Recall is measured first. Measures: each of 1e4 users' most
alike user by equal weights, found by the retriever (the nearest by cosine, ranked) and among all
pairs. Loops and arrays are checked equal first; over all pairs both are timed on a part and
projected. One line of JSON for each figure on stdout, and with --out a Markdown page.

    python tools/bench/retrieval.py --out results/retrieval-bench.md
    python tools/bench/retrieval.py --quick
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import scipy

from llmrec.data.records import Interactions
from llmrec.retrieval.index import VectorIndex
from llmrec.retrieval.retriever import Retriever
from llmrec.retrieval.similarity import MEASURES, measured
from llmrec.retrieval.snapshots import Queries, Snapshots
from llmrec.retrieval.vectors import cooccurrence_factors, unit, window_vectors

SEED = 0
HISTORY = 10  # items of a user
OWN_TASTES = 3
DIMENSIONS, TASTES, ITEMS = 384, 200, 20_000  # of the users that are indexed
NEAREST, BATCH, ASKED = 10, 256, 2_048  # users wanted, asked for at once, asked for in all
FACTORS, FEW_TASTES, FEW_ITEMS = 64, 50, 2_000  # of the users that are measured
COARSE = (200, 400)  # users the retriever ranks for each
RECALL = 0.97  # asked of the index among its own vectors; new users must reach 0.95


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=2, help="of faiss")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    faiss.omp_set_num_threads(given.threads)
    figures = []
    for users in (10_000,) if given.quick else (10_000, 1_000_000):
        figures.append(index_figure(users, given.repeats))
        print(json.dumps(figures[-1]), flush=True)
    users, asked, pairs = (1_000, 100, 200) if given.quick else (10_000, 500, 2_000)
    for figure in measures_figures(users, asked, pairs):
        figures.append(figure)
        print(json.dumps(figure), flush=True)
    if given.out:
        given.out.write_text(page(figures, given), "utf-8")


def index_figure(users: int, repeats: int) -> dict:
    """Queries per second of ivf_sq8 and of flat search, and their ratio, after the recall."""
    rng = np.random.default_rng(SEED)
    tastes = unit(rng.standard_normal((TASTES, DIMENSIONS)))
    of_item = np.sort(rng.integers(0, TASTES, ITEMS))
    items = unit(tastes[of_item] + 0.7 * unit(rng.standard_normal((ITEMS, DIMENSIONS))))
    vectors = window_vectors(histories(rng, users, of_item), items)
    queries = window_vectors(histories(rng, ASKED, of_item), items)
    flat = VectorIndex.build(vectors, "flat")
    begun = time.perf_counter()
    index = VectorIndex.build(vectors, "ivf_sq8", RECALL)
    built = time.perf_counter() - begun
    del vectors

    def ask(one: VectorIndex, some: np.ndarray) -> np.ndarray:
        return one.search(some, NEAREST, np.full(len(some), users))[0]

    few = queries[:BATCH]
    answers = zip(ask(index, few).tolist(), ask(flat, few).tolist(), strict=True)
    recall = np.mean([len(set(found) & set(exact)) / NEAREST for found, exact in answers])
    if recall < 0.95:
        sys.exit(f"recall {recall:.3f} of the {NEAREST} nearest is below 0.95; nothing is timed")
    rates = []
    for _ in range(repeats):  # alternating, so that a slow spell of the machine hits both
        one = len(few) / seconds(lambda: ask(flat, few))
        many = [queries[start : start + BATCH] for start in range(0, ASKED, BATCH)]
        other = ASKED / seconds(lambda: [ask(index, batch) for batch in many])  # noqa: B023
        rates.append((one, other))
    ratios = [round(other / one, 1) for one, other in rates]
    return {
        "figure": "similar users, queries per second",
        "users": users,
        "dimensions": DIMENSIONS,
        "flat": round(statistics.median(r[0] for r in rates), 1),
        "ivf_sq8": round(statistics.median(r[1] for r in rates), 1),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "goal": 20 if users >= 10**6 else None,
        "recall_at_10": round(float(recall), 4),
        "goal_recall": 0.95,
        "bytes_per_user": round(index.bytes_per_vector, 1),
        "goal_bytes": 450,
        "flat_bytes": 4 * DIMENSIONS,
        "nprobe": index.nprobe,
        "build_seconds": round(built, 1),
        "batch": BATCH,
        "repeats": repeats,
        **provenance(),
    }


def measures_figures(users: int, asked: int, pairs: int) -> Iterator[dict]:
    """Seconds for everybody's most alike user by the retriever, by arrays and by loops."""
    rng = np.random.default_rng(SEED)
    of_item = np.sort(rng.integers(0, FEW_TASTES, FEW_ITEMS))
    windows = histories(rng, users, of_item)
    rows = np.arange(windows.size)
    log = Interactions(
        np.repeat(np.arange(users), HISTORY).astype(np.int32),
        windows.ravel(),
        rows,
        rows,
        np.arange(users).astype(object),
    )
    items = cooccurrence_factors(log, FEW_ITEMS, FACTORS)
    code = np.arange(users, dtype=np.int32)
    long = code.astype(np.int64)
    snapshots = Snapshots(code, windows, windows[:, -1], np.zeros_like(long), long)
    queries = Queries(code, windows, np.ones_like(long))

    drawn = rng.integers(0, users, (pairs, 2))
    mine = measured(windows[drawn[:, 0]], windows[drawn[:, 1]][:, None], items)[:, 0]
    looked_up, computed = (looped(windows, items, drawn, table) for table in (True, False))
    for values, _ in (looked_up, computed):
        apart = float(np.abs(mine - values).max())
        if apart > 1e-5:
            sys.exit(f"loops and arrays differ by {apart:.1e}; nothing is timed")

    some = rng.permutation(users)[:asked]
    best, all_pairs, half = None, 0.0, users * (users - 1) / 2
    for coarse in COARSE:
        begun = time.perf_counter()
        retriever = Retriever(snapshots, items, dict.fromkeys(MEASURES, 1.0), coarse)
        found = retriever.retrieve(queries, 1)
        took = time.perf_counter() - begun
        if best is None:  # the same for every number of coarse neighbours
            begun = time.perf_counter()
            best = np.array([best_of_all(retriever, query) for query in some.tolist()])
            all_pairs = (time.perf_counter() - begun) * users / asked
        yield {
            "figure": "most alike user by six measures",
            "users": users,
            "coarse": coarse,
            "llmrec_seconds": round(took, 1),
            "arrays_seconds": round(all_pairs),
            "arrays_ratio": round(all_pairs / took, 1),
            # All measures are symmetric, so loops need each pair once.
            "loops_seconds": round(computed[1] * half),
            "goal": 1000,
            "loops_ratio": round(computed[1] * half / took),
            "table_loops_seconds": round(looked_up[1] * half),
            "table_loops_ratio": round(looked_up[1] * half / took),
            "microseconds_a_pair": {
                "loops": round(1e6 * computed[1], 1),
                "table_loops": round(1e6 * looked_up[1], 1),
                "arrays": round(1e6 * all_pairs / users**2, 2),
            },
            "top_1_as_good": float((found.score[some, 0] >= best - 1e-4).mean().round(4)),
            "goal_top_1": 0.95,
            "timed_pairs": pairs,
            "timed_queries": asked,
            "items": FEW_ITEMS,
            "dimensions": FACTORS,
            **provenance(),
        }


def histories(rng: np.random.Generator, users: int, of_item: np.ndarray) -> np.ndarray:
    """(users, 10) positions; `of_item` is each item's taste, ascending, its popular items first."""
    tastes = of_item[-1] + 1
    start = np.searchsorted(of_item, np.arange(tastes))
    size = np.bincount(of_item, minlength=tastes)
    own = rng.integers(0, tastes, (users, OWN_TASTES))
    taste = np.take_along_axis(own, rng.integers(0, OWN_TASTES, (users, HISTORY)), axis=1)
    place = (1.0 + size[taste]) ** rng.random(taste.shape) - 1.0  # uniform in its logarithm
    return (start[taste] + place.astype(np.int64)).astype(np.int32)


def best_of_all(retriever: Retriever, query: int) -> float:
    """The score of one user's most alike other user among all."""
    windows = retriever.snapshots.windows
    values = measured(windows[query : query + 1], windows[None], retriever.item_vectors)[0]
    score = values @ retriever.weights
    score[query] = -1.0
    return float(score.max())


def looped(
    windows: np.ndarray, items: np.ndarray, drawn: np.ndarray, table: bool
) -> tuple[np.ndarray, float]:
    """The six measures of the drawn pairs in plain Python, and the seconds a pair takes.

    Means of the windows are made before. With `table` so are the products of all items; else each
    cell of the warping makes its own with numpy.
    """
    means = window_vectors(windows, items)
    products = (items @ items.T).tolist() if table else None
    lists = windows.tolist()
    begun = time.perf_counter()
    values = []
    for i, j in drawn.tolist():
        a, b = lists[i], lists[j]
        if products is None:
            cost = [[0.0 if x == y else (1 - float(items[x] @ items[y])) / 2 for y in b] for x in a]
        else:
            cost = [[0.0 if x == y else (1 - products[x][y]) / 2 for y in b] for x in a]
        values.append(
            [
                max(0.0, float(means[i] @ means[j])),
                len({*a} & {*b}) / len({*a} | {*b}),
                common(a, b) / min(len(a), len(b)),
                recency(a, b),
                moves(a, b),
                1 - warped(cost) / (len(a) + len(b)),
            ]
        )
    return np.array(values), (time.perf_counter() - begun) / len(drawn)


def common(a: list[int], b: list[int]) -> int:
    """Length of the longest common subsequence."""
    above = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
        above = row
    return above[-1]


def recency(a: list[int], b: list[int]) -> float:
    """Cosine of the weights by recency."""
    left = {x: 1 / (len(a) - i) for i, x in enumerate(a)}  # a later place replaces an earlier
    right = {x: 1 / (len(b) - i) for i, x in enumerate(b)}
    both = sum(w * right[x] for x, w in left.items() if x in right)
    norm = sum(w * w for w in left.values()) * sum(w * w for w in right.values())
    return both / norm**0.5


def moves(a: list[int], b: list[int]) -> float:
    """Agreement of transitions."""
    left, right = set(pairwise(a)), set(pairwise(b))
    return len(left & right) / min(len(left), len(right))


def warped(cost: list[list[float]]) -> float:
    """Cost of the cheapest path."""
    above = [0.0] + [float("inf")] * len(cost[0])
    for line in cost:
        row = [float("inf")]
        for j, value in enumerate(line):
            row.append(value + min(above[j], above[j + 1], row[j]))
        above = row
    return above[-1]


def seconds(run: Callable) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def provenance() -> dict:
    """What every figure ran on."""
    return {
        "seed": SEED,
        "threads": faiss.omp_get_max_threads(),
        "faiss": faiss.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def page(figures: list[dict], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    indexed = [f for f in figures if "recall_at_10" in f]
    measured_users = [f for f in figures if "coarse" in f]
    alike = measured_users[0]
    command = "python tools/bench/retrieval.py" + (" --quick" if given.quick else "")
    lines = [
        f"# Finding similar users\n\n`{command} --repeats {given.repeats} --threads "
        f"{given.threads}`: {alike['machine']} CPU, {alike['threads']} threads, faiss "
        f"{alike['faiss']}, numpy {alike['numpy']}, scipy {alike['scipy']}, Python "
        f"{alike['python']}, seed {SEED}. Users are made: a user has {OWN_TASTES} tastes and chose "
        f"{HISTORY} items, each from one of them, the r-th item of a taste about 1 / r as often.\n",
        f"## Index\n\nQueries per second for the {NEAREST} nearest of users with {DIMENSIONS} "
        f"dimensions (unit means of items from {TASTES} tastes, {ITEMS:,} items), {BATCH} new "
        "users asked at a time. Against faiss's flat search over the same vectors; medians of "
        f"{given.repeats} alternating repeats. Bytes are of the whole index; goals: {20} times the "
        "rate at 1,000,000 users, recall 0.95, 450 bytes.\n",
        *table(
            indexed,
            "users flat ivf_sq8 ratio recall_at_10 bytes_per_user flat_bytes nprobe build_seconds",
        ),
        f"## Six measures\n\nSeconds until each of {alike['users']:,} users has the user most "
        "alike by equal weights. llmrec: index, nearest users by cosine (coarse), ranked by "
        f"arrays. Arrays: the same code over all pairs, from {alike['timed_queries']} users. "
        f"Loops: plain Python over each pair once, projected from {alike['timed_pairs']:,} pairs; "
        "table loops look the items' products up in a list made before. Values equal within 1e-5. "
        "Top 1 as good: how often llmrec's user scores what the best of all pairs does (1e-4). "
        "Goals: 1,000 times the loops, 0.95.\n",
        *table(
            measured_users,
            "users coarse llmrec_seconds arrays_seconds arrays_ratio "
            "loops_seconds loops_ratio table_loops_seconds table_loops_ratio "
            "top_1_as_good",
        ),
    ]
    return "\n".join(lines)


def table(figures: list[dict], keys: str) -> list[str]:
    """A line for each figure, a column for each key."""
    columns = keys.split()
    lines = [[key.replace("_", " ") for key in columns], ["---"] * len(columns)]
    for f in figures:
        shown = {**f}
        if "ratio" in f:
            shown["ratio"] = "{} ({} to {})".format(f["ratio"], *f["ratio_range"])
        lines.append([str(shown[key]) for key in columns])
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


if __name__ == "__main__":
    main()
