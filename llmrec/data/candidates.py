"""The candidate protocol: the target among some items, random ones or those of a retriever.

Candidates are drawn once, stored beside the examples and read by whoever ranks them, so that all
systems rank the same ones. Here too is how likely a target is among its candidates. Knows neither
prompts nor systems nor retrievers. Random ones, 20 of them, are the protocol of AdaptRec.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.files import replacing
from llmrec.data.records import Example, Examples, Ints
from llmrec.errors import DataError

CANDIDATES, LOG_Q = "candidates", "log_q"


def draw_candidates(
    examples: Examples, catalog_size: int, count: int, seed: int, purpose: int, draw: int = 0
) -> Ints:
    """(E, count) positions: each example's target and `count` - 1 unseen items, in random order.

    The items are distinct and drawn uniformly from the N = `catalog_size` less the example's
    history and target. A row's draw does not depend on the other rows, so a subset keeps its
    candidates; `draw` numbers those of one row (see `generator_of`). Raises DataError where a user
    has fewer than `count` - 1 unseen items, ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"{count} candidates; there must be at least 1, the target")
    drawn = np.empty((len(examples), count), np.int32)
    for row, example in enumerate(examples):
        generator = generator_of(example, seed, purpose, draw)
        drawn[row] = _candidates(example, catalog_size, count, generator)
    return drawn


def generator_of(example: Example, seed: int, purpose: int, draw: int = 0) -> np.random.Generator:
    """What draws for one example: seeded with the SHA-256 of `seed`, `purpose` (a number for the
    split), timestamp, target, user id and, after the first one, the number of the `draw`."""
    # The user id comes last: it alone can hold a space.
    content = f"{seed} {purpose} {example.timestamp} {example.target} {example.user_id}"
    content = f"draw {draw} {content}" if draw else content
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _candidates(
    example: Example, catalog_size: int, count: int, generator: np.random.Generator
) -> Ints:
    taken = np.unique(np.append(example.history, example.target))
    unseen = catalog_size - len(taken)
    if unseen < count - 1:
        raise DataError(
            f"user {example.user_id!r} has {unseen} unseen items besides the target, of "
            f"{catalog_size} in the catalog; {count} candidates need {count - 1}. Ask for at most "
            f"{unseen + 1} candidates, or leave out users with histories as long as this"
        )
    others = draw_unseen(taken, catalog_size, count - 1, generator)
    return generator.permutation(np.append(others, example.target)).astype(np.int32)


def as_trained(
    proposed: Ints, examples: Examples, seed: int, purpose: int, places: Ints | None = None
) -> Ints:
    """(E, C) candidates of training examples from C proposed ones (E, C), best first, shuffled.

    The target is always there. Where it is not among the proposed it takes the last place, or its
    own of `places` (E,), which a retriever that has seen the target is given: what it says of the
    target tells nothing.
    """
    found = np.empty_like(proposed)
    for row, example in enumerate(examples):
        others = proposed[row][proposed[row] != example.target]
        if len(others) == proposed.shape[1]:
            others = np.delete(others, -1 if places is None else int(places[row]))
        generator = generator_of(example, seed, purpose)
        found[row] = generator.permutation(np.append(others, example.target))
    return found


def shuffled(
    proposed: Ints, log_q: npt.NDArray[np.float64], examples: Examples, seed: int, purpose: int
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Proposed candidates and their log-probabilities, both (E, C), in an order that says nothing.

    Each example's by a generator of its own.
    """
    orders = [
        generator_of(example, seed, purpose).permutation(proposed.shape[1]) for example in examples
    ]
    order = np.array(orders, np.int64).reshape(proposed.shape)
    return np.take_along_axis(proposed, order, 1), np.take_along_axis(log_q, order, 1)


def draw_unseen(taken: Ints, catalog_size: int, count: int, generator: np.random.Generator) -> Ints:
    """(count,) positions, each once, of the N = `catalog_size` that are not `taken` (ascending)."""
    places = generator.choice(catalog_size - len(taken), count, replace=False)
    # From the r-th unseen item to its position: before it stand as many taken items as have at
    # most r unseen ones before them.
    others: Ints = places + np.searchsorted(taken - np.arange(len(taken)), places, side="right")
    return others


def write_candidates(
    path: Path, candidates: Ints, log_q: npt.NDArray[np.float64] | None = None
) -> None:
    """Write (E, C) candidates as Parquet, one row an example in the examples' order.

    `log_q` (E, C): the log-probabilities that their retriever gives them.
    """
    columns: dict[str, npt.NDArray[Any]] = {CANDIDATES: candidates}
    if log_q is not None:
        columns[LOG_Q] = log_q
    lists = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        for name, values in columns.items()
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(lists), temporary)


def read_candidates(path: Path) -> Ints:
    """(E, C): what `write_candidates` wrote."""
    return _lists(path, CANDIDATES).astype(np.int32)


def read_log_q(path: Path) -> npt.NDArray[np.float64]:
    """(E, C) log-probabilities of the candidates. Raises DataError where no retriever gave any."""
    if LOG_Q not in pq.read_schema(path).names:
        raise DataError(f"{path} holds random candidates; no retriever says how likely they are")
    return _lists(path, LOG_Q).astype(np.float64)


def _lists(path: Path, name: str) -> npt.NDArray[Any]:
    lists = pq.read_table(path, columns=[name])[name].combine_chunks()
    flat: npt.NDArray[Any] = lists.flatten().to_numpy()
    return flat.reshape(-1, int(lists.type.list_size))


def proposed(candidates: Ints, targets: Ints) -> npt.NDArray[np.bool_]:
    """(U,) whose target is one of their candidates (U, C)."""
    held: npt.NDArray[np.bool_] = (candidates == np.asarray(targets)[:, None]).any(axis=1)
    return held


def candidate_nll(
    scores: npt.NDArray[np.float64], candidates: Ints, targets: Ints
) -> npt.NDArray[np.float64]:
    """(U,) -log p(target) in nats, p renormalised over the user's candidates.

    scores, candidates (U, C): log-probabilities of positions, on any scale a user; targets (U,).
    Infinite where the target's probability is 0, as it is for a target that is none of the
    candidates. Raises ValueError where a target stands among them more than once.
    """
    at = candidates == np.asarray(targets)[:, None]
    times = at.sum(axis=1)
    if (times > 1).any():
        row = int(np.argmax(times > 1))
        raise ValueError(
            f"target {targets[row]} stands {times[row]} times among the candidates of row {row}; "
            "it must stand there once"
        )
    highest = scores.max(axis=1, keepdims=True)
    shifted = scores - np.where(np.isneginf(highest), 0.0, highest)
    own = np.where(times == 1, shifted[np.arange(len(at)), at.argmax(axis=1)], -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        nll = np.log(np.exp(shifted).sum(axis=1)) - own
    return np.where(np.isneginf(own), np.inf, nll)
