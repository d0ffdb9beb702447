"""Recommending as a stream: the same answers whoever works, every user once, nothing lost."""

import os
import signal
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.errors import DataError, RecipeError
from llmrec.recipe.loading import dump
from llmrec.stages import streaming
from llmrec.stages.recommend_histories import Wanted, of_lines, tables

WANTED = Wanted(top_k=3)


@pytest.fixture
def asked(tmp_path):
    """A folder of two Parquet files, of 50 and 21 users, with row groups of 16."""
    folder, number = tmp_path / "in", 0
    folder.mkdir()
    for name, users in (("a", 50), ("b", 21)):
        rows = {
            "user": [f"u{number + i}" for i in range(users)],
            "history": [[f"i{(i + j) % 12}" for j in range(1 + i % 4)] for i in range(users)],
        }
        pq.write_table(pa.table(rows), folder / f"{name}.parquet", row_group_size=16)
        number += users
    return folder


def answers_in(out):
    return pq.read_table(out).select(["user", "rank", "item_id", "score"]).to_pylist()


def test_a_stream_answers_as_one_list_does(trained, asked, tmp_path):
    recipe, folder = trained
    told = streaming.run(recipe, folder, asked, WANTED, tmp_path / "out", users=20)
    assert (told["users"], told["rows"], told["answered_before"]) == (71, 213, 0)
    parts = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert parts == [f"part-{n:06d}.parquet" for n in range(5)]  # 20, 20, 10; 20, 1
    expected = []
    for file in sorted(asked.glob("*.parquet")):
        for table in tables(recipe, folder, of_lines(recipe, file), WANTED):
            expected += table.to_pylist()
    found = answers_in(tmp_path / "out")
    assert [row["user"] for row in found] == [row["user"] for row in expected]
    assert [row["item_id"] for row in found] == [row["item_id"] for row in expected]
    for mine, its in zip(found, expected, strict=True):
        assert mine["score"] == pytest.approx(its["score"], abs=1e-5)


@pytest.mark.parametrize(("begin", "count"), [(0, 5), (14, 4), (16, 16), (33, 17), (49, 1)])
def test_a_block_holds_its_users_wherever_row_groups_end(asked, begin, count):
    block = streaming.Block(0, asked / "a.parquet", begin, count, begin)
    names = [request.user for request in block.requests()]
    assert names == [f"u{i}" for i in range(begin, begin + count)]


def test_an_interrupted_stream_goes_on_with_the_blocks_left(trained, asked, tmp_path, monkeypatch):
    recipe, folder = trained
    streaming.run(recipe, folder, asked, WANTED, tmp_path / "straight", users=20)
    real, done = streaming.Answers.to, []

    def failing(self, batch):
        done.append(len(batch))
        if len(done) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(streaming.Answers, "to", failing)
    with pytest.raises(KeyboardInterrupt):
        streaming.run(recipe, folder, asked, WANTED, tmp_path / "cut", users=20)
    told = streaming.run(recipe, folder, asked, WANTED, tmp_path / "cut", users=20)
    assert told["answered_before"] == 40
    assert answers_in(tmp_path / "cut") == answers_in(tmp_path / "straight")
    with pytest.raises(RecipeError, match="other settings"):
        streaming.run(recipe, folder, asked, Wanted(top_k=2), tmp_path / "cut", users=20)


def test_what_is_no_stream_is_refused(trained, asked, tmp_path):
    recipe, folder = trained
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column history; it has x"):
        streaming.run(recipe, folder, tmp_path / "x.parquet", WANTED, tmp_path / "out")
    with pytest.raises(RecipeError, match="no such file"):
        streaming.run(recipe, folder, tmp_path / "none", WANTED, tmp_path / "out")
    with pytest.raises(RecipeError, match="holds other things"):
        streaming.run(recipe, folder, asked, WANTED, asked)


def test_processes_share_a_stream(group, trained, asked, tmp_path, monkeypatch):
    recipe, folder = trained
    streaming.run(recipe, folder, asked, WANTED, tmp_path / "alone", users=streaming.USERS)
    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe), "utf-8")
    command = ["recommend", path, "--histories", asked, "--out", tmp_path / "two", "--top-k", 3]
    group.done(2, "ddp", [*command, "--engine", "accelerate"])
    assert answers_in(tmp_path / "two") == answers_in(tmp_path / "alone")


@pytest.mark.long
def test_ray_answers_alike_and_loses_nothing_with_a_worker(trained, asked, tmp_path, monkeypatch):
    """Each worker kills itself once, in its second block, before and after the file stands."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know no tests
    recipe, folder = trained
    streaming.run(recipe, folder, asked, WANTED, tmp_path / "alone", users=5)
    monkeypatch.setattr(streaming, "_RayWorker", _Mortal)
    told = streaming.run(recipe, folder, asked, WANTED, tmp_path / "ray", "ray", 2, users=5)
    assert told["users"] == 71
    assert answers_in(tmp_path / "ray") == answers_in(tmp_path / "alone")
    assert len(list((tmp_path / "ray").glob("_died-*"))) == 2


class _Mortal(streaming._RayWorker):
    def __call__(self, row):
        for at, late in ((3, False), (7, True)):
            mark = self.worker.out / f"_died-{at}"
            if row["number"] == at and not mark.exists():
                if late:
                    super().__call__(row)
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(row)
