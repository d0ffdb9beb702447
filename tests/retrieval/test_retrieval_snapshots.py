"""Snapshots and queries against plain loops."""

import numpy as np
import pytest

from llmrec.data.records import Interactions
from llmrec.errors import DataError
from llmrec.retrieval.snapshots import Snapshots, queries_of, snapshots_of


def log_of(*users: list[tuple[int, int]]) -> Interactions:
    """Interactions of users given as (position, timestamp), oldest first."""
    user = np.repeat(np.arange(len(users)), [len(u) for u in users]).astype(np.int32)
    position = np.array([p for u in users for p, _ in u], np.int32)
    timestamp = np.array([t for u in users for _, t in u], np.int64)
    names = np.array([f"u{i}" for i in range(len(users))], object)
    return Interactions(user, position, timestamp, np.arange(len(user)), names)


def drawn_log(rng: np.random.Generator) -> Interactions:
    times = [np.sort(rng.integers(0, 12, rng.integers(0, 9))) for _ in range(rng.integers(1, 7))]
    return log_of(*([(int(rng.integers(0, 8)), int(t)) for t in own] for own in times))


def looped(log: Interactions, window: int, every: int) -> list[tuple]:
    found = []
    for user in range(len(log.user_ids)):
        rows = [r for r in range(len(log)) if log.user[r] == user]
        for place in range(len(rows) - 1, 0, -every):
            past = [int(log.position[r]) for r in rows[:place]][-window:]
            row = rows[place]
            found.append((int(log.timestamp[row]), row, user, past, int(log.position[row])))
    return sorted(found)


def as_tuples(snapshots: Snapshots) -> list[tuple]:
    return [
        (
            int(snapshots.time[i]),
            int(snapshots.row[i]),
            int(snapshots.user[i]),
            snapshots.history(i).tolist(),
            int(snapshots.chosen[i]),
        )
        for i in range(len(snapshots))
    ]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_snapshots_equal_a_loop(every):
    rng = np.random.default_rng(every)
    for _ in range(100):
        log, window = drawn_log(rng), int(rng.integers(1, 6))
        snapshots = snapshots_of(log, window, every)
        assert as_tuples(snapshots) == looped(log, window, every)
        assert snapshots.windows.shape == (len(snapshots), window)
        for i in range(len(snapshots)):
            rows = snapshots.rows(i)
            assert log.position[rows].tolist() == [*snapshots.history(i), snapshots.chosen[i]]
            assert (log.user[rows] == snapshots.user[i]).all()
            assert rows[-1] == snapshots.row[i]
        for time in range(-1, 14):
            assert snapshots.before(time) == sum(t < time for t in snapshots.time.tolist())


def test_rows_that_are_not_ordered_are_refused():
    log = log_of([(0, 1), (1, 2)], [(2, 1), (3, 2)])
    with pytest.raises(DataError, match=r"row 1 is earlier.*splits\.order"):
        snapshots_of(log.take(np.array([1, 0, 2, 3])), 3)
    with pytest.raises(DataError, match="a user's rows are apart"):
        snapshots_of(log.take(np.array([0, 2, 1, 3])), 3)
    with pytest.raises(ValueError, match="at least 1"):
        snapshots_of(log, 0)


def test_users_in_any_order_and_no_rows_at_all():
    log = log_of([(0, 5), (1, 6)], [(2, 1), (3, 9)])
    swapped = snapshots_of(log.take(np.array([2, 3, 0, 1])), 2)
    assert [t[2:] for t in as_tuples(swapped)] == [(0, [0], 1), (1, [2], 3)]
    assert len(snapshots_of(log.take(np.zeros(0, np.int64)), 2)) == 0
    assert len(snapshots_of(log_of([(0, 5)], [(1, 2)]), 2)) == 0


def test_queries():
    log = log_of([(0, 5), (1, 6)], [], [(2, 1)])
    histories = [np.array(h, np.int32) for h in ([1, 2, 3, 4], [7], [], [5])]
    queries = queries_of(["u2", "u1", "stranger", "u0"], histories, [4, 5, 6, 7], log, 3)
    assert queries.user.tolist() == [2, -1, -1, 0]  # u1 has no rows to be kept out
    assert queries.windows.tolist() == [[2, 3, 4], [-1, -1, 7], [-1, -1, -1], [-1, -1, 5]]
    assert queries.time.tolist() == [4, 5, 6, 7]
    some = queries.take(np.array([3, 0]))
    assert (some.user.tolist(), some.time.tolist()) == ([0, 2], [7, 4])
    with pytest.raises(ValueError, match="as many"):
        queries_of(["u2"], histories, [4], log, 3)
