"""Recommending for everybody and for histories of one's own, from the command line and Python."""

import csv
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from llmrec import Recommender
from llmrec.cli import app
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.stages import prepare
from llmrec.systems.raw_histories import read_items


@pytest.fixture
def prepared(recipe_of):
    recipe, folder = recipe_of("systems=[popularity]")
    prepare.run(recipe, folder)
    folder.keep(recipe)
    return folder


def called(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.mark.parametrize("name", ["all.parquet", "all.csv"])
def test_everybody_is_answered_by_all_that_they_did(prepared, small_log, tmp_path, name):
    out = tmp_path / name
    done = called(
        *("recommend", prepared.root, "--system", "popularity"),
        *("--all-users", "--out", out, "--top-k", "12", "--json"),
    )
    read = pq.read_table if name.endswith("parquet") else pa.csv.read_csv
    rows = read(out).to_pylist()
    done_by = {}
    for row in csv.DictReader(small_log.open(encoding="utf-8")):
        done_by.setdefault(row["user_id"], set()).add(row["item_id"])
    everything = {item for items in done_by.values() for item in items}
    given = {}
    for row in rows:
        given.setdefault(row["user"], set()).add(row["item_id"])
    assert given == {user: everything - seen for user, seen in done_by.items()}
    said = json.loads(done.stdout)
    assert (said["users"], said["rows"]) == (len(done_by), len(rows))


def test_everybody_needs_the_log_that_was_prepared(prepared, recipe_of, small_log, tmp_path):
    recipe, folder = recipe_of(f"data.source={tmp_path / 'log.csv'}", "name=moved")
    log = small_log.read_text("utf-8")
    (tmp_path / "log.csv").write_text(log, "utf-8")
    prepare.run(recipe, folder)
    folder.keep(recipe)
    (tmp_path / "log.csv").write_text(log + "u0,i0,99999999,The Man\n", "utf-8")
    out = tmp_path / "all.parquet"
    with pytest.raises(DataError, match="is not what this run was prepared from"):
        called("recommend", folder.root, "--system", "popularity", "--all-users", "--out", out)
    assert not out.exists()


def test_unknown_entries_are_counted_and_fuzzy_ones_told(prepared, tmp_path, caplog):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('["i0", "Nobody knows this"]\n["Last Sumer", "i3"]\n', "utf-8")
    command = ["recommend", prepared.root, "--system", "popularity", "--histories", asked]
    done = called(*command, "--top-k", "20")
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["user"] for r in seen] == ["1"] * 11 + ["2"] * 10
    assert "user 1: 'Nobody knows this' is unknown and left out" in caplog.text
    assert "user 2: 'Last Sumer' is taken for 'Last Summer'" in caplog.text
    assert "of 4 entries 1 are unknown and were left out, 1 were taken" in caplog.text
    with pytest.raises(DataError, match="user 1: 'Nobody knows this' is neither"):
        called(*command, "--unknown", "raise")
    recommender = Recommender.from_pretrained(prepared.root, "popularity")
    skipped = recommender.recommend([["i0", "Nobody knows this"]], unknown="skip")
    assert skipped.equals(recommender.recommend([["i0"]]))
    assert recommender.linker.counts == {"item_id": 2, "unknown": 1}
    with pytest.raises(LlmrecError, match="unknown='drop': one of raise, skip"):
        recommender.recommend([["i0"]], unknown="drop")


def test_what_is_in_stock_and_what_is_excluded_come_as_files(prepared, tmp_path):
    (tmp_path / "asked.jsonl").write_text("[]\n", "utf-8")
    (tmp_path / "stock.csv").write_text("item_id,price\ni1,3\ni2,4\ni7,1\n", "utf-8")
    (tmp_path / "out.txt").write_text("i2\n\n", "utf-8")
    done = called(
        *("recommend", prepared.root, "--system", "popularity"),
        *("--histories", tmp_path / "asked.jsonl", "--candidates", tmp_path / "stock.csv"),
        *("--exclude", tmp_path / "out.txt"),
    )
    assert {json.loads(line)["item_id"] for line in done.stdout.splitlines()} == {"i1", "i7"}


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", "price,docid\n1,01\n2,i2\n", [{"id": "01"}, {"id": "i2"}]),
        ("a.tsv", "title\tx\nA, b\t1\n", [{"title": "A, b"}]),
        ("a.jsonl", '"i1"\n{"title": "Love"}\n', ["i1", {"title": "Love"}]),
        ("a.json", "[3, 4]", ["3", "4"]),
        ("a.txt", "i1\n  Love \n", ["i1", "Love"]),
    ],
)
def test_files_of_items(tmp_path, name, content, found):
    (tmp_path / name).write_text(content, "utf-8")
    assert read_items(tmp_path / name, "--exclude") == found


def test_files_that_hold_no_items_are_refused(tmp_path):
    for name, content, why in [
        ("a.csv", "price\n1\n", "no column item_id or title; there are price"),
        ("a.jsonl", "{", "a.jsonl:1: no JSON"),
        ("a.jsonl", '[["i1"]]', "is no item id and no title"),
        ("a.txt", "\n", "holds no item"),
    ]:
        (tmp_path / name).write_text(content, "utf-8")
        with pytest.raises(DataError, match=why):
            read_items(tmp_path / name, "--exclude")
    with pytest.raises(RecipeError, match=r"--exclude .*no such file"):
        read_items(tmp_path / "b.txt", "--exclude")


def test_a_table_of_histories_is_what_its_lists_are(prepared):
    recommender = Recommender.from_pretrained(prepared.root, "popularity")
    expected = recommender.recommend([["i3", "i1"], ["Love"]], 4, ["b", "a"])
    long = {"user_id": ["b", "a", "b"], "item_id": ["i1", "i7", "i3"], "timestamp": [5, 1, 2]}
    nested = {"user": ["b", "a"], "history": [["i3", "i1"], ["i7"]]}
    titled = {"user_id": ["b", "a", "b"], "title": ["Dark Star", "Love", "The Man II"]}
    for columns in (long, nested, titled):
        assert recommender.recommend(pd.DataFrame(columns), 4).equals(expected)
        assert recommender.recommend(pa.table(columns), 4).equals(expected)
    with pytest.raises(DataError, match="this one has user_id, thing"):
        recommender.recommend(pd.DataFrame({"user_id": ["a"], "thing": ["i1"]}))
    with pytest.raises(DataError, match="item_id has rows without a value"):
        recommender.recommend(pa.table({"user_id": ["a", "a"], "item_id": ["i1", None]}))


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.parquet", "lists.parquet"])
def test_a_log_of_others_is_a_file_of_histories(prepared, tmp_path, name):
    path = tmp_path / name
    columns = {"user": ["b", "a", "b"], "item_id": ["i1", "i7", "i3"], "time": [10, 1, 9]}
    if name == "lists.parquet":
        columns = {"user": ["b", "a"], "history": [["i3", "i1"], ["i7"]]}
    table = pd.DataFrame(columns)
    if name.endswith("parquet"):
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    command = ["recommend", prepared.root, "--system", "popularity", "--histories", path]
    rows = [json.loads(line) for line in called(*command, "--top-k", "4").stdout.splitlines()]
    recommender = Recommender.from_pretrained(prepared.root, "popularity")
    assert rows == recommender.recommend([["i3", "i1"], ["i7"]], 4, ["b", "a"]).to_pylist()
    path.write_text("user,item\n1", "utf-8")
    with pytest.raises(DataError, match=name):
        called(*command)


def test_flags_that_do_not_go_together(prepared, tmp_path):
    for flags, why in [
        (["--all-users"], "name it with --out"),
        (["--all-users", "--histories", "x", "--out", "y.csv"], "leave out --histories"),
        (["--out", "y.csv"], "for histories of your own"),
        (["--all-users", "--out", tmp_path / "y.docx"], "written as .parquet or .csv"),
    ]:
        with pytest.raises(RecipeError, match=why):
            called("recommend", prepared.root, *flags)
