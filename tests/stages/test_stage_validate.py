"""`llmrec validate`: what can be known before anything is paid for, and what prepared data lack."""

import logging

import pytest

from llmrec.errors import RecipeError
from llmrec.fetch import cache
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare, validate


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that writes a log of these lines and a recipe about it; the recipe's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))

    def write(data="source: log.csv", lines=("user_id,item_id,timestamp,title",), more=""):
        (tmp_path / "log.csv").write_text("\n".join(lines) + "\n", "utf-8")
        path = tmp_path / "mine.yaml"
        path.write_text(f"name: mine\ndata: {{{data}}}\n{more}", "utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("data", "more", "said"),
    [
        ("source: lag.csv", "", "'lag.csv' is neither a file or folder here nor one of ml-100k"),
        ("source: ml-100", "", "did you mean ml-100k?"),
        ("source: amazon2023/Video_Game", "", "did you mean amazon2023/Video_Games?"),
        ("source: 'part-*.csv'", "", "no file is called so"),
        ("source: log.csv, columns: {user_id: who}", "", "no column for user_id ('who')"),
        ("source: log.csv, columns: {title: name}", "", "no column for title ('name')"),
        (
            "source: log.csv, events: {column: kind, keep: [buy]}",
            "",
            "no column for event ('kind')",
        ),
        ("source: log.csv", "model: {base: smollm2-135m}\n", "did you mean smollm2-135m-instruct?"),
        ("source: log.csv", "model: {base: a/b/c}\n", "model.base"),
    ],
)
def test_names_and_columns_that_are_not_there_are_told(written, data, more, said):
    with pytest.raises(RecipeError) as raised:
        validate.run(written(data, more=more))
    assert said in str(raised.value)


def test_all_of_them_come_at_once(written):
    with pytest.raises(RecipeError) as raised:
        validate.run(written("source: nothing", more="model: {base: nobody}\n"))
    assert len(raised.value.problems) == 2


def test_what_is_there_or_can_be_fetched_passes(written):
    assert validate.run(written())["warnings"] == []
    for source in ("ml-1m", "amazon2023/Video_Games", "hf://owner/name"):
        path = written(f"source: '{source}'")
        assert load(path).data.source == source
        assert validate.run(path, ["model.base=owner/name"])["warnings"] == []


def test_a_fetched_set_is_looked_into(written, tmp_path):
    folder = tmp_path / "cache" / cache.FOLDERS["data"] / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "other.txt").write_text("x")
    with pytest.raises(RecipeError, match=r"found among its files \(other\.txt\)"):
        validate.run(written("source: ml-100k"))


@pytest.mark.parametrize(
    ("setting", "package"),
    [
        ("train.report_to=dvclive", "dvclive"),
        ("train.optim=grokadamw", "grokadamw"),
        ("model.quantization=4bit", "bitsandbytes"),
        ("data.out_of_core=true", "duckdb"),
        ("systems=[popularity, text_knn_sentences]", "sentence_transformers"),
    ],
)
def test_packages_that_are_missing_here_are_told(written, monkeypatch, setting, package):
    from llmrec.recipe import loading, trainer_arguments

    for module in (loading, trainer_arguments):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    [warning] = validate.run(written(), [setting])["warnings"]
    assert f"the package {package}, which is not installed" in warning


def test_cut_offs_beyond_the_lists_are_left_out_not_misses(written):
    [warning] = validate.run(written(more="evaluate: {k: [1, 50]}\n"))["warnings"]
    assert "left out" in warning
    assert "decode.top_k=50" in warning
    among = ["evaluate.k=[1, 50]", "data.candidates=60", "systems=[popularity]"]
    assert validate.run(written(), among)["warnings"] == []


def log_with(untitled=0, same=0, again=0, users=20):
    """20 users who choose 5 of 20 items; so many without a title, of one name, chosen again."""
    titles = [f"Thing {chr(65 + i)}" for i in range(20)]
    titles[:untitled] = [""] * untitled
    titles[20 - same :] = ["The same"] * same
    lines = ["user_id,item_id,timestamp,title"]
    for user in range(users):
        items = [(user + step * 3) % 20 for step in range(5)]
        if user < again:
            items[-1] = items[0]
        lines += [f"u{user},i{i},{step},{titles[i]}" for step, i in enumerate(items)]
    return lines


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"untitled": 2}, "10% of the items have no title"),
        ({"same": 3}, "10% of the items share their title"),  # the first keeps it
        ({"again": 2}, "10% of the test targets stand in the user's own history"),
        ({"untitled": 1, "same": 2, "again": 1}, None),  # 5 % is not above 5 %
    ],
)
def test_prepare_warns_once_and_validate_too(written, caplog, asked, said):
    path = written(lines=log_with(**asked))
    recipe = load(path)
    folder = RunFolder.of(recipe)
    with caplog.at_level(logging.WARNING, "llmrec"):
        prepare.run(recipe, folder)
        prepare.run(recipe, folder)
    found = [r.message for r in caplog.records if "%" in r.message]
    assert len(found) == len(validate.run(path)["warnings"]) == (said is not None)
    if said is not None:
        assert said in found[0]
        assert said in validate.run(path)["warnings"][0]
    seen = validate.run(path, ["decode.filter_seen=false"])["warnings"]
    assert not any("own history" in warning for warning in seen)
    assert validate.run(path, ["data.k_core=1"])["warnings"] == []  # other data than were prepared
