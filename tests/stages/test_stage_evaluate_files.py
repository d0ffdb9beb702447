"""Foreign rankings judged without a run: the numbers, what is told, what is refused."""

import json
import math

import pytest
from typer.testing import CliRunner

from llmrec.cli import app
from llmrec.data.records import Examples
from llmrec.errors import DataError, RecipeError
from llmrec.recipe.evaluation import Evaluate
from llmrec.stages import evaluate, evaluate_files, prepare, recommend, report

TARGETS = "user_id,item_id\nu1,a\nu2,b\nu3,c\nu4,d\n"
# First place, second place, third place, no list.
MINE = "user_id,item_id,rank\nu1,a,1\nu1,x,2\nu2,x,1\nu2,b,2\nu3,x,1\nu3,y,2\nu3,c,3\nv,a,1\n"
SETTINGS = Evaluate(k=[1, 3], samples=100)


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            (tmp_path / name).write_text(text, "utf-8")
        return tmp_path

    return write


def cell(result, system, metric):
    return result["metrics"]["table"]["systems"][system][metric]["all"]["mean"]


def test_metrics_are_those_worked_by_hand(files):
    folder = files(targets=TARGETS, mine=MINE)
    result = evaluate_files.run(folder / "targets", [f"mine={folder / 'mine'}"], SETTINGS)
    assert cell(result, "mine", "HR@1") == pytest.approx(1 / 4)
    assert cell(result, "mine", "HR@3") == pytest.approx(3 / 4)
    expected = (1 + 1 / math.log2(3) + 1 / math.log2(4)) / 4
    assert cell(result, "mine", "NDCG@3") == pytest.approx(expected)
    assert "1 of 4 users have no list" in result["table"]
    assert "1 users without a target left out" in result["table"]
    assert "uniform" not in result["table"]


def test_systems_are_tested_against_the_first(files):
    other = MINE.replace("u2,x,1\nu2,b,2", "u2,b,1\nu2,x,2")
    folder = files(targets=TARGETS, mine=MINE, other=other)
    given = [f"mine={folder / 'mine'}", f"other={folder / 'other'}"]
    result = evaluate_files.run(folder / "targets", given, SETTINGS)
    [ndcg] = [c for c in result["metrics"]["comparisons"] if c["metric"] == "NDCG@3"]
    assert (ndcg["system"], ndcg["reference"]) == ("other", "mine")
    assert ndcg["difference"] == pytest.approx((1 - 1 / math.log2(3)) / 4)


def test_several_targets_of_a_user(files):
    folder = files(
        targets="u 0 a 1\nu 0 b 1\nu 0 z 0\n", mine="user_id,item_id,rank\nu,a,1\nu,z,2\nu,b,3\n"
    )
    result = evaluate_files.run(folder / "targets", [f"mine={folder / 'mine'}"], SETTINGS)
    assert cell(result, "mine", "Recall@1") == pytest.approx(1 / 2)
    assert cell(result, "mine", "Recall@3") == pytest.approx(1)


def test_probabilities_that_are_a_distribution_give_an_nll(files):
    mine = "user_id,item_id,score,probability\n" + "".join(
        f"{user},{item},{p},{p}\n"
        for user in ("u1", "u2", "u3", "u4")
        for item, p in (("a", 0.5), ("b", 0.25), ("c", 0.125), ("d", 0.125))
    )
    folder = files(targets=TARGETS, mine=mine)
    result = evaluate_files.run(folder / "targets", [f"mine={folder / 'mine'}"], SETTINGS)
    assert cell(result, "mine", "NLL") == pytest.approx((1 + 2 + 3 + 3) * math.log(2) / 4)


def test_a_cut_off_that_no_list_reaches_is_not_measured(files):
    folder = files(targets=TARGETS, mine="user_id,item_id,rank\nu1,a,1\n")
    result = evaluate_files.run(folder / "targets", [f"mine={folder / 'mine'}"], SETTINGS)
    assert cell(result, "mine", "HR@1") == pytest.approx(1 / 4)
    assert cell(result, "mine", "HR@3") is None


def test_what_is_refused(files):
    folder = files(targets=TARGETS, mine="user_id,item_id,rank\n1,a,1\n")
    with pytest.raises(DataError, match=r"lists '1' and others, and none of the users .*'u1'"):
        evaluate_files.run(folder / "targets", [f"mine={folder / 'mine'}"], SETTINGS)
    with pytest.raises(RecipeError, match="written NAME=FILE"):
        evaluate_files.run(folder / "targets", ["mine"], SETTINGS)
    with pytest.raises(RecipeError, match="mine is there twice"):
        evaluate_files.run(folder / "targets", ["mine=a", "mine=b"], SETTINGS)
    with pytest.raises(DataError, match="is not there"):
        evaluate_files.run(folder / "targets", ["mine=nowhere.csv"], SETTINGS)


@pytest.fixture
def run_of_baselines(recipe_of):
    recipe, folder = recipe_of("systems=[popularity, markov]", "evaluate.k=[1, 5]")
    prepare.run(recipe, folder)
    recommend.run(recipe, folder)
    return recipe, folder


def test_a_foreign_ranking_becomes_a_row_of_a_run(run_of_baselines, tmp_path):
    recipe, folder = run_of_baselines
    test = Examples.read(folder.examples("test"))
    lines = [f"{user},i{n % 12},1" for n, user in enumerate(test.user_ids)]
    lines += [f"{test.user_ids[0]},no such item,2", "nobody,i1,1"]
    path = tmp_path / "mine.csv"
    path.write_text("user_id,item_id,rank\n" + "\n".join(lines) + "\n", "utf-8")
    noticed = evaluate_files.adopt(recipe, folder, [f"mine={path}"])
    assert noticed == ["mine: 1 answers are no items of the catalog"]
    evaluate.run(recipe, folder)
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    catalog = evaluate_files.read_test_split(folder).catalog
    hits = [catalog.item_ids[t] == f"i{n % 12}" for n, t in enumerate(test.targets)]
    mine = metrics["table"]["systems"]["mine"]
    assert mine["HR@1"]["all"]["mean"] == pytest.approx(sum(hits) / len(hits))
    assert mine["NLL"]["all"]["mean"] is None
    assert metrics["systems"]["mine"]["kind"] == "external"
    assert "mine" not in metrics["best_baseline"].values()
    assert any("mine" in (c["system"], c["reference"]) for c in metrics["comparisons"])
    assert report.run(recipe, folder)


def test_a_foreign_ranking_is_taken_out_again(run_of_baselines, tmp_path):
    recipe, folder = run_of_baselines
    user = Examples.read(folder.examples("test")).user_ids[0]
    path = tmp_path / "mine.csv"
    path.write_text(f"user_id,item_id,rank\n{user},i1,1\n", "utf-8")
    folder.keep(recipe)
    evaluate_files.adopt(recipe, folder, [f"mine={path}", f"other={path}"])
    for name in ("popularity", "never", "../recipe"):
        with pytest.raises(RecipeError, match=r"no ranking of another program.*mine, other"):
            evaluate_files.drop(folder, ["mine", name])
    done = CliRunner().invoke(app, ["evaluate", str(folder.root), "--drop", "mine", "--json"])
    assert done.exit_code == 0, done.output
    systems = json.loads(done.stdout)["table"]["systems"]
    assert "other" in systems
    assert "mine" not in systems


def test_what_a_run_refuses_of_foreign_rankings(run_of_baselines, tmp_path):
    recipe, folder = run_of_baselines
    path = tmp_path / "mine.csv"
    path.write_text("user_id,item_id,rank\n17,i1,1\n", "utf-8")
    with pytest.raises(RecipeError, match="markov is a system of llmrec's own"):
        evaluate_files.adopt(recipe, folder, [f"markov={path}"])
    with pytest.raises(RecipeError, match="no plain word"):
        evaluate_files.adopt(recipe, folder, [f"../mine={path}"])
    with pytest.raises(DataError, match="are these the same ids"):
        evaluate_files.adopt(recipe, folder, [f"mine={path}"])


def test_on_the_command_line(files, run_of_baselines):
    folder = files(targets=TARGETS, mine=MINE)
    given = ["--predictions", f"mine={folder / 'mine'}"]
    done = CliRunner().invoke(app, ["evaluate", "--targets", str(folder / "targets"), *given])
    assert done.exit_code == 0
    assert "HR@1," in done.output
    as_json = [*given, "--json"]
    done = CliRunner().invoke(app, ["evaluate", "--targets", str(folder / "targets"), *as_json])
    assert json.loads(done.stdout)["table"]["systems"]["mine"]["HR@1"]["all"]["mean"] == 0.25
    recipe, run = run_of_baselines
    run.keep(recipe)
    done = CliRunner().invoke(app, ["evaluate", str(run.root), "--json"])
    numbers = json.loads(done.stdout)
    assert 0 <= numbers["table"]["systems"]["markov"]["HR@1"]["all"]["mean"] <= 1
    mine = str(folder / "mine")
    targets = ["--targets", str(folder / "targets")]
    both = ["--predictions", f"a={mine}", f"b={mine}", "--json"]
    done = CliRunner().invoke(app, ["evaluate", *targets, *both])
    assert list(json.loads(done.stdout)["table"]["systems"]) == ["a", "b"]
    for more in (["evaluate.k=[3]"], ["--format", "html"]):
        wrong = CliRunner().invoke(app, ["evaluate", *targets, *given, *more])
        assert isinstance(wrong.exception, RecipeError)
    lost = ["--predictions", "a=lost.csv", "b=lost.csv"]
    wrong = CliRunner().invoke(app, ["evaluate", str(run.root), *lost])
    assert str(wrong.exception) == "lost.csv is not there"
    wrong = CliRunner().invoke(app, ["evaluate", str(run.root), "--targets", "x", *given])
    assert isinstance(wrong.exception, RecipeError)
