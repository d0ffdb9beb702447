"""What a run hands to other programs: judged without the run it has the run's numbers."""

import json

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from llmrec.data.records import Interactions
from llmrec.errors import DataError, RecipeError
from llmrec.stages import evaluate, evaluate_files, export, prepare, recommend


@pytest.fixture
def answered(recipe_of):
    recipe, folder = recipe_of("systems=[popularity, markov]", "evaluate.k=[1, 5]")
    prepare.run(recipe, folder)
    recommend.run(recipe, folder)
    return recipe, folder


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_exported_rankings_have_the_metrics_of_the_run(answered, form):
    recipe, folder = answered
    evaluate.run(recipe, folder)
    ours = json.loads(folder.metrics.read_text("utf-8"))["table"]["systems"]
    done = export.run(recipe, folder, form=form)
    root = folder.root / "export"
    assert done["folder"] == str(root)
    given = [f"{name}={root / 'predictions' / name}.{form}" for name in ("popularity", "markov")]
    theirs = evaluate_files.run(root / f"test.{form}", given, recipe.evaluate)
    for system, metrics in theirs["metrics"]["table"]["systems"].items():
        for metric in ("HR@1", "HR@5", "NDCG@5", "MRR@5"):
            assert metrics[metric]["all"]["mean"] == ours[system][metric]["all"]["mean"]


def test_the_splits_are_the_log_by_id_and_title(answered, small_log):
    recipe, folder = answered
    done = export.run(recipe, folder)
    log = pyarrow.csv.read_csv(small_log).to_pylist()
    rows = [
        row
        for part in ("train", "valid", "test")
        for row in pq.read_table(folder.root / "export" / f"{part}.parquet").to_pylist()
    ]
    seen = {(r["user_id"], r["item_id"], r["timestamp"], r["title"]) for r in rows}
    assert len(rows) == len(log) == len(seen)
    assert seen == {(r["user_id"], r["item_id"], r["timestamp"], r["title"]) for r in log}
    assert done["rows"]["train"] == len(Interactions.read(folder.interactions))


def test_what_is_refused(recipe_of):
    recipe, folder = recipe_of()
    with pytest.raises(DataError, match="run `llmrec prepare` first"):
        export.run(recipe, folder)
    with pytest.raises(RecipeError, match="--format xlsx: one of parquet, csv"):
        export.run(recipe, folder, form="xlsx")
