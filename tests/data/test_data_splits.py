"""Splits as set algebra on shuffled input, tie rules, and no future row in any history."""

from collections import defaultdict
from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.records import Examples, Interactions
from llmrec.data.splits import (
    TIE_RULES,
    Split,
    by_user,
    global_time,
    leave_one_out,
    order,
    sliding_window,
    with_train_users,
)

SPLITTERS: dict[str, Callable[[Interactions], Split]] = {
    "leave_one_out": leave_one_out,
    "global_time": global_time,
    "by_user": by_user,
    "sliding_window": lambda rows: sliding_window(rows, window=3),
}
PARTS = ("train", "valid", "test")


def logs(times: int = 9) -> st.SearchStrategy[Interactions]:
    """Logs of up to 8 users; every row has an item of its own, so that an item names its row."""
    pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, times)), min_size=1, max_size=60)
    return pairs.map(log_of)


def log_of(pairs: list[tuple[int, int]]) -> Interactions:
    table = np.array(pairs, dtype=np.int64)
    rows = np.arange(len(table))
    return Interactions(
        table[:, 0].astype(np.int32),
        rows.astype(np.int32),
        table[:, 1],
        rows,
        np.array([f"u{u}" for u in range(8)], dtype=object),
    )


def as_lists(examples: Examples) -> list[tuple[str, list[int], int, int]]:
    return [(e.user_id, e.history.tolist(), int(e.target), e.timestamp) for e in examples]


def sequences(rows: Interactions) -> dict[str, list[int]]:
    """User -> positions, oldest first, ties by source row: the slow and plain way."""
    found: dict[str, list[int]] = defaultdict(list)
    keys = zip(
        rows.timestamp.tolist(),
        rows.source_row.tolist(),
        rows.user.tolist(),
        rows.position.tolist(),
        strict=True,
    )
    for _, _, user, position in sorted(keys):
        found[rows.user_ids[user]].append(position)
    return dict(sorted(found.items()))


@pytest.mark.parametrize("name", SPLITTERS)
@settings(max_examples=75)
@given(logs(), st.randoms(use_true_random=False))
def test_every_splitter_keeps_the_future_out(name: str, log: Interactions, random) -> None:
    """300 random logs in all: whole past, nothing later, training apart from targets."""
    shuffled = list(range(len(log)))
    random.shuffle(shuffled)
    split = SPLITTERS[name](order(log.take(np.array(shuffled))))
    assert_split(name, log, split)
    plain = SPLITTERS[name](order(log))
    for part in PARTS:
        assert as_lists(getattr(split, part)) == as_lists(getattr(plain, part))


def assert_split(name: str, log: Interactions, split: Split) -> None:
    time = dict(zip(log.position.tolist(), log.timestamp.tolist(), strict=True))
    past = sequences(log)
    trained = set(split.interactions.position.tolist())
    for part in PARTS:
        examples = getattr(split, part)
        for index, (user, history, target, moment) in enumerate(as_lists(examples)):
            at = past[user].index(target)
            whole = past[user][:at]
            assert history == (whole[-2:] if name == "sliding_window" else whole)
            assert history
            assert moment == time[target]
            assert all(time[position] <= moment for position in history)
            assert examples.tied[index] == (time[history[-1]] == moment)
            assert examples.cold[index] == (target not in trained)
            assert (target in trained) == (part == "train")
            if part == "train":
                assert set(history) <= trained
    targets = [set(getattr(split, part).targets.tolist()) for part in PARTS]
    assert not targets[1] & targets[2]


def test_a_planted_future_row_is_caught() -> None:
    log = log_of([(0, 1), (0, 2), (0, 3), (0, 4)])
    split = leave_one_out(order(log))
    assert_split("leave_one_out", log, split)
    split.test.positions[-1] = 3
    with pytest.raises(AssertionError):
        assert_split("leave_one_out", log, split)


@given(logs())
def test_leave_one_out_is_set_algebra(log: Interactions) -> None:
    split = leave_one_out(order(log))
    past = sequences(log)
    long = {user: items for user, items in past.items() if len(items) >= 3}
    assert as_targets(split.test) == {user: items[-1] for user, items in long.items()}
    assert as_targets(split.valid) == {user: items[-2] for user, items in long.items()}
    trained = {user: items[:-2] if user in long else items for user, items in past.items()}
    assert as_targets(split.train) == {
        u: items[-1] for u, items in trained.items() if len(items) >= 2
    }
    assert sorted(split.interactions.position.tolist()) == sorted(chain(*trained.values()))


def as_targets(examples: Examples) -> dict[str, int]:
    return dict(zip(examples.user_ids.tolist(), examples.targets.tolist(), strict=True))


@given(logs())
def test_global_time_trains_on_nothing_that_a_target_precedes(log: Interactions) -> None:
    split = global_time(order(log))
    newest = max(split.interactions.timestamp.tolist(), default=-1)
    assert all(moment > newest for moment in split.valid.timestamps.tolist())
    oldest_test = min(split.test.timestamps.tolist(), default=99)
    assert all(moment < oldest_test for moment in split.valid.timestamps.tolist())


def test_global_time_by_hand() -> None:
    # Ten rows, cuts behind 8 and 9 of them: the times are 8 and 9.
    log = log_of([(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6), (2, 7), (0, 8), (1, 9)])
    split = global_time(order(log))
    assert as_lists(split.valid) == [("u0", [0, 1, 2], 8, 8)]
    assert as_lists(split.test) == [("u1", [3, 4], 9, 9)]
    assert as_targets(split.train) == {"u0": 2, "u1": 4, "u2": 7}
    assert split.test.cold.tolist() == [True]


def test_by_user_by_hand() -> None:
    # Users by first timestamp: u4 u3 u2 u1 u0 and so on; 8:1:1 of ten users.
    log = log_of([(user, 10 * (7 - user) + step) for user in range(8) for step in range(2)])
    split = by_user(order(log), (0.5, 0.25, 0.25))
    assert set(split.train.user_ids) == {"u7", "u6", "u5", "u4"}
    assert set(split.valid.user_ids) == {"u3", "u2"}
    assert set(split.test.user_ids) == {"u1", "u0"}
    assert as_targets(split.test) == {"u0": 1, "u1": 3}
    assert len(split.interactions) == 8


def test_sliding_window_by_hand() -> None:
    # u0 has times 0..5 and u1 has times 3..6: windows of 3 end at 2 3 4 5 and 5 6.
    log = log_of([(0, t) for t in range(6)] + [(1, t) for t in range(3, 7)])
    split = sliding_window(order(log), 3, (0.5, 0.25, 0.25))
    assert as_lists(split.train) == [
        ("u0", [0, 1], 2, 2),
        ("u0", [1, 2], 3, 3),
        ("u0", [2, 3], 4, 4),
    ]
    assert as_lists(split.valid) == [("u0", [3, 4], 5, 5)]
    assert as_lists(split.test) == [("u1", [6, 7], 8, 5), ("u1", [7, 8], 9, 6)]
    assert split.interactions.position.tolist() == [0, 1, 2, 3, 4]


def test_tie_rules_decide_equal_timestamps_and_nothing_else() -> None:
    rows = Interactions(
        np.zeros(4, np.int32),
        np.array([3, 1, 2, 0], np.int32),
        np.array([5, 5, 5, 4]),
        np.array([2, 1, 0, 3]),
        np.array(["u"], dtype=object),
    )
    assert order(rows, "source_row").position.tolist() == [0, 2, 1, 3]
    assert order(rows, "item_id").position.tolist() == [0, 1, 2, 3]
    drawn = {tuple(order(rows, "shuffle", seed).position.tolist()) for seed in range(40)}
    assert len(drawn) == 6
    assert {row[0] for row in drawn} == {0}
    with pytest.raises(ValueError, match="source_row, item_id, shuffle"):
        order(rows, "none")


@pytest.mark.parametrize("ties", TIE_RULES)
@given(log=logs(times=2), random=st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_order_of_the_input(
    ties: str, log: Interactions, random
) -> None:
    shuffled = list(range(len(log)))
    random.shuffle(shuffled)
    ordered = order(log.take(np.array(shuffled)), ties, seed=1)
    assert ordered.position.tolist() == order(log, ties, seed=1).position.tolist()
    pairs = list(zip(ordered.user.tolist(), ordered.timestamp.tolist(), strict=True))
    assert pairs == sorted(pairs)


def test_fewer_training_users_leave_the_test_alone() -> None:
    log = log_of([(user, step) for user in range(3) for step in range(5)])
    log.position[:] = [*range(5)] * 3
    split = leave_one_out(order(log))
    fewer = with_train_users(split, np.array([1]))
    assert set(fewer.train.user_ids) == {"u1"}
    assert set(fewer.interactions.user.tolist()) == {1}
    assert as_lists(fewer.test) == as_lists(split.test)
    none_left = with_train_users(split, np.array([], dtype=np.int64))
    assert none_left.test.cold.all()


def test_splits_of_one_row_are_empty_and_do_not_fail() -> None:
    log = log_of([(0, 1)])
    for splitter in SPLITTERS.values():
        split = splitter(order(log))
        assert len(split.train) == len(split.valid) == len(split.test) == 0
