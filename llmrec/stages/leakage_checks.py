"""What must hold of each part of a run against the log that it was prepared from."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llmrec.data.records import Bools, Example, Examples, Interactions, Ints, Longs
from llmrec.inference.pools import Neighbour, Pools

LISTED = 20  # violations told in words; all are counted


NOT_THERE = -1


class Findings:
    """What was looked at, and what was wrong with it."""

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter()
        self.violations = 0
        self.examples: list[str] = []

    def wrong(self, sentence: str) -> None:
        """Count a violation; the first ones are kept in words."""
        self.violations += 1
        if len(self.examples) < LISTED:
            self.examples.append(sentence)


class Log:
    """The whole ordered log, R rows, and where in it something stands.

    `shown` (R,): not of an item that is held back (N,), which nothing but a target may be.
    """

    def __init__(
        self, rows: Interactions, catalog: Sequence[Any], held_back: Bools | None = None
    ) -> None:
        self.rows, self.items = rows, len(catalog)
        self.shown = np.ones(len(rows), np.bool_)
        if held_back is not None:
            self.shown = ~held_back[rows.position]
        first = np.flatnonzero(np.diff(rows.user, prepend=-1) != 0)
        ends = np.append(first[1:], len(rows))
        names = rows.user_ids[rows.user[first]].tolist()
        self._spans = dict(zip(names, zip(first.tolist(), ends.tolist(), strict=True), strict=True))
        self._by_source = np.argsort(rows.source_row)
        self._sources = rows.source_row[self._by_source]

    def span(self, user_id: str) -> tuple[int, int]:
        """A user's first row and end; an empty span for a user that is not in the log."""
        return self._spans.get(user_id, (0, 0))

    def at(self, source_rows: Longs) -> Longs:
        """(n,) rows of the log by their source rows, -1 where there is none."""
        place = np.searchsorted(self._sources, source_rows)
        place = np.minimum(place, len(self._sources) - 1)
        there = self._sources[place] == source_rows
        return np.where(there, self._by_source[place], NOT_THERE)

    def at_time(self, user_id: str, time: int) -> Longs:
        """The rows of a user at a time."""
        first, end = self.span(user_id)
        times = self.rows.timestamp[first:end]
        return np.arange(
            first + np.searchsorted(times, time, side="left"),
            first + np.searchsorted(times, time, side="right"),
        )

    def targets(self, examples: Examples) -> Longs:
        """(E,) the row of each example's target, -1 where there is none."""
        rows = np.full(len(examples), NOT_THERE, np.int64)
        for number, example in enumerate(examples):
            at = self.at_time(example.user_id, example.timestamp)
            at = at[self.rows.position[at] == example.target]
            if len(at):
                rows[number] = at[0]
        return rows


def check_training(
    log: Log,
    training: Interactions,
    examples: dict[str, Examples],
    targets: dict[str, Longs],
    file: str,
    found: Findings,
) -> Bools:
    """Each is a row of the log and stands before every valid and test target of its user.

    Returns (R,) which rows of the log train.
    """
    found.checked["training_interactions"] += len(training)
    at = log.at(training.source_row)
    rows, names = log.rows, training.user_ids[training.user]
    known = (at != NOT_THERE) & (rows.user_ids[rows.user[at]] == names)
    known &= rows.position[at] == training.position
    known &= rows.timestamp[at] == training.timestamp
    for row in np.flatnonzero(~known).tolist():
        found.wrong(
            f"{file} row {row}: user {names[row]!r}, source row "
            f"{training.source_row[row]}, time {training.timestamp[row]} is no such row "
            "of the log"
        )
    trained = np.zeros(len(rows), np.bool_)
    trained[at[known]] = True
    for row in np.flatnonzero(trained & ~log.shown).tolist():
        found.wrong(
            f"{file}: user {rows.user_ids[rows.user[row]]!r}, time {rows.timestamp[row]}: position "
            f"{rows.position[row]} is held back and may train nothing"
        )
    asked = {
        int(row): f"{part}.parquet row {number}"
        for part in ("valid", "test")
        for number, row in enumerate(targets[part].tolist())
    }
    for (first, end), row in first_targets(log, examples, targets).items():
        for late in np.flatnonzero(trained[row:end]) + row:
            where = int(np.argmax(known & (at == late)))
            what = (
                f"is the target of {asked[int(late)]}"
                if int(late) in asked
                else f"stands behind the target of {asked[row]}"
            )
            found.wrong(
                f"{file} row {where}: user {rows.user_ids[rows.user[first]]!r}, time "
                f"{rows.timestamp[late]} {what}, time {rows.timestamp[row]}"
            )
    return trained


def first_targets(
    log: Log, examples: dict[str, Examples], targets: dict[str, Longs]
) -> dict[tuple[int, int], int]:
    """The earliest valid or test target of each user who has one, by the user's rows."""
    earliest: dict[tuple[int, int], int] = {}
    for part in ("valid", "test"):
        for user_id, row in zip(examples[part].user_ids, targets[part].tolist(), strict=True):
            if row != NOT_THERE:
                span = log.span(user_id)
                earliest[span] = min(row, earliest.get(span, row))
    return earliest


def wrong_in_history(log: Log, example: Example, target: int) -> str | None:
    """What a history holds that the rows before the target are not."""
    first, end = log.span(example.user_id)
    history, position = example.history, log.rows.position
    before = np.flatnonzero(log.shown[first:target]) + first
    if len(history) > len(before):
        return f"a history of {len(history)}, and {len(before)} rows stand before the target"
    others = np.flatnonzero(history != position[before[len(before) - len(history) :]])
    if not len(others):
        return None
    place = int(others[-1])  # the latest items are what a leak would bring
    late = np.flatnonzero(position[target:end] == history[place]) + target
    when = (
        f"chosen at time {log.rows.timestamp[late[0]]}, not before the target"
        if len(late)
        else "which the user did not choose there"
    )
    return f"history place {place} holds position {history[place]}, {when}"


def check_candidates(
    examples: Examples,
    drawn: Ints,
    count: int,
    items: int,
    file: str,
    found: Findings,
    proposed: bool = False,
) -> None:
    """The target once among distinct items of the catalog that the history does not hold.

    `proposed`: by a retriever, which may miss the target.
    """
    found.checked["candidates"] += drawn.size
    if drawn.shape != (len(examples), count):
        found.wrong(
            f"{file}: {drawn.shape[0]} rows of {drawn.shape[1]} candidates, for "
            f"{len(examples)} examples of {count}"
        )
        return
    for number, (example, row) in enumerate(zip(examples, drawn, strict=True)):
        where = f"{file} row {number}: user {example.user_id!r}, time {example.timestamp}:"
        times = int((row == example.target).sum())
        if times != 1 and not (proposed and times == 0):
            found.wrong(f"{where} the target stands {times} times among the candidates")
        seen = row[np.isin(row, example.history) & (row != example.target)]
        if len(seen):
            found.wrong(f"{where} candidates {seen.tolist()} stand in the history")
        others = row[row != example.target]
        if len(np.unique(others)) < len(others):
            found.wrong(f"{where} a candidate stands twice")
        if ((row < 0) | (row >= items)).any():
            found.wrong(f"{where} a candidate is outside the catalog of {items} items")


def check_pools(
    log: Log,
    pools: Pools,
    examples: Examples | None,
    trained: Bools,
    file: str,
    found: Findings,
    kind: str = "similar_users",
) -> None:
    """Each pool is of its example, or of a training row; see `wrong_with` for who is in it."""
    if examples is not None and len(pools) != len(examples):
        found.wrong(f"{file}: similar users of {len(pools)} prompts for {len(examples)} examples")
    for number in range(len(pools)):
        user, time = str(pools.user_ids[number]), int(pools.timestamps[number])
        where = f"{file} row {number}: user {user!r}, query's time {time}:"
        if examples is None:
            if not trained[log.at_time(user, time)].any():
                found.wrong(f"{where} no training interaction of the user has that time")
        elif number < len(examples):
            own = (str(examples.user_ids[number]), int(examples.timestamps[number]))
            if own != (user, time):
                found.wrong(f"{where} the example is of user {own[0]!r} at time {own[1]}")
        names = [neighbour.user_id for neighbour in pools.neighbours[number]]
        for name in sorted({name for name in names if names.count(name) > 1}):
            found.wrong(f"{where} user {name!r} is in the pool {names.count(name)} times")
        for neighbour in pools.neighbours[number]:
            found.checked[kind] += 1
            found.checked[f"rows_of_{kind}"] += len(neighbour.rows)
            for wrong in wrong_with(log, neighbour, user, time, trained):
                found.wrong(f"{where} similar user {neighbour.user_id!r} {wrong}")


def wrong_with(
    log: Log, neighbour: Neighbour, user: str, time: int, trained: Bools
) -> Iterator[str]:
    """Another user, shown by consecutive training rows of theirs, all earlier than `time`."""
    if neighbour.user_id == user:
        yield "is the query's own user"
    source, rows = neighbour.rows, log.rows
    shown = np.append(neighbour.history, neighbour.chosen)
    if len(source) != len(shown):
        yield f"shows {len(shown)} titles of {len(source)} rows"
        return
    first, end = log.span(neighbour.user_id)
    at = log.at(source)
    others = (at < first) | (at >= end)
    if others.any():
        yield f"has no source row {source[np.argmax(others)]} in the log"
        return
    if not trained[at].all():
        row = at[np.argmin(trained[at])]
        yield (
            f"shows source row {rows.source_row[row]}, time {rows.timestamp[row]}, which is no "
            "training interaction"
        )
    times = rows.timestamp[at]
    if times.max() >= time:
        yield (
            f"shows source row {source[np.argmax(times)]}, whose time {times.max()} is not "
            "earlier than the query's"
        )
    between = (log.shown[before + 1 : behind] for before, behind in pairwise(at.tolist()))
    if (np.diff(at) < 1).any() or any(shown.any() for shown in between):
        yield f"shows source rows {source.tolist()}, which do not follow one another in the log"
    wrong = np.flatnonzero(rows.position[at] != shown)
    if len(wrong):
        place = wrong[-1]
        yield (
            f"shows position {shown[place]} for source row {source[place]}, time "
            f"{times[place]}, where the log has {rows.position[at[place]]}"
        )
