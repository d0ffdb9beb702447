"""No future in histories, training rows, states of other users or candidates, on random logs.

Every log has few users, items and moments, so that most rows tie with others; every splitter and
every rule for ties is held to the same loops over rows.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import faiss
import numpy as np
import pytest

from llmrec.data.candidates import draw_candidates
from llmrec.data.filters import first_of_duplicates
from llmrec.data.records import Example, Examples, Interactions
from llmrec.data.splits import (
    TIE_RULES,
    Split,
    by_user,
    global_time,
    leave_one_out,
    order,
    sliding_window,
)
from llmrec.retrieval.retriever import Retriever, random_neighbours
from llmrec.retrieval.snapshots import queries_of, snapshots_of

LOGS, ITEMS, WINDOW, WANTED = 300, 7, 3, 2
RATIOS = (0.5, 0.25, 0.25)
SPLITTERS: dict[str, Callable[[Interactions], Split]] = {
    "leave_one_out": leave_one_out,
    "global_time": lambda rows: global_time(rows, RATIOS),
    "by_user": lambda rows: by_user(rows, RATIOS),
    "sliding_window": lambda rows: sliding_window(rows, 3, RATIOS),
}

Row = tuple[int, int, int]  # source row, position, time


def drawn_log(seed: int) -> Interactions:
    """2 to 7 users, up to 40 rows of any order at 8 moments, without exact duplicates."""
    rng = np.random.default_rng(seed)
    users, count = int(rng.integers(2, 8)), int(rng.integers(10, 41))
    rows = Interactions(
        rng.integers(0, users, count).astype(np.int32),
        rng.integers(0, ITEMS, count).astype(np.int32),
        rng.integers(0, 8, count),
        rng.permutation(count),
        np.array([f"u{i}" for i in range(users)], object),
    )
    return rows.take(first_of_duplicates(rows))


def past_of(ordered: Interactions, ties: str) -> dict[str, list[Row]]:
    """The rows of each user, oldest first, after having looked at the order of what ties."""
    rows: dict[str, list[Row]] = {}
    for code, position, time, source in zip(
        ordered.user, ordered.position, ordered.timestamp, ordered.source_row, strict=True
    ):
        of_user = rows.setdefault(ordered.user_ids[code], [])
        of_user.append((int(source), int(position), int(time)))
    for of_user in rows.values():
        for before, row in pairwise(of_user):
            assert before[2] <= row[2]
            if before[2] == row[2] and ties == "source_row":
                assert before[0] < row[0]
            if before[2] == row[2] and ties == "item_id":
                assert before[1] < row[1]
    return rows


def target_place(example: Example, past: dict[str, list[Row]]) -> int:
    """Where the target stands among its user's rows; duplicates are gone, so it is one place."""
    (place,) = [
        place
        for place, (_, position, time) in enumerate(past[example.user_id])
        if (position, time) == (example.target, example.timestamp)
    ]
    return place


def check_histories(split: Split, past: dict[str, list[Row]]) -> None:
    """Each history row stands before its target, and no later part's target trains."""
    trains = set(split.interactions.source_row.tolist())
    known = {source for rows in past.values() for source, _, _ in rows}
    assert trains <= known
    for part, examples in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        for example in examples:
            place = target_place(example, past)
            history = example.history.tolist()
            before = past[example.user_id][place - len(history) : place]
            assert history == [position for _, position, _ in before]
            assert all(time <= example.timestamp for _, _, time in before)
            if part == "train":
                assert past[example.user_id][place][0] in trains
                assert {source for source, _, _ in before} <= trains
            else:
                behind = {source for source, _, _ in past[example.user_id][place:]}
                assert not behind & trains


def check_other_users(split: Split, past: dict[str, list[Row]]) -> int:
    """Whoever is found or drawn is another user, all of it earlier; returns how many there were."""
    examples = [*split.train, *split.valid, *split.test]
    interactions = split.interactions
    snapshots = snapshots_of(interactions, WINDOW)
    queries = queries_of(
        [e.user_id for e in examples],
        [e.history for e in examples],
        [e.timestamp for e in examples],
        interactions,
        WINDOW,
    )
    vectors = np.random.default_rng(0).standard_normal((ITEMS, 4))
    retriever = Retriever(snapshots, vectors, {"cosine": 1.0, "jaccard": 1.0}, coarse=5)
    row_of = {
        source: (user, position, time)
        for user, rows in past.items()
        for source, position, time in rows
    }
    total = 0
    for found in (
        retriever.retrieve(queries, WANTED),
        random_neighbours(snapshots, queries, WANTED, seed=0),
    ):
        for example, shown in zip(examples, found.snapshot.tolist(), strict=True):
            names = []
            for at in shown:
                if at < 0:
                    continue
                name = interactions.user_ids[snapshots.user[at]]
                names.append(name)
                history = snapshots.history(at).tolist()
                assert -1 not in history
                rows = [row_of[int(interactions.source_row[row])] for row in snapshots.rows(at)]
                assert [position for _, position, _ in rows] == [*history, snapshots.chosen[at]]
                assert {user for user, _, _ in rows} == {name}
                assert all(time < example.timestamp for _, _, time in rows)
            assert example.user_id not in names
            assert len(set(names)) == len(names)
            total += len(names)
    return total


def check_candidates(examples: Examples, seed: int) -> None:
    drawn = draw_candidates(examples, ITEMS + 3, 4, seed, 1)
    for example, row in zip(examples, drawn.tolist(), strict=True):
        assert row.count(example.target) == 1
        others = [position for position in row if position != example.target]
        assert len(set(others)) == 3
        assert not set(others) & set(example.history.tolist())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Searches this small are done before a second thread has started."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_nothing_later_than_a_target_is_near_it(splitter: str) -> None:
    found = 0
    for seed in range(LOGS):
        for number, ties in enumerate(TIE_RULES):
            ordered = order(drawn_log(seed), ties, seed)
            past = past_of(ordered, ties)
            split = SPLITTERS[splitter](ordered)
            check_histories(split, past)
            if seed % len(TIE_RULES) == number:  # the slow ones under one rule a log, in turn
                found += check_other_users(split, past)
                for examples in (split.valid, split.test):
                    check_candidates(examples, seed)
    assert found > LOGS  # what was asserted was there to be asserted
