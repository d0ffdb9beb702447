"""Splitting: ordered interactions into train, valid and test Examples.

Four rules: `leave_one_out`, `global_time`, `sliding_window` (SOFT, arXiv 2505.20771) and `by_user`
(AdaptRec, arXiv 2504.08786). Each takes interactions ordered by `order`, whose rule for equal
timestamps is stated. A history holds only rows before its target in that order. Items may be held
back from all but the targets of valid and test (`held_back`). Array code: no loop over rows or
users. Knows nothing of files, recipes or text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Bools, Examples, Interactions, Ints, Longs
from llmrec.data.sorting import rows_in_order

SOURCE_ROW_TIES, ITEM_TIES, SHUFFLED_TIES = "source_row", "item_id", "shuffle"
TIE_RULES = (SOURCE_ROW_TIES, ITEM_TIES, SHUFFLED_TIES)


@dataclass(frozen=True)
class Split:
    """Examples of the three parts, and the training `interactions` that anything may count."""

    train: Examples
    valid: Examples
    test: Examples
    interactions: Interactions


def order(interactions: Interactions, ties: str = SOURCE_ROW_TIES, seed: int = 0) -> Interactions:
    """Rows by user, then time, then the rule for equal timestamps.

    `source_row`: as in the raw file; `item_id`: by catalog position; `shuffle`: by a seeded draw
    that does not depend on the order of the input. What is still equal goes by source row.
    """
    last = interactions.source_row
    keys: list[npt.NDArray[Any]]
    if ties == SOURCE_ROW_TIES:
        keys = [last]
    elif ties == ITEM_TIES:
        keys = [interactions.position, last]
    elif ties == SHUFFLED_TIES:
        canonical = rows_in_order(
            [interactions.user, interactions.timestamp, interactions.position, last]
        )
        draw = np.empty(len(interactions), dtype=np.int64)
        draw[canonical] = np.random.default_rng(seed).permutation(len(interactions))
        keys = [draw]
    else:
        raise ValueError(f"ties is {ties!r}; allowed: {', '.join(TIE_RULES)}")
    return interactions.take(rows_in_order([interactions.user, interactions.timestamp, *keys]))


def leave_one_out(ordered: Interactions, held_back: Bools | None = None) -> Split:
    """Each user's last item is the test target, the one before it the valid target.

    The rest trains: its last item is the train target. A user with fewer than three rows has no
    target, and all rows train.
    """
    first, end = _user_bounds(ordered)
    tested = end - first >= 3
    train_end = np.where(tested, end - 2, end)
    in_train = np.arange(len(ordered)) < np.repeat(train_end, end - first)
    return _split(
        ordered,
        in_train,
        train_targets=(train_end - 1)[train_end - first >= 2],
        valid_targets=end[tested] - 2,
        test_targets=end[tested] - 1,
        held_back=held_back,
    )


def global_time(
    ordered: Interactions, ratios: Sequence[float] = (0.8, 0.1, 0.1), held_back: Bools | None = None
) -> Split:
    """Two cuts in time; rows of equal timestamp are never cut apart.

    The cuts are the timestamps at which the given shares of all rows lie behind. Train: rows
    before the first cut; a user's last of them is the train target. In the two later spans a
    user's first row is the target, if the user has an earlier row; its history is all of these.
    """
    first, end = _user_bounds(ordered)
    total = len(ordered)
    times = np.sort(ordered.timestamp)
    cuts = [times[at] if at < total else np.iinfo(np.int64).max for at in _cut_rows(total, ratios)]
    part = np.searchsorted(cuts, ordered.timestamp, side="right")  # 0 train, 1 valid, 2 test
    users = np.repeat(np.arange(len(first)), end - first)
    count = [np.bincount(users[part == p], minlength=len(first)) for p in range(3)]
    train_end, valid_end = first + count[0], first + count[0] + count[1]
    return _split(
        ordered,
        part == 0,
        train_targets=(train_end - 1)[count[0] >= 2],
        valid_targets=train_end[(count[1] > 0) & (train_end > first)],
        test_targets=valid_end[(count[2] > 0) & (valid_end > first)],
        held_back=held_back,
    )


def by_user(
    ordered: Interactions, ratios: Sequence[float] = (0.8, 0.1, 0.1), held_back: Bools | None = None
) -> Split:
    """Users sorted by their first timestamp and cut by the ratios; the target is the last item.

    A user with one row has no target; all rows of the train users train.
    """
    first, end = _user_bounds(ordered)
    by_start = np.lexsort([np.arange(len(first)), ordered.timestamp[first]])
    part_of = np.empty(len(first), dtype=np.int64)
    cuts = _cut_rows(len(first), ratios)
    part_of[by_start] = np.searchsorted(cuts, np.arange(len(first)), side="right")
    asked = end - first >= 2
    in_train = np.repeat(part_of == 0, end - first)
    targets = [end[asked & (part_of == part)] - 1 for part in range(3)]
    return _split(ordered, in_train, targets[0], targets[1], targets[2], held_back)


def sliding_window(
    ordered: Interactions,
    window: int = 11,
    ratios: Sequence[float] = (0.8, 0.1, 0.1),
    held_back: Bools | None = None,
) -> Split:
    """Every run of `window` rows of a user: the last is the target, the others the history.

    Windows go by their last timestamp (then by user, then by place) and are cut by the ratios.
    Training interactions are the rows of the train windows. A user with fewer rows has none.
    """
    shown = _shown(ordered, held_back)
    rows = np.flatnonzero(shown)  # of which histories are made
    first, end = _user_bounds(ordered)
    before: Longs = np.cumsum(shown) - shown  # shown rows in front of each row
    place: Longs = before - np.repeat(before[first], end - first)
    last = np.flatnonzero(place >= window - 1)
    last = last[np.argsort(ordered.timestamp[last], kind="stable")]
    low, high = _cut_rows(len(last), ratios)
    train = last[:low][shown[last[:low]]]
    covered = np.zeros(len(rows) + 1, dtype=np.int64)  # +1 where a window opens, -1 behind it
    np.add.at(covered, before[train] - (window - 1), 1)
    np.add.at(covered, before[train] + 1, -1)
    in_train = np.zeros(len(ordered), dtype=np.bool_)
    in_train[rows[np.cumsum(covered[:-1]) > 0]] = True

    def examples(targets: Longs) -> Examples:
        width = window - 1
        offsets = np.arange(len(targets) + 1, dtype=np.int64) * width
        positions = np.zeros(0, np.int32)
        if len(targets):
            runs = np.lib.stride_tricks.sliding_window_view(ordered.position[rows], width)
            positions = runs[before[targets] - width].ravel()
        return _examples(ordered, positions, offsets, targets, rows[before[targets] - 1], in_train)

    return Split(
        examples(train), examples(last[low:high]), examples(last[high:]), ordered.take(in_train)
    )


def with_train_users(split: Split, users: Longs) -> Split:
    """The split with only the training rows and train examples of `users` (codes).

    Valid and test examples stay; which of them are cold is found anew.
    """
    kept = np.isin(split.interactions.user, users)
    interactions = split.interactions.take(kept)
    known = np.zeros(_catalog_bound(split), dtype=np.bool_)
    known[interactions.position] = True
    names = interactions.user_ids[users]
    train = split.train.take(np.isin(split.train.user_ids, names))
    now = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # -1 stays -1
    parts = [
        replace(part, cold=~known[part.targets], rows_before=now[part.rows_before])
        for part in (train, split.valid, split.test)
    ]
    return Split(parts[0], parts[1], parts[2], interactions)


def _catalog_bound(split: Split) -> int:
    arrays = (
        split.interactions.position,
        split.train.targets,
        split.valid.targets,
        split.test.targets,
    )
    return max((int(a.max()) + 1 for a in arrays if len(a)), default=0)


def _cut_rows(total: int, ratios: Sequence[float]) -> tuple[int, int]:
    """How many of `total` lie before the first and before the second cut."""
    shares = np.cumsum(ratios) / np.sum(ratios)
    return round(float(shares[0]) * total), round(float(shares[1]) * total)


def _user_bounds(ordered: Interactions) -> tuple[Longs, Longs]:
    """First row and one past the last row of every user that has rows, in row order."""
    rows = len(ordered)
    first = np.flatnonzero(np.diff(ordered.user, prepend=-1) != 0)
    return first, np.append(first[1:], rows) if rows else first


def _shown(ordered: Interactions, held_back: Bools | None) -> Bools:
    """(R,) the rows of items that are not held back; `held_back` (N,) by position."""
    if held_back is None:
        return np.ones(len(ordered), dtype=np.bool_)
    shown: Bools = ~held_back[ordered.position]
    return shown


def _in_catalog(ordered: Interactions, in_train: npt.NDArray[Any]) -> Bools:
    """(N,) whether an item occurs in training, over the positions that occur at all."""
    bound = int(ordered.position.max()) + 1 if len(ordered) else 0
    known = np.zeros(bound, dtype=np.bool_)
    known[ordered.position[in_train]] = True
    return known


def _split(
    ordered: Interactions,
    in_train: Bools,
    train_targets: npt.NDArray[np.int64],
    valid_targets: npt.NDArray[np.int64],
    test_targets: npt.NDArray[np.int64],
    held_back: Bools | None,
) -> Split:
    """Examples whose history is all of the user's rows before the target row.

    Rows of items held back are left out of training and of every history; a train target that is
    one gives way to the user's latest row before it that is none, and an example without a history
    is none.
    """
    shown = _shown(ordered, held_back)
    in_train = in_train & shown
    first, end = _user_bounds(ordered)
    start_of_row = np.repeat(first, end - first)
    latest = np.maximum.accumulate(np.where(shown, np.arange(len(ordered)), -1))
    before: Longs = np.cumsum(shown) - shown  # shown rows in front of each row

    def examples(targets: Longs) -> Examples:
        start = start_of_row[targets]
        lengths: Longs = before[targets] - before[start]
        targets, start, lengths = targets[lengths > 0], start[lengths > 0], lengths[lengths > 0]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # Targets ascend, one a user: +1 where a history opens, -1 behind it.
        steps = np.zeros(len(ordered), dtype=np.int8)
        steps[start] = 1
        steps[targets] = -1
        in_history = np.cumsum(steps, dtype=np.int8).view(np.bool_) & shown
        histories = ordered.position[in_history]
        return _examples(ordered, histories, offsets, targets, latest[targets - 1], in_train)

    trained = latest[train_targets] if len(train_targets) else train_targets
    trained = trained[trained >= start_of_row[train_targets]]
    return Split(
        examples(trained), examples(valid_targets), examples(test_targets), ordered.take(in_train)
    )


def _examples(
    ordered: Interactions,
    histories: Ints,
    offsets: Longs,
    targets: Longs,
    before: Longs,
    trained: Bools,
) -> Examples:
    """Examples over history positions end to end, target rows and the history rows right before.

    `trained`: which rows train.
    """
    chosen, known = ordered.position[targets], _in_catalog(ordered, trained)
    return Examples(
        user_ids=ordered.user_ids[ordered.user[targets]],
        offsets=offsets,
        positions=histories,
        targets=chosen,
        timestamps=ordered.timestamp[targets],
        tied=ordered.timestamp[targets] == ordered.timestamp[before],
        cold=~known[chosen],
        rows_before=np.where(trained, np.cumsum(trained) - 1, -1)[before],
    )
