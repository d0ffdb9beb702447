"""Rankings and targets of other programs, in files of their shapes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.errors import DataError
from llmrec.evaluation.foreign import read_ranking, read_targets, target_nll

WANTED = {"u1": ["b", "a", "c"], "u2": ["7", "a"]}


def lists_of(listed):
    names = np.array(listed.item_ids, object)
    return {user: names[listed.of(n)].tolist() for n, user in enumerate(listed.users)}


def written(path, text):
    path.write_text(text, "utf-8")
    return path


# In no order, so that the columns and not the file decide.
ROWS = [
    ("u2", "a", 2, 0.5),
    ("u1", "c", 3, 0.1),
    ("u1", "b", 1, 0.9),
    ("u2", "7", 1, 0.6),
    ("u1", "a", 2, 0.4),
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rank.csv", "user_id,item_id,rank\n" + "".join(f"{u},{i},{r}\n" for u, i, r, _ in ROWS)),
        (
            "rectools.csv",
            "user_id,item_id,score,rank\n" + "".join(f"{u},{i},{s},{r}\n" for u, i, r, s in ROWS),
        ),
        ("lenskit.csv", "user,item,score\n" + "".join(f"{u},{i},{s}\n" for u, i, _, s in ROWS)),
        (
            "recbole.tsv",
            "user_id:token\titem_id:token\tscore:float\n"
            + "".join(f"{u}\t{i}\t{s}\n" for u, i, _, s in ROWS),
        ),
        ("german.csv", "User;Item;Score\n" + "".join(f"{u};{i};{s}\n" for u, i, _, s in ROWS)),
        (
            "blanks.csv",
            "user_id, item_id, score\n" + "".join(f" {u}, {i}, {s}\n" for u, i, _, s in ROWS),
        ),
        ("run.trec", "".join(f"{u} Q0 {i} 9 {s} mine\n" for u, i, _, s in ROWS)),
        (
            "lines.jsonl",
            "".join(
                json.dumps({"user_id": u, "item_id": i, "score": s}) + "\n" for u, i, _, s in ROWS
            ),
        ),
    ],
)
def test_the_same_lists_come_out_of_every_shape(tmp_path, name, text):
    assert lists_of(read_ranking(written(tmp_path / name, text))) == WANTED


def test_parquet_flat_and_as_lenskit_nests_it(tmp_path):
    users, items, ranks, scores = zip(*ROWS, strict=True)
    flat = pa.table({"user_id": users, "item_id": items, "rank": ranks, "score": scores})
    pq.write_table(flat, tmp_path / "flat.parquet")
    nested = pa.table(
        {
            "user_id": ["u1", "u2"],
            "items": [
                [{"item_id": i, "score": s} for u, i, _, s in ROWS if u == user]
                for user in ("u1", "u2")
            ],
        }
    )
    pq.write_table(nested, tmp_path / "nested.parquet")
    for name in ("flat", "nested"):
        assert lists_of(read_ranking(tmp_path / f"{name}.parquet")) == WANTED


@pytest.mark.parametrize("column", ["items", "item_id"])
def test_lists_of_ids_alone_stand_best_first(tmp_path, column):
    lists = [("u1", ["b", "a", "c"]), ("nobody", []), ("u2", ["7", "a"])]
    rows = [json.dumps({"user_id": u, column: items}) for u, items in lists]
    lines = written(tmp_path / "a.jsonl", "\n".join(rows) + "\n")
    pq.write_table(
        pa.table({"user_id": [u for u, _ in lists], column: [items for _, items in lists]}),
        tmp_path / "a.parquet",
    )
    for path in (lines, tmp_path / "a.parquet"):
        assert lists_of(read_ranking(path)) == WANTED


def test_whole_floats_are_the_numbers_they_stand_for(tmp_path):
    users = pa.array([1.0, 1.0])
    pq.write_table(pa.table({"user": users, "item": [7.0, 8.0], "score": [1, 2]}), tmp_path / "a")
    assert lists_of(read_ranking(tmp_path / "a")) == {"1": ["8", "7"]}


def test_equal_scores_keep_the_order_of_the_file_but_in_a_run_go_as_trec_eval_has_them(tmp_path):
    csv = written(tmp_path / "a.csv", "user_id,item_id,score\nu,a,1\nu,b,1\nu,c,2\n")
    assert lists_of(read_ranking(csv)) == {"u": ["c", "a", "b"]}
    run = written(tmp_path / "a.run", "u Q0 a 1 1 x\nu Q0 b 2 1 x\nu Q0 c 3 2 x\n")
    assert lists_of(read_ranking(run)) == {"u": ["c", "b", "a"]}


def test_an_item_counts_once_at_its_best_place_and_is_told(tmp_path):
    path = written(tmp_path / "a.csv", "user_id,item_id,rank\nu,a,3\nu,b,2\nu,a,1\n")
    listed = read_ranking(path)
    assert lists_of(listed) == {"u": ["a", "b"]}
    assert listed.notes == ("1 rows of an item that its list held already",)


def test_targets_from_a_table_and_from_qrels(tmp_path):
    table = written(tmp_path / "t.csv", "user_id,item_id\nu1,b\nu2,a\nu2,7.0\n")
    qrels = written(tmp_path / "t.qrels", "u1 0 b 1\nu2 0 a 2\nu2 0 7 1\nu2 0 z 0\n")
    assert lists_of(read_targets(table)) == {"u1": ["b"], "u2": ["a", "7"]}
    assert lists_of(read_targets(qrels)) == {"u1": ["b"], "u2": ["a", "7"]}


def test_nll_needs_whole_distributions(tmp_path):
    head = "user_id,item_id,score,probability\n"
    whole = written(tmp_path / "a.csv", head + "u,a,2,0.75\nu,b,1,0.25\nv,a,1,1.0\n")
    found = target_nll(read_ranking(whole), {"u": "b", "v": "b"})
    np.testing.assert_allclose(found, [np.log(4), np.inf])
    part = written(tmp_path / "b.csv", head + "u,a,2,0.5\nu,b,1,0.25\n")
    assert target_nll(read_ranking(part), {"u": "b"}) is None
    without = written(tmp_path / "c.csv", "user_id,item_id,score\nu,a,2\n")
    assert target_nll(read_ranking(without), {"u": "a"}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id,item_id\nu,a\n", "neither a column rank nor a column score"),
        ("who,item_id,score\nu,a,1\n", "no column for user_id, which may be called user_id, user"),
        ("user_id,item_id,score\nu,a,best\n", "column score holds what is no number"),
        ("user_id,item_id,score\nu,a,nan\n", "row 1 has no finite score"),
        ("user_id,item_id,score\n,a,1\n", "row 1, user_id"),
        ("user_id,item_id,score,probability\nu,a,1,7\n", "row 1 has probability 7"),
        ("u Q0 a 1 1 x\nu Q0 b 2\n", ":2: 4 fields, 6 are expected"),
        ("", "not readable as CSV"),
        ("user_id,item_id,score\n", "holds no list"),
        (
            '{"user_id": "u", "item_id": "a", "score": [1]}\n',
            "column score holds what is no number",
        ),
        ('{"user_id": "u", "items": "a,b"}\n', "no column for item_id"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as told:
        read_ranking(written(tmp_path / "a.csv", text))
    assert str(tmp_path / "a.csv") in str(told.value)
