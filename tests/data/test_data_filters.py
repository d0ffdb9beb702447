"""Filters: duplicates, k-core by hand and by brute force, nested draws."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.filters import compacted, first_of_duplicates, k_core, seeded_subset
from llmrec.data.records import Interactions
from llmrec.data.sorting import rows_in_order


def rows_of(triples: list[tuple[int, int, int]]) -> Interactions:
    """Interactions of (user, item, time) triples in the order given."""
    table = np.array(triples, dtype=np.int64).reshape(-1, 3)
    users = int(table[:, 0].max()) + 1 if len(table) else 0
    return Interactions(
        table[:, 0].astype(np.int32),
        table[:, 1].astype(np.int32),
        table[:, 2],
        np.arange(len(table)),
        np.array([f"u{u}" for u in range(users)], dtype=object),
    )


TRIPLES = st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=60)


def test_only_the_first_source_row_of_a_duplicate_stays() -> None:
    rows = rows_of([(0, 1, 5), (0, 1, 5), (0, 1, 6), (1, 1, 5), (0, 1, 5)])
    assert first_of_duplicates(rows).tolist() == [True, False, True, True, False]
    turned = rows.take(np.arange(5)[::-1])
    assert first_of_duplicates(turned).tolist() == [False, True, True, False, True]


@given(TRIPLES)
def test_duplicates_leave_one_row_of_each_kind(triples: list[tuple[int, int, int]]) -> None:
    kept = first_of_duplicates(rows_of(triples))
    first = [row for row, triple in enumerate(triples) if triple not in triples[:row]]
    assert np.flatnonzero(kept).tolist() == first


def test_k_core_worked_by_hand() -> None:
    # Item 2 has one row; without it user 2 has one row; without that item 1 still has two.
    rows = rows_of([(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (2, 1, 4), (2, 2, 5)])
    assert k_core(rows, 2).tolist() == [True, True, True, True, False, False]
    # A chain falls from its end to its beginning.
    chain = rows_of([(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 2, 0), (2, 2, 0), (2, 3, 0)])
    assert not k_core(chain, 2).any()
    assert k_core(chain, 1).all()
    assert len(k_core(rows_of([]), 3)) == 0


@given(TRIPLES, st.integers(1, 4))
def test_k_core_equals_dropping_one_row_at_a_time(
    triples: list[tuple[int, int, int]], k: int
) -> None:
    left = list(range(len(triples)))
    while True:
        users = [triples[row][0] for row in left]
        items = [triples[row][1] for row in left]
        rare = [
            row
            for row in left
            if users.count(triples[row][0]) < k or items.count(triples[row][1]) < k
        ]
        if not rare:
            break
        left.remove(rare[-1])
    assert np.flatnonzero(k_core(rows_of(triples), k)).tolist() == left


def test_subsets_are_nested_seeded_and_ascending() -> None:
    small, large = seeded_subset(100, 10, 3, 0), seeded_subset(100, 60, 3, 0)
    assert len(small) == 10
    assert set(small.tolist()) < set(large.tolist())
    assert (np.diff(large) > 0).all()
    assert seeded_subset(100, 10, 3, 0).tolist() == small.tolist()
    assert seeded_subset(100, 10, 4, 0).tolist() != small.tolist()
    assert seeded_subset(100, 10, 3, 1).tolist() != small.tolist()
    assert (
        seeded_subset(5, None, 0, 0).tolist() == seeded_subset(5, 9, 0, 0).tolist() == [*range(5)]
    )


def test_compacted_closes_gaps() -> None:
    codes, used = compacted(np.array([4, 1, 4], dtype=np.int32), 6)
    assert codes.tolist() == [1, 0, 1]
    assert used.tolist() == [1, 4]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.one_of(st.integers(-3, 3), st.sampled_from([-(2**63), 2**63 - 1, 2**40])),
            st.integers(-2, 2),
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_rows_in_order_is_a_stable_sort_by_all_columns(rows: list[tuple[int, ...]]) -> None:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    assert rows_in_order(columns).tolist() == sorted(range(len(rows)), key=rows.__getitem__)
    assert rows_in_order([np.zeros(0, np.int64)] * 2).tolist() == []
