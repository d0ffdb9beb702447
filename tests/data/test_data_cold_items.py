"""Items held back: targets of valid and test, and nothing else, under every splitter."""

from collections.abc import Callable

import numpy as np
import pytest

from llmrec.data.filters import drawn_items, first_of_duplicates
from llmrec.data.records import Bools, Examples, Interactions
from llmrec.data.splits import (
    Split,
    by_user,
    global_time,
    leave_one_out,
    order,
    sliding_window,
    with_train_users,
)

ITEMS, RATIOS, WINDOW = 9, (0.5, 0.25, 0.25), 3
SPLITTERS: dict[str, Callable[[Interactions, Bools | None], Split]] = {
    "leave_one_out": leave_one_out,
    "global_time": lambda rows, held: global_time(rows, RATIOS, held),
    "by_user": lambda rows, held: by_user(rows, RATIOS, held),
    "sliding_window": lambda rows, held: sliding_window(rows, WINDOW, RATIOS, held),
}
PARTS = ("train", "valid", "test")


def drawn_log(seed: int) -> Interactions:
    rng = np.random.default_rng(seed)
    users, count = int(rng.integers(2, 8)), int(rng.integers(10, 50))
    rows = Interactions(
        rng.integers(0, users, count).astype(np.int32),
        rng.integers(0, ITEMS, count).astype(np.int32),
        rng.integers(0, 9, count),
        rng.permutation(count),
        np.array([f"u{i}" for i in range(users)], object),
    )
    return order(rows.take(first_of_duplicates(rows)))


def targets(examples: Examples) -> list[tuple[str, int, int]]:
    return [(e.user_id, int(e.target), e.timestamp) for e in examples]


def rows_of(log: Interactions) -> list[tuple[str, int, int]]:
    names = log.user_ids[log.user].tolist()
    return list(zip(names, log.position.tolist(), log.timestamp.tolist(), strict=True))


@pytest.mark.parametrize("name", SPLITTERS)
def test_held_back_items_are_targets_and_nothing_else(name: str) -> None:
    asked_for_held = 0
    for seed in range(150):
        log = drawn_log(seed)
        held = drawn_items(ITEMS, 0.3, seed, 4)
        plain, split = SPLITTERS[name](log, None), SPLITTERS[name](log, held)
        assert not held[split.interactions.position].any()
        assert not held[split.train.targets].any()
        trained = set(split.interactions.position.tolist())
        for part in PARTS:
            examples = getattr(split, part)
            assert not held[examples.positions].any()
            assert (np.diff(examples.offsets) > 0).all()
            assert examples.cold.tolist() == [t not in trained for t in examples.targets.tolist()]
            assert examples.cold[held[examples.targets]].all()
        asked_for_held += int(held[split.test.targets].sum())
        if name == "sliding_window":
            assert_windows(log, held, split)
            continue
        assert rows_of(split.interactions) == [
            row for row in rows_of(plain.interactions) if not held[row[1]]
        ]
        for part in ("valid", "test"):
            wanted = [
                (row, kept)
                for row, e in zip(targets(getattr(plain, part)), getattr(plain, part), strict=True)
                if (kept := e.history[~held[e.history]].tolist())
            ]
            examples = getattr(split, part)
            histories = [e.history.tolist() for e in examples]
            assert list(zip(targets(examples), histories, strict=True)) == wanted
        before = {e.user_id: [*e.history.tolist(), int(e.target)] for e in plain.train}
        for example in split.train:
            shown = [p for p in before[example.user_id] if not held[p]]
            assert [*example.history.tolist(), int(example.target)] == shown
    assert asked_for_held >= 50


def assert_windows(log: Interactions, held: Bools, split: Split) -> None:
    """Every history is the rows right before its target that are not held back."""
    for part in PARTS:
        examples = getattr(split, part)
        assert (np.diff(examples.offsets) == WINDOW - 1).all()
        for e in examples:
            rows = np.flatnonzero(log.user_ids[log.user] == e.user_id)
            histories = []
            for at in rows:
                if (log.position[at], log.timestamp[at]) == (e.target, e.timestamp):
                    past = [p for p in log.position[rows[0] : at].tolist() if not held[p]]
                    histories.append(past[-(WINDOW - 1) :])
            assert e.history.tolist() in histories


@pytest.mark.parametrize("name", SPLITTERS)
def test_nothing_held_back_changes_nothing(name: str) -> None:
    for seed in range(20):
        log = drawn_log(seed)
        plain = SPLITTERS[name](log, None)
        none = SPLITTERS[name](log, np.zeros(ITEMS, np.bool_))
        for part in PARTS:
            for field in ("user_ids", "offsets", "positions", "targets", "tied", "cold"):
                ours, theirs = (getattr(getattr(s, part), field) for s in (plain, none))
                assert ours.tolist() == theirs.tolist()
        assert rows_of(plain.interactions) == rows_of(none.interactions)


def test_fewer_training_users_stay_without_them() -> None:
    log, held = drawn_log(3), drawn_items(ITEMS, 0.3, 3, 4)
    split = with_train_users(leave_one_out(log, held), np.array([0, 1]))
    assert not held[split.interactions.position].any()
    assert split.test.cold[held[split.test.targets]].all()


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    small, large = (drawn_items(100, share, 7, 4) for share in (0.1, 0.5))
    assert (small.sum(), large.sum()) == (10, 50)
    assert (small <= large).all()
    assert drawn_items(100, 0.5, 8, 4).tolist() != large.tolist()
