"""Histories from outside are read as they are answered."""

import json
import threading
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.errors import DataError, RecipeError
from llmrec.systems.raw_histories import as_they_come, in_batches, read_file, read_histories


def test_a_file_is_read_in_growing_batches_and_no_further():
    read = []

    def lines():
        for number in range(10**9):
            read.append(number)
            yield json.dumps({"user": f"u{number}", "history": ["a", 2]})

    batches = in_batches(read_histories(lines()), 8)
    sizes = [len(batch) for batch in islice(batches, 6)]
    assert sizes == [1, 2, 4, 8, 8, 8]
    assert len(read) == sum(sizes)


def test_from_a_pipe_each_is_answered_before_the_next_is_asked():
    answered = threading.Semaphore(0)

    def client():
        for number in range(5):
            yield number
            assert answered.acquire(timeout=5), "the other end waits for more"

    for batch in as_they_come(client(), 64):
        assert len(batch) == 1
        answered.release()


def test_from_a_pipe_no_more_is_held_than_a_batch():
    read = []

    def much():
        for number in range(10_000):
            read.append(number)
            yield number

    came, found = as_they_come(much(), 8), []
    found += next(came)
    for _ in range(100):
        if len(read) >= 10:
            break
        threading.Event().wait(0.01)
    assert len(read) <= len(found) + 8 + 1
    for batch in came:
        assert len(batch) <= 8
        found += batch
    assert found == list(range(10_000))


def test_what_stands_before_a_bad_line_is_given_first():
    for batches in (in_batches, as_they_come):
        came = batches(read_histories(['["a"]', '["b"]', "{", '["c"]']), 1)
        assert [request.user for _ in range(2) for request in next(came)] == ["1", "2"]
        with pytest.raises(DataError, match="line 3"):
            next(came)


def test_candidates_of_one_line_are_wanted_of_all():
    lines = ['{"history": ["a"], "candidates": ["b", "c"]}', '{"history": ["a"]}']
    with pytest.raises(DataError, match="line 2: 0 candidates, where the first has 2"):
        list(read_histories(lines))


def test_an_entry_may_say_what_it_is():
    (request,) = read_histories(['["a", 2, 1.5, {"id": 3}, {"title": "b"}]'])
    assert request.history == ["a", "2", "1.5", {"id": "3"}, {"title": "b"}]
    for bad in ('{"id": {"id": 1}}', '{"id": 1, "title": "x"}', "{}", "true", "null", '{"x": "y"}'):
        with pytest.raises(DataError, match="line 1"):
            list(read_histories([f"[{bad}]"]))


def test_parquet_and_json_lines_say_the_same(tmp_path):
    users, histories = ["me", "you"], [["a", "b"], []]
    table = pa.table({"user": users, "history": histories, "other": [1, 2]})
    pq.write_table(table, tmp_path / "h.parquet")
    with (tmp_path / "h.jsonl").open("w") as stream:
        for user, history in zip(users, histories, strict=True):
            print(json.dumps({"user": user, "history": history}), file=stream)
    assert list(read_file(tmp_path / "h.parquet")) == list(read_file(tmp_path / "h.jsonl"))
    pq.write_table(pa.table({"history": [[1, 2]]}), tmp_path / "ids.parquet")
    (request,) = read_file(tmp_path / "ids.parquet")
    assert (request.user, request.history) == ("1", ["1", "2"])


def test_files_that_are_none_are_told(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        list(read_file(tmp_path / "nowhere.jsonl"))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable Parquet"):
        list(read_file(tmp_path / "x.parquet"))
    pq.write_table(pa.table({"items": [1]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="no column history; it has items"):
        list(read_file(tmp_path / "y.parquet"))
    pq.write_table(pa.table({"history": ["text"]}), tmp_path / "z.parquet")
    with pytest.raises(DataError, match="row 1: expected"):
        list(read_file(tmp_path / "z.parquet"))
    (tmp_path / "x.jsonl").write_bytes(b'["\xff"]\n')
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_file(tmp_path / "x.jsonl"))
    with pytest.raises(DataError, match="no JSON"):
        list(read_histories(["[" * 100_000]))
