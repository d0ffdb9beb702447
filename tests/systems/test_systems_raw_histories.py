"""Histories from outside are read as they are answered."""

import json
import threading
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.errors import DataError, RecipeError
from llmrec.systems.kept_answers import require_form, write_answers
from llmrec.systems.raw_histories import (
    RawRequest,
    as_they_come,
    in_batches,
    read_file,
    read_histories,
)


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
    with pytest.raises(DataError, match=r"a column history with lists .* this one has items"):
        list(read_file(tmp_path / "y.parquet"))
    pq.write_table(pa.table({"history": ["text"]}), tmp_path / "z.parquet")
    with pytest.raises(DataError, match="row 1: expected"):
        list(read_file(tmp_path / "z.parquet"))
    (tmp_path / "x.jsonl").write_bytes(b'["\xff"]\n')
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_file(tmp_path / "x.jsonl"))
    with pytest.raises(DataError, match="no JSON"):
        list(read_histories(["[" * 100_000]))


def requests_of(*users):
    return [RawRequest(user, [f"item of {user}"], []) for user in users]


def by(size, requests):
    left = iter(requests)
    while batch := list(islice(left, size)):
        yield batch


def answering(asked):
    """Two rows a user; who is asked about is noted. Of "none" nothing comes."""
    schema = pa.schema([("user", pa.string()), ("rank", pa.int32()), ("item_id", pa.string())])

    def ask(batch):
        asked.append([request.user for request in batch])
        rows = [
            {"user": r.user, "rank": rank, "item_id": f"{r.history[0]} {rank}"}
            for r in batch
            for rank in (1, 2)
            if r.user != "none"
        ]
        return pa.Table.from_pylist(rows, schema.with_metadata({"is": "told"}))

    return ask


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_file_of_answers_goes_on_user_by_user(tmp_path, form):
    out, straight = tmp_path / f"a.{form}", tmp_path / f"b.{form}"
    users = ["a", "a", "none", "b", "c", "d", "e"]
    requests, asked = requests_of(*users), []

    def write(requests, size, ask, out, key="key"):
        return write_answers(by(size, requests), ask, out, lambda: key)

    assert write(requests, 3, answering([]), straight) == (7, 0, 12)

    def fails(batch):
        if len(asked) == 1:
            raise KeyboardInterrupt
        return answering(asked)(batch)

    with pytest.raises(KeyboardInterrupt):
        write(requests, 2, fails, out)
    assert not out.exists()
    part = tmp_path / f".a.{form}.part"
    whole = part.read_bytes()
    part.write_bytes(whole + b"0123456789abcdef {")  # as a kill leaves it
    assert write(requests, 3, answering(asked), out) == (7, 2, 12)
    assert asked == [["a", "a"], ["none"], ["b", "c", "d"], ["e"]]
    assert out.read_bytes() == straight.read_bytes()
    assert not part.exists()
    # Damaged in the middle: answered again from there; of other settings: from the beginning; and
    # where the requests are others, behind those that are not.
    flipped = bytearray(whole)
    flipped[whole.index(b"item of a 2") + 8] ^= 1
    for content, key, users_now, again in (
        (bytes(flipped), "key", users, 0),
        (whole, "other", users, 0),
        (whole, "key", ["a", "x"], 1),
        (whole, "key", ["a"], 1),
        (whole, "key", ["a", "a"], 2),
    ):
        part.write_bytes(content)
        now = requests_of(*users_now)
        assert write(now, 3, answering([]), out, key)[:2] == (len(users_now), again)
        write(now, 3, answering([]), straight, key)
        assert out.read_bytes() == straight.read_bytes()


def test_without_a_request_or_a_form_nothing_is_written(tmp_path):
    with pytest.raises(RecipeError, match=r"\.parquet or \.csv"):
        require_form(tmp_path / "answers.txt")
    with pytest.raises(DataError, match="no history"):
        write_answers([], answering([]), tmp_path / "a.csv", lambda: "key")
    assert not list(tmp_path.iterdir())
