"""Sorting by several columns, against Python's own sort and NumPy's, on columns of any width."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.sorting import ascending, first_of_each, rows_in_order

# Few values, so that rows are equal in many columns, and far apart, so that no integer holds two.
WIDE = st.one_of(st.integers(-2, 2), st.sampled_from([-(2**63), -(2**40), 2**40 + 1, 2**63 - 1]))
ROWS = st.lists(st.tuples(WIDE, WIDE, WIDE, st.integers(0, 1)), min_size=1, max_size=50)


def columns_of(rows: list[tuple[int, ...]]) -> list[np.ndarray]:
    return [np.array(column, np.int64) for column in zip(*rows, strict=True)]


@given(ROWS)
def test_wide_columns_are_sorted_by_all_of_them(rows: list[tuple[int, ...]]) -> None:
    order = rows_in_order(columns_of(rows))
    assert order.tolist() == sorted(range(len(rows)), key=rows.__getitem__)


@given(ROWS)
def test_first_of_each_is_the_first_row_of_its_values(rows: list[tuple[int, ...]]) -> None:
    expected = [row not in rows[:at] for at, row in enumerate(rows)]
    assert first_of_each(columns_of(rows)).tolist() == expected


@pytest.mark.parametrize("spread", [1, 5, 2**45])
def test_many_rows_as_numpy_sorts_them(spread: int) -> None:
    """More rows than are packed at once; types of a log; the last column left whole or cut."""
    rng = np.random.default_rng(0)
    count = 70_000
    columns = [
        rng.integers(0, 300, count).astype(np.int32),
        rng.integers(0, 200, count).astype(np.int32),
        rng.integers(-3, 3, count) * spread,
    ]
    order = rows_in_order(columns)
    assert order.tolist() == np.lexsort(columns[::-1]).tolist()
    seen: set[tuple[int, ...]] = set()
    for row, first in zip(zip(*columns, strict=True), first_of_each(columns), strict=True):
        assert first == (row not in seen)
        seen.add(row)
    assert len(seen) < count


def test_no_rows_one_row_and_equal_rows() -> None:
    nothing = [np.zeros(0, np.int64)] * 2
    assert rows_in_order(nothing).tolist() == []
    assert first_of_each(nothing).tolist() == []
    assert rows_in_order([np.array([5]), np.array([2**62])]).tolist() == [0]
    assert first_of_each([np.array([5])]).tolist() == [True]
    assert first_of_each([np.full(4, 7)] * 2).tolist() == [True, False, False, False]


def test_ascending_allows_equal_neighbours() -> None:
    assert ascending(np.array([1, 1, 2]))
    assert not ascending(np.array([1, 2, 1]))
    assert ascending(np.zeros(0, np.int64))
