"""The TitleTrie at 1e3 to 1e7 titles: time and memory to build, to write and to read it.

Titles are synthetic: 28 tokens on the mean, the next token drawn from a skewed distribution of its
own behind every prefix. The skew was set so that as many titles branch as the 12,058 different ones
of Amazon Beauty (2014, 5-core; SmolLM2's tokenizer, an end token behind each) do; the first lines
show both. Sampled prefixes are compared first: with dicts of dicts, as recommender papers keep a
trie, up to --dicts titles, and with a scan of all titles above. Each size runs in a process of its
own. One line of JSON for each figure on stdout, and with --out a Markdown page.

    python tools/bench/trie.py --out results/trie-bench.md
    python tools/bench/trie.py --sizes 1e3 1e4 1e5 1e6 5e6 1e7
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from llmrec.text import trie_files
from llmrec.text.trie import TitleTrie, UnreachablePrefixError

SEED = 0
TOKENS = 28  # of a title on the mean, with its end token
VOCABULARY, FIRST = 49_152, 1_200  # tokens, and how many of them begin titles
SKEW, FIRST_SKEW = 11.0, 1.1  # the r-th choice is taken where u ** skew * log(choices) is log r
END = 0
SAMPLES, SCANS = 1_000, 20  # prefixes compared with dicts, and with a scan
MANY = 1_000_000  # titles from which on everything is timed once
BEAUTY = {
    "titles": 12_058,
    "tokens": 23.1,
    "stored_tokens": 19.0,
    "one_child": 0.979,
    "unique_prefix": 6.1,
    "branches_per_title": 0.386,
    "first_tokens": 855,
}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sizes", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e6])
    options.add_argument("--dicts", type=float, default=1e5, help="titles up to which dicts run")
    options.add_argument("--repeats", type=int, default=3, help="once from 1e6 titles on")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    figures = []
    for line in likeness():
        figures.append(line)
        print(json.dumps(line), flush=True)
    for titles in map(int, given.sizes):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found = process.submit(measured, titles, titles <= given.dicts, given.repeats).result()
        for line in found:
            figures.append(line)
            print(json.dumps(line), flush=True)
    if given.out:
        given.out.write_text(page(figures, given), "utf-8")


def likeness() -> list[dict]:
    """The branching of the real titles, and of as many synthetic ones of their length."""
    tokens, offsets = catalog(BEAUTY["titles"], BEAUTY["tokens"])
    trie = TitleTrie.from_flat(tokens, offsets)
    return [
        {"figure": "shape of titles", "source": "Amazon Beauty", **BEAUTY},
        {
            "figure": "shape of titles",
            "source": "synthetic",
            "titles": len(trie),
            **shape(trie, offsets),
            "seed": SEED,
        },
    ]


def measured(titles: int, with_dicts: bool, repeats: int) -> list[dict]:
    """The figures of one size, after checking the answers."""
    tokens, offsets = catalog(titles, TOKENS)
    repeats = 1 if titles >= MANY else repeats
    before = peak_memory(reset=True)
    cpu = time.process_time()
    built, trie = seconds(lambda: TitleTrie.from_flat(tokens, offsets))
    cpu = time.process_time() - cpu
    after = peak_memory()
    growth = round((after - before) / titles, 1) if before and after else None
    runs = [built] + [
        seconds(lambda: TitleTrie.from_flat(tokens, offsets))[0] for _ in range(repeats - 1)
    ]
    dicts = compared(trie, tokens, offsets, repeats) if with_dicts else {}
    if not with_dicts:
        scan(trie, tokens, offsets)
    arrays = sum(array.nbytes for array in vars(trie).values())
    on = {"titles": titles, "repeats": repeats, "seed": SEED, **provenance()}
    us, size = 1e6 * statistics.median(runs) / titles, arrays / titles
    build = {
        "figure": "trie: build, us per title",
        "llmrec": round(us, 2),
        "goal": 10.0,
        "seconds": round(statistics.median(runs), 3),
        "cpu_seconds": round(cpu, 3),
        "peak_growth_per_title": growth,
        "input_per_title": round((tokens.nbytes + offsets.nbytes) / titles, 1),
        **dicts.pop("build", {}),
        **on,
    }
    memory = {
        "figure": "trie: bytes per title",
        "llmrec": round(size, 1),
        "goal": 150.0,
        "limit": round(trie.tokens.nbytes / titles, 1),
        "gigabytes": round(arrays / 1e9, 3),
        **shape(trie, offsets),
        **on,
    }
    if dicts:
        memory |= {"dicts": dicts["bytes"], "ratio": round(dicts["bytes"] / size, 1)}
    return [build, memory, {"figure": "trie: files, seconds", **files(trie, repeats), **on}]


def compared(trie: TitleTrie, tokens, offsets, repeats: int) -> dict:
    """Build times from lists on both sides and the dicts' bytes, after checking the answers."""
    titles = len(trie)
    lists = [tokens[a:b].tolist() for a, b in pairwise(offsets.tolist())]
    tracemalloc.start()
    root = nested(lists)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    for prefix in sampled(tokens, offsets, SAMPLES):
        node = root
        for token in prefix:
            node = node[token]
        refuse(trie, prefix, sorted(node))
    del root, node
    theirs, ours = [], []
    for _ in range(repeats):  # alternating, so that a slow spell of the machine hits both
        ours.append(seconds(lambda: TitleTrie.from_sequences(lists))[0])
        theirs.append(seconds(lambda: nested(lists))[0])
    ratios = [round(t / o, 2) for t, o in zip(theirs, ours, strict=True)]
    return {
        "bytes": round(held / titles, 1),
        "build": {
            "from_lists": round(1e6 * statistics.median(ours) / titles, 2),
            "dicts": round(1e6 * statistics.median(theirs) / titles, 2),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        },
    }


def scan(trie: TitleTrie, tokens, offsets) -> None:
    """Compare sampled prefixes with a look at every title."""
    lengths = np.diff(offsets)
    for prefix in sampled(tokens, offsets, SCANS):
        rows = np.arange(len(trie))
        for depth, token in enumerate(prefix):
            rows = rows[lengths[rows] > depth]
            rows = rows[tokens[offsets[rows] + depth] == token]
        rows = rows[lengths[rows] > len(prefix)]
        refuse(trie, prefix, np.unique(tokens[offsets[rows] + len(prefix)]).tolist())


def refuse(trie: TitleTrie, prefix: list[int], expected: list[int]) -> None:
    """Leave when the trie allows anything else behind a prefix, or one that is in no title."""
    if trie.allowed(prefix).tolist() != expected:
        sys.exit(f"behind {prefix} the trie allows other tokens; nothing is timed")
    try:
        trie.allowed([*prefix, VOCABULARY])
    except UnreachablePrefixError:
        return
    sys.exit(f"the trie goes on behind {prefix} with a token of no title; nothing is timed")


def sampled(tokens, offsets, count: int) -> list[list[int]]:
    """Prefixes of random titles, of random lengths."""
    rng = np.random.default_rng(SEED + 1)
    rows = rng.integers(0, len(offsets) - 1, count)
    ends = rng.integers(0, np.diff(offsets)[rows] + 1)
    return [tokens[offsets[r] : offsets[r] + e].tolist() for r, e in zip(rows, ends, strict=True)]


def nested(sequences: list[list[int]]) -> dict:
    """The trie as dicts of dicts."""
    root: dict = {}
    for sequence in sequences:
        node = root
        for token in sequence:
            node = node.setdefault(token, {})
    return root


def files(trie: TitleTrie, repeats: int) -> dict:
    """Seconds to write a trie, and to read it with and without its hashes; the cache is warm."""
    times: dict[str, list[float]] = {"write": [], "read_verified": [], "read": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "trie"
        for _ in range(repeats):
            times["write"].append(seconds(lambda: trie_files.write(trie, folder, "bench"))[0])
            for name, verify in (("read_verified", True), ("read", False)):
                took, read = seconds(lambda v=verify: trie_files.read(folder, "bench", v))
                times[name].append(took)
        for name, array in vars(trie).items():
            if not np.array_equal(array, vars(read)[name]):
                sys.exit(f"{name} was read other than written")
        size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        **{name: round(statistics.median(t), 5) for name, t in times.items()},
        "megabytes": round(size / 1e6, 2),
    }


def catalog(titles: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic titles end to end: (T,) int32 tokens, (titles + 1,) offsets."""
    rng = np.random.default_rng(SEED)
    lengths = rng.poisson(mean - 3, titles) + 3
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.empty(int(offsets[-1]), np.int32)
    tokens[offsets[1:] - 1] = END
    prefix = np.zeros(titles, np.uint64)  # a hash of the tokens so far
    rows = np.arange(titles)
    for depth in range(int(lengths.max()) - 1):
        rows = rows[lengths[rows] > depth + 1]
        choices, skew = (VOCABULARY, SKEW) if depth else (FIRST, FIRST_SKEW)
        choice = (choices ** (rng.random(len(rows)) ** skew)).astype(np.uint64)
        prefix[rows] = mixed = scrambled(prefix[rows] + choice)
        tokens[offsets[rows] + depth] = mixed % np.uint64(VOCABULARY - 1) + 1
    return tokens, offsets


def scrambled(values: np.ndarray) -> np.ndarray:
    """64-bit integers spread over all 64 bits: two rounds of multiplying and shifting."""
    for odd, shift in ((0x9E3779B97F4A7C15, 29), (0xBF58476D1CE4E5B9, 32)):
        values = values * np.uint64(odd)
        values ^= values >> np.uint64(shift)
    return values


def shape(trie: TitleTrie, offsets: np.ndarray) -> dict:
    """How titles branch: what BEAUTY says of real ones."""
    titles = len(trie)
    children = np.diff(trie.children)
    lengths = np.diff(trie.begin)
    lengths[0] -= 1  # the root has no token
    leaves = np.flatnonzero(children == 0)
    several = trie.high[leaves] - trie.low[leaves]
    own = np.where(several == 1, lengths[leaves] - 1, 0)  # tokens behind the first unshared one
    whole = float(offsets[-1]) / titles
    inner = len(trie.tokens) - len(leaves)
    branches = int((children > 1).sum())
    return {
        "tokens": round(whole, 1),
        "stored_tokens": round(len(trie.tokens) / titles, 1),
        "one_child": round(1 - branches / inner, 3),
        "unique_prefix": round(whole - float(own.sum()) / titles, 1),
        "branches_per_title": round(branches / titles, 3),
        "first_tokens": int(children[0]),
    }


def peak_memory(reset: bool = False) -> int | None:
    """Bytes this process has held at most, or, after a reset, holds; None but on Linux."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", "ascii")
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return None
    return next(int(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("VmHWM"))


def seconds(run: Callable) -> tuple[float, object]:
    """How long a call took, and what it returned."""
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


def provenance() -> dict:
    """What every figure ran on."""
    return {
        "threads": 1,
        "cores": os.cpu_count(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def page(figures: list[dict], given: argparse.Namespace) -> str:
    """The figures as Markdown."""
    on = figures[-1]
    lines = [
        "# The TitleTrie from few titles to millions\n",
        f"`python tools/bench/trie.py --sizes {' '.join(f'{s:g}' for s in given.sizes)}`: one "
        f"thread ({on['machine']}), Python {on['python']}, numpy {on['numpy']}, seed {SEED}. "
        f"Medians of {given.repeats} repeats, one from {MANY:.0e} titles on. Up to "
        f"{given.dicts:.0e} titles the peer is a trie of dicts of dicts (bytes by tracemalloc), "
        "and both sides alternate. What both allow behind sampled prefixes was equal; above, a "
        "scan of all titles says what is allowed.\n",
        "Titles are synthetic. Their next token is drawn from a skewed distribution behind every "
        "prefix, set so that they branch as real ones do:\n",
        *table(
            figures,
            "shape of titles",
            "source titles tokens stored_tokens one_child "
            "unique_prefix branches_per_title first_tokens",
        ),
        "`stored tokens`: per title, shared prefixes once. `one child`: of the nodes that are no "
        "end. `unique prefix`: tokens until a title stands alone.\n",
        "## Building\n\nMicroseconds per title from flat arrays, and from Python lists on both "
        "sides, which is what the ratio compares. Peak growth is what the process held at most "
        "while building from flat arrays, the trie included, in bytes per title beside the input "
        "of the column after it. CPU seconds, of the first build, tell a busy machine.\n",
        *table(
            figures,
            "trie: build, us per title",
            "titles llmrec goal seconds cpu_seconds "
            "from_lists dicts ratio peak_growth_per_title input_per_title",
        ),
        "## Memory\n\nBytes per title of all arrays. Limit: the stored tokens alone.\n",
        *table(
            figures,
            "trie: bytes per title",
            "titles llmrec goal limit dicts ratio gigabytes "
            "tokens stored_tokens one_child unique_prefix",
        ),
        "## Files\n\nSeconds to write (synced to disk, hashes included), to read and compare "
        "every hash, and to map without; files in the page cache.\n",
        *table(figures, "trie: files, seconds", "titles write read_verified read megabytes"),
    ]
    return "\n".join(lines)


def table(figures: list[dict], name: str, keys: str) -> list[str]:
    """A line for each figure of a name, a column for each key."""
    columns = keys.split()
    lines = [[key.replace("_", " ") for key in columns], ["---"] * len(columns)]
    for figure in figures:
        if figure["figure"] == name:
            lines.append([str(figure.get(key, "-")) for key in columns])
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


if __name__ == "__main__":
    main()
