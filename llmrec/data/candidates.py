"""The candidate protocol: the target among random items that the user has not seen.

Candidates are drawn once, stored beside the examples and read by whoever ranks them, so that all
systems rank the same ones. Here too is how likely a target is among its candidates. Knows neither
prompts nor systems. The protocol, with 20 candidates, is that of AdaptRec.
"""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.files import replacing
from llmrec.data.records import Example, Examples, Ints
from llmrec.errors import DataError

CANDIDATES = "candidates"


def draw_candidates(
    examples: Examples, catalog_size: int, count: int, seed: int, purpose: int
) -> Ints:
    """(E, count) positions: each example's target and `count` - 1 unseen items, in random order.

    The items are distinct and drawn uniformly from the N = `catalog_size` less the example's
    history and target. A row's generator is seeded with the SHA-256 of `seed`, `purpose` (a number
    for the split), timestamp, target and user id, so a row's draw does not depend on the other
    rows and a subset keeps its candidates. Raises DataError where a user has fewer than
    `count` - 1 unseen items, ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"{count} candidates; there must be at least 1, the target")
    drawn = np.empty((len(examples), count), np.int32)
    for row, example in enumerate(examples):
        drawn[row] = _candidates(example, catalog_size, count, seed, purpose)
    return drawn


def _candidates(example: Example, catalog_size: int, count: int, seed: int, purpose: int) -> Ints:
    taken = np.unique(np.append(example.history, example.target))
    unseen = catalog_size - len(taken)
    if unseen < count - 1:
        raise DataError(
            f"user {example.user_id!r} has {unseen} unseen items besides the target, of "
            f"{catalog_size} in the catalog; {count} candidates need {count - 1}. Ask for at most "
            f"{unseen + 1} candidates, or leave out users with histories as long as this"
        )
    # The user id comes last: it alone can hold a space.
    content = f"{seed} {purpose} {example.timestamp} {example.target} {example.user_id}"
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    others = draw_unseen(taken, catalog_size, count - 1, generator)
    return generator.permutation(np.append(others, example.target)).astype(np.int32)


def draw_unseen(taken: Ints, catalog_size: int, count: int, generator: np.random.Generator) -> Ints:
    """(count,) positions, each once, of the N = `catalog_size` that are not `taken` (ascending)."""
    places = generator.choice(catalog_size - len(taken), count, replace=False)
    # From the r-th unseen item to its position: before it stand as many taken items as have at
    # most r unseen ones before them.
    others: Ints = places + np.searchsorted(taken - np.arange(len(taken)), places, side="right")
    return others


def write_candidates(path: Path, candidates: Ints) -> None:
    """Write (E, C) candidates as Parquet, one row an example in the examples' order."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(candidates.ravel()), candidates.shape[1])
    with replacing(path) as temporary:
        pq.write_table(pa.table({CANDIDATES: lists}), temporary)


def read_candidates(path: Path) -> Ints:
    """(E, C): what `write_candidates` wrote."""
    lists = pq.read_table(path)[CANDIDATES].combine_chunks()
    flat: Ints = lists.flatten().to_numpy().astype(np.int32)
    return flat.reshape(-1, int(lists.type.list_size))


def candidate_nll(
    scores: npt.NDArray[np.float64], candidates: Ints, targets: Ints
) -> npt.NDArray[np.float64]:
    """(U,) -log p(target) in nats, p renormalised over the user's candidates.

    scores, candidates (U, C): log-probabilities of positions, on any scale a user; targets (U,).
    Infinite where the target's probability is 0. Raises ValueError where a target does not stand
    exactly once among its candidates.
    """
    at = candidates == np.asarray(targets)[:, None]
    times = at.sum(axis=1)
    if (times != 1).any():
        row = int(np.argmax(times != 1))
        raise ValueError(
            f"target {targets[row]} stands {times[row]} times among the candidates of row {row}; "
            "it must stand there once"
        )
    highest = scores.max(axis=1, keepdims=True)
    shifted = scores - np.where(np.isneginf(highest), 0.0, highest)
    own = shifted[at]
    with np.errstate(divide="ignore", invalid="ignore"):
        nll = np.log(np.exp(shifted).sum(axis=1)) - own
    return np.where(np.isneginf(own), np.inf, nll)
