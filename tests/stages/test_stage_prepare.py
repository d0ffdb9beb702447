"""`prepare`: whole folders, honest manifests, nothing half-written, nothing done twice."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmrec.data import sealed
from llmrec.data.catalog import Catalog
from llmrec.data.files import sha256_of
from llmrec.data.records import Examples, Interactions
from llmrec.errors import DataError, LlmrecError
from llmrec.fetch import cache as fetch
from llmrec.recipe import Recipe
from llmrec.recipe.data import Data
from llmrec.runs.folder import RunFolder
from llmrec.runs.lock import LOCK
from llmrec.stages import leakage, prepare

FILES = {
    "items.parquet",
    "interactions.parquet",
    "train.parquet",
    "valid.parquet",
    "test.parquet",
    "manifest.json",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six users with eight rows each over ten items, a tie at the end of user 0."""
    rows = [
        f"{u},{(u + 3 * n) % 10},{1 + (u + n) % 5},{100 * n + u}"
        for u in range(6)
        for n in range(8)
    ]
    rows[7] = rows[7].rpartition(",")[0] + "," + rows[6].rpartition(",")[2]
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "interactions.csv").write_text(
        "user_id,item_id,rating,timestamp\n" + "\n".join(rows) + "\n"
    )
    titles = [f'{n},"Film {n // 2}, The (1999)"' for n in range(10)]
    (folder / "items.csv").write_text("item_id,title\n" + "\n".join(titles) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "one")


def recipe(source: Path, seed: int = 0, **data: Any) -> Recipe:
    return Recipe(name="one", seed=seed, data=Data(source=str(source), **data))


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.data.iterdir()}


def test_what_is_written_can_be_read_and_is_described(source: Path, folder: RunFolder) -> None:
    result = prepare.run(recipe(source), folder)
    assert set(contents(folder)) == FILES
    assert set(os.listdir(folder.root)) == {"data", LOCK}
    catalog = Catalog.read(folder.items)
    assert catalog.item_ids == tuple(str(n) for n in range(10))
    assert catalog.titles[:4] == (
        "The Film 0 (1999)",
        "The Film 0 (1999) (2)",
        "The Film 1 (1999)",
        "The Film 1 (1999) (2)",
    )
    assert catalog.raw_titles[0] == "Film 0, The (1999)"
    train, valid, test = (Examples.read(folder.examples(p)) for p in ("train", "valid", "test"))
    first = list(zip(train, valid, test, strict=True))[1]
    past = [(1 + 3 * n) % 10 for n in range(8)]
    assert [e.target for e in first] == [past[5], past[6], past[7]]
    assert [e.history.tolist() for e in first] == [past[:5], past[:6], past[:7]]
    assert test.tied.tolist() == [True] + [False] * 5
    assert len(Interactions.read(folder.interactions)) == 36
    manifest = json.loads((folder.data / "manifest.json").read_text())
    assert manifest.pop("seal")
    assert {**manifest, "skipped": False} == result
    assert manifest["counts"] == {
        "rows_read": 48,
        "bad_rows": 0,
        "duplicates_dropped": 0,
        "users_without_test": 0,
        "users": 6,
        "items": 10,
        "interactions": 48,
        "train_interactions": 36,
        "train_examples": 6,
        "valid_examples": 6,
        "test_examples": 6,
    }
    assert manifest["shares"]["test"] == {"tied": pytest.approx(1 / 6), "cold": 0.0, "seen": 0.0}
    assert manifest["titles"]["duplicates"] == 5
    assert manifest["titles"]["rules"] == {"cleaned": 5, "number_suffix": 5}
    assert manifest["settings"]["seed"] == 0
    assert manifest["sources"]["items"]["sha256"] == sha256_of(source / "items.csv")
    assert set(manifest["outputs"]) == FILES - {"manifest.json"}
    for name, recorded in manifest["outputs"].items():
        assert recorded["sha256"] == sha256_of(folder.data / name)


def test_a_second_run_is_skipped_until_something_changes(source: Path, folder: RunFolder) -> None:
    assert not prepare.run(recipe(source), folder)["skipped"]
    stamp = folder.items.stat().st_mtime_ns
    again = prepare.run(recipe(source), folder)
    assert again["skipped"]
    assert folder.items.stat().st_mtime_ns == stamp
    for changed in (
        recipe(source, seed=1),
        recipe(source, ties="item_id"),
        recipe(source, min_rating=2.0),
    ):
        assert not prepare.run(changed, folder)["skipped"]
    assert not prepare.run(recipe(source), folder)["skipped"]
    with (source / "interactions.csv").open("a") as stream:
        stream.write("0,1,5,9999\n")
    assert not prepare.run(recipe(source), folder)["skipped"]
    folder.examples("test").write_bytes(b"damaged")
    assert not prepare.run(recipe(source), folder)["skipped"]
    folder.items.unlink()
    assert not prepare.run(recipe(source), folder)["skipped"]
    assert prepare.run(recipe(source), folder)["skipped"]


@pytest.mark.parametrize("split", ["leave_one_out", "global_time", "sliding_window", "by_user"])
def test_same_seed_same_bytes_on_shuffled_rows(source: Path, tmp_path: Path, split: str) -> None:
    """The rows of the source in reverse give the same files, but for the source rows kept."""
    settings: dict[str, Any] = {
        "split": split,
        "window": 3,
        "ties": "item_id",
        "ratios": [0.6, 0.2, 0.2],
    }
    one, two, three = (RunFolder(tmp_path / name) for name in ("one", "two", "three"))
    prepare.run(recipe(source, **settings), one)
    prepare.run(recipe(source, **settings), two)
    assert contents(one) == contents(two)
    log = source / "interactions.csv"
    head, *rows = log.read_text().splitlines()
    log.write_text("\n".join([head, *reversed(rows)]))
    prepare.run(recipe(source, **settings), three)
    for name in FILES - {"interactions.parquet", "manifest.json"}:
        assert (one.data / name).read_bytes() == (three.data / name).read_bytes(), name


def test_subsets_are_nested_and_training_users_are_fewer(source: Path, tmp_path: Path) -> None:
    users = {}
    for count in (2, 4):
        run = RunFolder(tmp_path / str(count))
        data = {"subset": {"train": None, "valid": 1, "test": count}, "train_users": count}
        counts = prepare.run(recipe(source, **data), run)["counts"]
        assert (counts["train_examples"], counts["valid_examples"]) == (count, 1)
        users[count] = {
            part: set(Examples.read(run.examples(part)).user_ids) for part in ("train", "test")
        }
        trained = Interactions.read(run.interactions)
        assert set(trained.user_ids[trained.user]) == users[count]["train"]
    assert users[2]["test"] < users[4]["test"]
    assert users[2]["train"] < users[4]["train"]


@pytest.mark.parametrize("split", ["leave_one_out", "global_time", "sliding_window", "by_user"])
def test_cold_items_stay_in_the_catalog_alone(source: Path, folder: RunFolder, split: str) -> None:
    asked = recipe(source, cold_items=0.3, split=split, window=3, ratios=[0.5, 0.2, 0.3])
    manifest = prepare.run(asked, folder)
    catalog = Catalog.read(folder.items)
    assert len(catalog) == 10
    assert len(manifest["cold_items"]) == 3
    cold = {catalog.position_of[item_id] for item_id in manifest["cold_items"]}
    assert not cold & set(Interactions.read(folder.interactions).position.tolist())
    parts = {part: Examples.read(folder.examples(part)) for part in ("train", "valid", "test")}
    assert not cold & set(parts["train"].targets.tolist())
    assert cold & set(parts["test"].targets.tolist())
    for examples in parts.values():
        assert not cold & set(examples.positions.tolist())
        assert all(examples.cold[[int(t) in cold for t in examples.targets]])
    result = leakage.run(asked, folder)
    assert (result["violations"], result["examples"]) == (0, [])
    # One row of a cold item in the training data is found.
    log, _ = prepare.ordered_log(asked.data, asked.seed, manifest["sources"])
    at = np.flatnonzero(np.isin(log.position, list(cold)))[:1]
    log.take(np.append(np.flatnonzero(log.user == 0)[:2], at)).write(folder.interactions)
    result = leakage.run(asked, folder)
    assert any("is held back and may train nothing" in said for said in result["examples"])
    assert prepare.run(recipe(source), folder)["cold_items"] == []


def test_prepare_says_what_it_understood(tmp_path: Path, folder: RunFolder) -> None:
    rows = [
        f"u{u};{(u + n) % 5};{100 * n + u};Été {(u + n) % 5}" for u in range(4) for n in range(5)
    ]
    rows[0] = "u0;0;0;"
    path = tmp_path / "log.csv"
    path.write_bytes(gzip.compress("\n".join(["who;what;when;name", *rows]).encode("cp1252")))
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when", "title": "name"}
    asked = recipe(path, delimiter=";", columns=columns)
    result = prepare.run(asked, folder)
    said = prepare.summary(result)
    assert said["format"] == "csv"
    assert said["interactions"] == {
        "file": "log.csv",
        "delimiter": ";",
        "packed as": "gz",
        "encoding": "cp1252",
        "columns": columns,
    }
    assert said["counts"]["users"] == 4
    assert said["share of items untitled"] == 0.0
    assert "Windows-1252" in said["notices"][0]
    json.dumps(said)
    assert prepare.summary(prepare.run(asked, folder)) == {**said, "skipped": True}


def test_filters_are_counted(source: Path, folder: RunFolder) -> None:
    with (source / "interactions.csv").open("a") as stream:
        stream.write("0,0,1,0\nlonely,9,5,1\n")
    counts = prepare.run(recipe(source, min_rating=2.0, k_core=2), folder)["counts"]
    assert counts["duplicates_dropped"] == 1
    low = sum(row[2] == "1" for row in source_rows(source)) - 1
    assert counts["below_min_rating"] == low
    assert counts["outside_k_core"] == 1
    assert counts["users"] == 6


def source_rows(source: Path) -> list[list[str]]:
    return [line.split(",") for line in (source / "interactions.csv").read_text().splitlines()[1:]]


def test_bad_rows_are_left_out_and_listed_or_end_it(source: Path, folder: RunFolder) -> None:
    with (source / "interactions.csv").open("a") as stream:
        stream.write("0,1,5,soon\n")
    with pytest.raises(DataError, match=r"interactions\.csv:50:timestamp: 'soon' is not a number"):
        prepare.run(recipe(source), folder)
    assert os.listdir(folder.root) == [LOCK]
    manifest = prepare.run(recipe(source, max_bad_rows=1), folder)
    assert manifest["bad_rows"] == ["interactions.csv:50:timestamp: 'soon' is not a number"]
    assert manifest["counts"]["rows_read"] == 49


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    "target",
    [
        (Catalog, "write"),
        (Interactions, "write"),
        (Examples, "write"),
        (sealed, "write_facts"),
        (Path, "rename"),
    ],
)
def test_a_failing_write_leaves_what_was_there(
    source: Path,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    target: tuple[Any, str],
    earlier: bool,
) -> None:
    if earlier:
        prepare.run(recipe(source), folder)
        before = contents(folder)
    with monkeypatch.context() as patched:
        patched.setattr(*target, _no_space)
        with pytest.raises(OSError, match="No space"):
            prepare.run(recipe(source, seed=5), folder)
    if earlier:
        assert contents(folder) == before
        assert prepare.run(recipe(source), folder)["skipped"]
    else:
        assert not folder.data.exists()
    assert [name for name in os.listdir(folder.root) if name not in ("data", LOCK)] == []


def test_the_second_rename_failing_brings_the_former_folder_back(
    source: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.run(recipe(source), folder)
    before = contents(folder)
    real: Callable[[Path, Path], Path] = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == ".data.staging":
            _no_space()
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space"):
        prepare.run(recipe(source, seed=5), folder)
    assert contents(folder) == before
    monkeypatch.undo()
    folder.data.rename(folder.root / ".data.former")  # as a kill between the renames leaves it
    assert not prepare.run(recipe(source, seed=5), folder)["skipped"]
    assert set(os.listdir(folder.root)) == {"data", LOCK}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"k_core": 40}, "no interaction is left after the filters"),
        ({"split": "sliding_window", "window": 9}, "leaves no train and no valid and no test"),
        ({"split": "by_user", "ratios": [0.9, 0.1, 0.0]}, "leaves no test examples"),
        ({"columns": {"rating": None}, "min_rating": 3.0}, "the data has no ratings"),
        ({"format": "recbole"}, "no recbole found"),
        ({"items": "nowhere.csv"}, "data.items nowhere.csv does not exist"),
    ],
)
def test_data_that_cannot_be_used_says_why(
    source: Path, folder: RunFolder, data: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare.run(recipe(source, **data), folder)
    assert caught.value.exit_code == 3
    assert os.listdir(folder.root) == [LOCK]


def test_a_name_is_looked_up_among_the_fetched(
    source: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def data_path(name: str, offline: bool = False) -> Path | None:
        asked.append((name, offline))
        return source if name == "ml-tiny" else None

    monkeypatch.setattr(fetch, "data_path", data_path)
    assert prepare.run(recipe(Path("ml-tiny")), folder, offline=True)["counts"]["users"] == 6
    assert asked == [("ml-tiny", True)]
    with pytest.raises(LlmrecError, match="'ml-huge' is neither a file or folder"):
        prepare.run(recipe(Path("ml-huge")), folder)


def test_titles_stay_text_in_the_items_file(source: Path, folder: RunFolder) -> None:
    (source / "items.csv").write_text('item_id,title\n0,"{{7*7}} <b>\u202e\tX</b>"\n')
    prepare.run(recipe(source), folder)
    table = pq.read_table(folder.items).to_pylist()
    assert table[0]["title"] == "{{7*7}} <b> X</b>"
    assert table[0]["raw_title"] == "{{7*7}} <b>\u202e\tX</b>"
    assert table[0]["title_rule"] == "cleaned"
    assert table[1]["title"] == "Untitled item 1"


@pytest.mark.parametrize("titled", [True, False], ids=["items file", "titles in line"])
def test_out_of_core_writes_the_same_files(source: Path, tmp_path: Path, titled: bool) -> None:
    pytest.importorskip("duckdb")
    lines = (source / "interactions.csv").read_text().splitlines()
    if not titled:
        (source / "items.csv").unlink()
        lines = [
            f"{line},Film {line.split(',')[1]}" if n else f"{line},title"
            for n, line in enumerate(lines)
        ]
    lines += [lines[5], "9,7,4,5.25" + ",One row" * (not titled), "broken"]
    (source / "interactions.csv").write_text("\n".join(lines) + "\n")
    if titled:
        items = (source / "items.csv").read_text().splitlines()
        (source / "items.csv").write_text("\n".join([*items[:2], "a,bad,row", *items[3:]]))
    asked = {"k_core": 3, "min_rating": 1.5, "max_bad_rows": 2}
    folders = [RunFolder(tmp_path / name) for name in ("memory", "disk")]
    inside, outside = (
        prepare.run(recipe(source, out_of_core=n == 1, **asked), folder)
        for n, folder in enumerate(folders)
    )
    assert set(os.listdir(folders[1].root)) == {"data", LOCK}
    ours, theirs = (contents(folder) for folder in folders)
    assert ours.pop("manifest.json") != theirs.pop("manifest.json")
    assert ours == theirs
    for key in ("counts", "shares", "bad_rows", "notices", "outputs"):
        assert inside[key] == outside[key]
    assert inside["counts"]["duplicates_dropped"] == 1
    assert inside["counts"]["bad_rows"] == 1 + titled
    assert len(inside["notices"]) == titled
    if titled:
        assert "1 of 10 items (10%) have no row in items.csv" in inside["notices"][0]
    assert inside["counts"]["outside_k_core"] >= 1
    log, catalog = prepare.ordered_log(
        recipe(source, out_of_core=True, **asked).data, 0, outside["sources"]
    )
    assert len(log) == inside["counts"]["interactions"]
    assert catalog.item_ids == Catalog.read(folders[0].items).item_ids
