"""Neighbours against plain loops; no future, no query's own rows, no batch in them."""

import numpy as np
import pytest

from llmrec.data.records import Interactions
from llmrec.errors import RecipeError
from llmrec.retrieval.index import VectorIndex
from llmrec.retrieval.retriever import DECIMALS, NOBODY, Retriever, random_neighbours
from llmrec.retrieval.similarity import MEASURES, measured
from llmrec.retrieval.snapshots import Queries, queries_of, snapshots_of
from llmrec.retrieval.vectors import cooccurrence_factors, window_vectors

ITEMS, WINDOW = 12, 4
WEIGHTS = {"cosine": 1.0, "jaccard": 2.0, "recency": 1.0}


def drawn_log(rng: np.random.Generator, users: int, longest: int = 12) -> Interactions:
    lengths = rng.integers(0, longest, users)
    user = np.repeat(np.arange(users), lengths).astype(np.int32)
    timestamp = np.concatenate([np.sort(rng.integers(0, 40, n)) for n in lengths])
    position = rng.integers(0, ITEMS, len(user)).astype(np.int32)
    names = np.array([f"u{i}" for i in range(users)], object)
    return Interactions(user, position, timestamp, np.arange(len(user)), names)


def drawn_queries(rng: np.random.Generator, log: Interactions, count: int) -> Queries:
    names = [f"u{i}" for i in rng.integers(0, len(log.user_ids) + 2, count)]
    histories = [rng.integers(0, ITEMS, n).astype(np.int32) for n in rng.integers(0, 7, count)]
    return queries_of(names, histories, rng.integers(0, 50, count), log, WINDOW)


def looped(retriever: Retriever, queries: Queries, row: int, count: int) -> list[int]:
    """All earlier snapshots of others by cosine, a user's nearest, then by the weighted sum."""
    snapshots = retriever.snapshots
    query = queries.windows[row]
    if query[-1] < 0:
        return []
    vectors = window_vectors(snapshots.windows, retriever.item_vectors)
    mine = window_vectors(query, retriever.item_vectors)
    nearest: dict[int, tuple[float, int]] = {}
    for i in range(snapshots.before(int(queries.time[row]))):
        user = int(snapshots.user[i])
        value = (round(float(vectors[i] @ mine), DECIMALS), i)
        if user != queries.user[row] and (user not in nearest or value > nearest[user]):
            nearest[user] = value
    kept = [i for _, i in sorted(nearest.values(), reverse=True)[: retriever.coarse]]
    values = measured(query[None], snapshots.windows[kept][None], retriever.item_vectors)[0]
    scored = [
        (round(float(v @ retriever.weights), DECIMALS), i)
        for v, i in zip(values, kept, strict=True)
    ]
    return [i for _, i in sorted(scored, reverse=True)[:count]]


def test_neighbours_equal_a_loop():
    rng = np.random.default_rng(0)
    equal = 0
    for _ in range(30):
        log = drawn_log(rng, 15)
        retriever = Retriever(
            snapshots_of(log, WINDOW), cooccurrence_factors(log, ITEMS, 6), WEIGHTS, coarse=12
        )
        queries = drawn_queries(rng, log, 10)
        found = retriever.retrieve(queries, 5).snapshot
        for row in range(10):
            expected = looped(retriever, queries, row, 5)
            equal += found[row].tolist() == expected + [NOBODY] * (5 - len(expected))
    assert equal >= 297  # of 300: a value may lie on the edge of two roundings


def test_no_future_no_own_rows_and_different_users_in_300_logs():
    rng = np.random.default_rng(1)
    shown = 0
    for turn in range(300):
        log = drawn_log(rng, int(rng.integers(1, 12)))
        snapshots = snapshots_of(log, WINDOW)
        retriever = Retriever(snapshots, rng.standard_normal((ITEMS, 5)), {"dtw": 1.0}, coarse=4)
        queries = drawn_queries(rng, log, 4)
        ways = (retriever.retrieve(queries, 3), random_neighbours(snapshots, queries, 3, turn))
        for neighbours in ways:
            for row, found in enumerate(neighbours.snapshot.tolist()):
                there = [i for i in found if i != NOBODY]
                assert found == there + [NOBODY] * (3 - len(there))
                assert len({int(snapshots.user[i]) for i in there}) == len(there)
                assert (neighbours.score[row, len(there) :] == 0).all()
                for i in there:
                    rows = snapshots.rows(i)
                    assert (log.timestamp[rows] < queries.time[row]).all()
                    assert (log.user[rows] != queries.user[row]).all()
                    assert (snapshots.history(i) >= 0).all()
                    shown += 1
    assert shown > 1000


def test_as_many_as_there_are():
    """Where enough other users have a snapshot before the time, none is missing."""
    rng = np.random.default_rng(2)
    log = drawn_log(rng, 30, longest=60)
    snapshots = snapshots_of(log, WINDOW)
    # With one user wanted in the coarse stage five snapshots are searched first, then more.
    retriever = Retriever(snapshots, rng.standard_normal((ITEMS, 5)), {"cosine": 1.0}, coarse=25)
    queries = drawn_queries(rng, log, 60)
    for neighbours, always in (
        (retriever.retrieve(queries, 25), False),
        (random_neighbours(snapshots, queries, 25, 0), True),
    ):
        for row, found in enumerate(neighbours.snapshot):
            before = snapshots.before(int(queries.time[row]))
            others = set(snapshots.user[:before].tolist()) - {int(queries.user[row])}
            asked = always or queries.windows[row, -1] >= 0
            assert (found != NOBODY).sum() == (min(25, len(others)) if asked else 0)


def test_batches_and_runs_do_not_matter():
    rng = np.random.default_rng(3)
    log = drawn_log(rng, 60, longest=30)
    snapshots, vectors = snapshots_of(log, WINDOW), cooccurrence_factors(log, ITEMS, 8)
    queries = drawn_queries(rng, log, 40)
    retriever = Retriever(snapshots, vectors, WEIGHTS, coarse=20)
    whole = retriever.retrieve(queries, 6)
    for rows in (slice(0, 1), slice(1, 8), slice(8, 40)):
        part = retriever.retrieve(queries.take(rows), 6)
        np.testing.assert_array_equal(part.snapshot, whole.snapshot[rows])
        np.testing.assert_array_equal(part.score, whole.score[rows])
    again = Retriever(snapshots, vectors, WEIGHTS, coarse=20).retrieve(queries, 6)
    np.testing.assert_array_equal(again.snapshot, whole.snapshot)
    np.testing.assert_array_equal(again.score, whole.score)


def test_equal_windows_show_the_later_first():
    count = 40
    user = np.repeat(np.arange(count), 2).astype(np.int32)
    position = np.tile([1, 2], count).astype(np.int32)
    log = Interactions(
        user,
        position,
        np.arange(2 * count),
        np.arange(2 * count),
        np.array([f"u{i}" for i in range(count)], object),
    )
    vectors = np.random.default_rng(4).standard_normal((3, 8))
    retriever = Retriever(snapshots_of(log, 3), vectors, {"cosine": 0.3, "dtw": 0.7}, coarse=6)
    queries = queries_of(["u30"], [np.array([1], np.int32)], [70], log, 3)
    found = retriever.retrieve(queries, 6)
    assert found.snapshot.tolist() == [[34, 33, 32, 31, 29, 28]]  # 34 ended at 69, 30 is oneself
    np.testing.assert_allclose(found.score, 1, atol=1e-6)


def test_random_neighbours_are_fair_and_know_only_their_number():
    rng = np.random.default_rng(5)
    log = drawn_log(rng, 6, longest=9)
    snapshots = snapshots_of(log, WINDOW)
    history, tries = np.zeros(0, np.int32), 3000
    queries = queries_of(["u1"] * tries, [history] * tries, [30] * tries, log, WINDOW)
    drawn = random_neighbours(snapshots, queries, 2, 7).snapshot
    np.testing.assert_array_equal(
        random_neighbours(snapshots, queries.take(slice(0, 9)), 2, 7).snapshot, drawn[:9]
    )
    assert (random_neighbours(snapshots, queries, 2, 8).snapshot != drawn).any()
    allowed = [i for i in range(snapshots.before(30)) if snapshots.user[i] != 1]
    users = {int(snapshots.user[i]) for i in allowed}
    for i in allowed:
        others = sum(snapshots.user[j] == snapshots.user[i] for j in allowed)
        expected = tries / (len(users) * others)
        for place in (0, 1):
            assert abs((drawn[:, place] == i).sum() - expected) < 5 * np.sqrt(expected)


def test_what_is_refused():
    rng = np.random.default_rng(6)
    log = drawn_log(rng, 9)
    snapshots, vectors = snapshots_of(log, WINDOW), rng.standard_normal((ITEMS, 5))
    for weights in ({"cosin": 1.0}, {"cosine": -1.0, "dtw": 2.0}, {}, {"cosine": float("nan")}):
        with pytest.raises(RecipeError, match=", ".join(MEASURES)):
            Retriever(snapshots, vectors, weights)
    with pytest.raises(ValueError, match="snapshots"):
        Retriever(
            snapshots, vectors, WEIGHTS, index=VectorIndex.build(np.zeros((3, 5), np.float32))
        )
    with pytest.raises(ValueError, match="coarse"):
        Retriever(snapshots, vectors, WEIGHTS, 5).retrieve(drawn_queries(rng, log, 1), 6)


def test_no_snapshots_at_all():
    log = drawn_log(np.random.default_rng(7), 3, longest=2)
    snapshots = snapshots_of(log, WINDOW)
    queries = queries_of(["x"], [np.array([1], np.int32)], [99], log, WINDOW)
    assert len(snapshots) == 0
    retriever = Retriever(snapshots, np.eye(ITEMS), {"cosine": 1.0})
    assert retriever.retrieve(queries, 2).snapshot.tolist() == [[NOBODY, NOBODY]]
    assert random_neighbours(snapshots, queries, 2, 0).snapshot.tolist() == [[NOBODY, NOBODY]]
