"""Predictions files: what is written comes back, and anything else is refused by name."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.errors import DataError
from llmrec.evaluation import Predictions, SystemInfo


def some(info):
    items = [np.array([3, -1, 2], np.int32), np.zeros(0, np.int32)]
    scores = [np.array([-0.5, -1, -2], np.float32), np.zeros(0, np.float32)]
    users = np.array(["u1", "u2"], object)
    return Predictions.of(info, users, items, scores, np.array([0.5, np.inf]))


def test_round_trip(tmp_path):
    path = tmp_path / "tuned.parquet"
    info = SystemInfo("tuned", "language_model", True, {"beams": 4}, 1.5, {"seed": 0}, ("a",))
    some(info).write(path)
    back = Predictions.read(path)
    assert back.info == info
    assert [r.tolist() for r in back.rankings()] == [[3, -1, 2], []]
    assert back.scores.tolist() == [-0.5, -1, -2]
    assert back.nll.tolist() == [0.5, np.inf]
    assert back.user_ids.tolist() == ["u1", "u2"]
    assert len(back) == 2


def test_file_as_specified_is_read(tmp_path):
    """Written by pyarrow alone, with the least a writer must say."""
    table = pa.table(
        {
            "user_id": ["a"],
            "items": pa.array([[1, 2]], pa.list_(pa.int32())),
            "scores": pa.array([[0.0, -1.0]], pa.list_(pa.float32())),
            "nll": pa.array([None], pa.float64()),
        }
    )
    said = {"system": "x", "kind": "baseline", "distribution": False}
    pq.write_table(table.replace_schema_metadata({b"llmrec": json.dumps(said)}), tmp_path / "x")
    back = Predictions.read(tmp_path / "x")
    assert back.ranking(0).tolist() == [1, 2]
    assert np.isnan(back.nll).all()
    assert np.isnan(back.info.seconds)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_text("not parquet")
    with pytest.raises(DataError, match="not a readable Parquet"):
        Predictions.read(path)
    pq.write_table(pa.table({"user_id": ["a"]}), path)
    with pytest.raises(DataError, match="lacks items, nll, scores"):
        Predictions.read(path)
    some(SystemInfo("x", "baseline", True)).write(path)
    bare = pq.read_table(path)
    pq.write_table(bare.replace_schema_metadata({}), path)
    with pytest.raises(DataError, match="schema metadata"):
        Predictions.read(path)
    for said in ("{", '{"system": "x", "kind": "oracle", "distribution": true}', "[]"):
        pq.write_table(bare.replace_schema_metadata({b"llmrec": said}), path)
        with pytest.raises(DataError, match="description"):
            Predictions.read(path)


def test_places_of_cold_targets_are_kept_where_there_are_some(tmp_path):
    info = SystemInfo("popularity", "baseline", True)
    users, lists = np.array(["a", "b", "c"], object), [np.array([1], np.int32)] * 3
    scores, nll = [np.zeros(1)] * 3, np.ones(3)
    for places in (None, np.array([np.nan, 3.0, np.inf])):
        Predictions.of(info, users, lists, scores, nll, places).write(tmp_path / "p.parquet")
        read = Predictions.read(tmp_path / "p.parquet").cold_places
        if places is None:
            assert read is None
        else:
            np.testing.assert_array_equal(read, places)
