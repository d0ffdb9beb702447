"""Metrics of rankings by item id and of tables, worked by hand."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from llmrec.errors import DataError
from llmrec.evaluation import average_precision, hit_rate, mrr, ndcg, precision, recall

LISTS = [["b", "a", "c"], ["x"], []]


def test_ids_are_matched_as_they_are():
    assert hit_rate(LISTS, ["a", "y", "b"], k=2).tolist() == [1, 0, 0]
    assert mrr(LISTS, ["a", "x", "b"], k=3).tolist() == [1 / 2, 1, 0]
    assert recall(LISTS, [["a", "z"], ["x"], ["q", "a"]], k=3).tolist() == [1 / 2, 1, 0]
    assert precision(LISTS, [["a", "c"], "x", []], k=3).tolist()[:2] == [2 / 3, 1 / 3]
    assert np.isnan(hit_rate(LISTS, ["a", "x", None], k=1)[2])
    expected = (1 / np.log2(3) + 1 / np.log2(4)) / (1 + 1 / np.log2(3))
    assert ndcg(LISTS, [["a", "c"], "x", "b"], k=3)[0] == pytest.approx(expected, abs=1e-15)
    assert hit_rate([[None, "a"], ["b"]], ["a", "b"], k=1).tolist() == [0, 1]
    assert hit_rate(np.array([["a", "b"], ["c", "d"]]), np.array(["b", "c"]), k=1).tolist() == [
        0,
        1,
    ]


def test_ids_that_are_numbers_are_positions():
    assert hit_rate([[3, 1, 2]], [1], k=2).tolist() == [1.0]


def test_tables_are_matched_by_user():
    ranked = pd.DataFrame(
        {
            "user_id": [2, 1, 1, 2, 9],
            "item_id": ["x", "b", "a", "y", "a"],
            "score": [0.1, 0.9, 0.5, 0.7, 1.0],
        }
    )
    chosen = pd.DataFrame({"user_id": [1, 1, 2, 3], "item_id": ["a", "c", "y", "a"]})
    assert hit_rate(ranked, chosen, k=1).tolist() == [0, 1, 0]
    assert average_precision(ranked, chosen, k=2).tolist() == [(1 / 2) / 2, 1, 0]
    arrow = [pa.Table.from_pandas(table) for table in (ranked, chosen)]
    assert recall(*arrow, k=2).tolist() == [1 / 2, 1, 0]
    views = [t.set_column(1, "item_id", t["item_id"].cast(pa.string_view())) for t in arrow]
    assert recall(*views, k=2).tolist() == [1 / 2, 1, 0]


def test_what_does_not_go_together_is_told():
    table = pd.DataFrame({"user_id": [1], "item_id": ["a"], "rank": [1]})
    with pytest.raises(ValueError, match="must both be tables"):
        hit_rate(table, ["a"], k=1)
    with pytest.raises(ValueError, match="targets numbers"):
        hit_rate([["a"]], [3], k=1)
    with pytest.raises(ValueError, match="rankings hold numbers"):
        hit_rate([[3]], ["a"], k=1)
    with pytest.raises(DataError, match="rankings: neither a column rank nor a column score"):
        hit_rate(table.drop(columns="rank"), table, k=1)
    with pytest.raises(ValueError, match="2 rankings but targets of 1 users"):
        hit_rate([["a"], ["b"]], ["a"], k=1)
