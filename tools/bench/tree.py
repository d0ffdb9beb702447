"""Laying a tree of 2,048 tokens end to end: two integers a token against a dense mask.

The peer adds to the same layout a (S, S) mask made on the host, each segment's sight looked up for
each pair of tokens. Equal masks first, then both in turns. One line of JSON on stdout.

    python tools/bench/tree.py --tokens 2048 --repeats 15
"""

import argparse
import json
import statistics
import time

import numpy as np

from llmrec.text.tree import FlatTree, Segment, TokenTree


def tree_of(tokens: int) -> TokenTree:
    """A user's row with every item a target: instruction, items, and a branch after each."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(0, 1000, count).astype(np.int32)

    segments, trunk = [Segment(ids(200))], 0
    while sum(len(segment.ids) for segment in segments) < tokens:
        segments.append(Segment(ids(6), trunk))
        trunk = len(segments) - 1
        segments.append(Segment(ids(8), trunk))
        segments.append(Segment(ids(9), len(segments) - 1, target=3))
    return TokenTree(tuple(segments))


def dense(tree: TokenTree) -> tuple[FlatTree, np.ndarray]:
    """The layout, and the mask from what each segment sees."""
    flat, count = tree.flatten(), len(tree.segments)
    sees = np.eye(count, dtype=bool)
    for index, segment in enumerate(tree.segments):
        if segment.parent >= 0:
            sees[index] |= sees[segment.parent]
    owner = np.repeat(np.arange(count), [len(segment.ids) for segment in tree.segments])
    return flat, sees[owner][:, owner] & np.tri(len(owner), dtype=bool)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tokens", type=int, default=2048)
    options.add_argument("--repeats", type=int, default=15)
    given = options.parse_args()
    tree = tree_of(given.tokens)
    flat, mask = dense(tree)
    if not np.array_equal(flat.mask, mask):
        raise SystemExit("the two masks differ")
    times: dict[str, list[float]] = {"spans": [], "dense": []}
    for _ in range(given.repeats):
        for name, lay in (("spans", TokenTree.flatten), ("dense", dense)):
            begun = time.perf_counter()
            lay(tree)
            times[name].append(1000 * (time.perf_counter() - begun))
    ratios = [d / s for s, d in zip(times["spans"], times["dense"], strict=True)]
    print(
        json.dumps(
            {
                "tokens": len(tree),
                "segments": len(tree.segments),
                "spans_ms": round(statistics.median(times["spans"]), 3),
                "dense_ms": round(statistics.median(times["dense"]), 2),
                "ratio": round(statistics.median(ratios), 1),
                "lowest": round(min(ratios), 1),
                "highest": round(max(ratios), 1),
                "repeats": given.repeats,
            }
        )
    )


if __name__ == "__main__":
    main()
