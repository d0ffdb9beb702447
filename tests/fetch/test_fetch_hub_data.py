"""Data sets through the `datasets` library: folders, saved ones, splits, streams; and out again."""

from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from llmrec.data import to_datasets
from llmrec.data.records import Examples
from llmrec.errors import DataError
from llmrec.fetch import hub_data
from llmrec.recipe import Recipe
from llmrec.recipe.data import Data
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare

ROWS = [
    (f"u{u}", f"i{(u + n) % 6}", 100 * n + u + n / 4, f"Film {(u + n) % 6}")
    for u in range(5)
    for n in range(6)
]
COLUMNS = dict(
    zip(
        ("user_id", "item_id", "timestamp", "title"),
        map(list, zip(*ROWS, strict=True)),
        strict=True,
    )
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))


def as_folder(folder: Path, form: str) -> str:
    whole = datasets.Dataset.from_dict({**COLUMNS, "tags": [["a"]] * len(ROWS)})
    if form == "saved":
        whole.save_to_disk(str(folder / "saved"))
        return str(folder / "saved")
    if form == "saved dict":
        both = datasets.DatasetDict({"train": whole, "later": whole.select(range(3))})
        both.save_to_disk(str(folder / "saved"))
        return f"hf://{folder / 'saved'}:train"
    (folder / "made").mkdir()
    if form == "csv folder":
        whole.remove_columns("tags").to_csv(str(folder / "made" / "train.csv"), index=False)
        return f"hf://{folder / 'made'}"
    whole.to_parquet(str(folder / "made" / "train.parquet"))
    whole.select(range(3)).to_parquet(str(folder / "made" / "test.parquet"))
    return f"hf://{folder / 'made'}:train"


@pytest.mark.parametrize("form", ["saved", "saved dict", "csv folder", "parquet folder"])
def test_a_run_is_prepared_from_it(tmp_path: Path, form: str) -> None:
    source = as_folder(tmp_path, form)
    folder = RunFolder(tmp_path / "run")
    recipe = Recipe(name="one", data=Data(source=source))
    manifest = prepare.run(recipe, folder)
    assert manifest["counts"]["interactions"] == len(ROWS)
    assert manifest["titles"]["rules"] == {"as_given": 6}
    assert prepare.run(recipe, folder)["skipped"]
    given = to_datasets(folder.root)
    test = Examples.read(folder.examples("test"))
    assert given["test"]["user_id"] == test.user_ids.tolist()
    first = given["test"][0]
    assert first["history"] == [f"i{n % 6}" for n in range(5)]
    assert (first["target"], first["target_title"]) == ("i5", "Film 5")
    assert first["history_titles"] == [f"Film {n % 6}" for n in range(5)]
    assert given["items"].num_rows == 6


def test_a_split_is_asked_for_where_there_are_two_and_the_advice_works(tmp_path: Path) -> None:
    source = as_folder(tmp_path, "parquet folder").removesuffix(":train")
    with pytest.raises(DataError, match=r"has the splits .*name one, as (\S+)") as caught:
        hub_data.as_parquet(source, tmp_path / "cache")
    advised = str(caught.value).rpartition("as ")[2]
    path = hub_data.as_parquet(advised, tmp_path / "cache")
    assert pq.read_table(path).num_rows in (3, len(ROWS))
    with pytest.raises(DataError, match="has the splits"):
        hub_data.as_parquet(f"{source}:nowhere", tmp_path / "cache")


def test_batches_go_through_one_after_the_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hub_data, "_BATCH", 7)
    path = hub_data.as_parquet(as_folder(tmp_path, "parquet folder"), tmp_path / "cache")
    table = pq.read_table(path)
    assert table.column_names == list(COLUMNS)
    assert table["item_id"].to_pylist() == COLUMNS["item_id"]
    assert pq.ParquetFile(path).num_row_groups > 3


@pytest.mark.parametrize("source", ["hf://owner", "hf://a/b/c/d"])
def test_what_is_no_name_of_a_data_set_is_said(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match=r"OWNER/NAME"):
        hub_data.as_parquet(source, tmp_path / "cache", offline=True)


def test_a_run_that_is_not_prepared_has_no_datasets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="llmrec prepare"):
        to_datasets(tmp_path)
