"""evaluate, compare and report on small run folders made by hand."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmrec.data.catalog import Catalog
from llmrec.data.files import write_json
from llmrec.data.records import Examples, Interactions, concatenated, offsets_of
from llmrec.errors import DataError, RecipeError
from llmrec.evaluation import Predictions, SystemInfo
from llmrec.recipe.data import Data
from llmrec.recipe.experiment import Decode, Evaluate, Recipe
from llmrec.runs.folder import RunFolder
from llmrec.stages import compare, evaluate, report

SYSTEMS = ["popularity", "markov", "tgh", "untuned", "tuned"]
USERS, ITEMS = 40, 30


def recipe(**changes):
    return Recipe(
        name="small",
        data=Data(source="ml-100k"),
        systems=changes.pop("systems", SYSTEMS),
        decode=Decode(beams=10, top_k=10),
        evaluate=Evaluate(k=[1, 5, 10, 20], samples=200),
        **changes,
    )


def examples(users=USERS, title_of=str):
    """User u has seen items 0, 1 and (u mod 5) + 2 and goes on to item 10 + u mod 20."""
    histories = [np.array([0, 1, 2 + u % 5], np.int32) for u in range(users)]
    index = np.arange(users)
    return Examples(
        np.array([title_of(u) for u in index], object),
        offsets_of(histories),
        concatenated(histories),
        (10 + index % 20).astype(np.int32),
        index.astype(np.int64),
        index % 2 == 0,
        index % 20 >= 15,
    )


def write_data(folder, test, items=ITEMS):
    folder.data.mkdir(parents=True, exist_ok=True)
    names = tuple(str(i) for i in range(items))
    Catalog(names, tuple(f"Film {i}" for i in names), names).write(folder.items)
    position = np.repeat(np.arange(25, dtype=np.int32), np.arange(25, 0, -1))
    zeros = np.zeros(len(position), np.int64)
    Interactions(zeros.astype(np.int32), position, zeros, zeros, np.array(["x"], object)).write(
        folder.interactions
    )
    test.write(folder.examples("test"))
    outputs = {"train.parquet": {"sha256": f"{items} {len(test)}"}}
    write_json(folder.data / "manifest.json", {"outputs": outputs})


def answers(folder, test, system, rank, nll, length=10):
    """Every user gets `length` items with the target at `rank` (from 0; past the end: a miss)."""
    lists = []
    for target in test.targets:
        items = [i for i in range(7, ITEMS) if i != target][:length]
        if rank < length:
            items[rank] = int(target)
        lists.append(np.array(items, np.int32))
    info = SystemInfo(
        system,
        "language_model" if "tuned" in system else "baseline",
        not np.isnan(nll).all(),
        {"rank": rank},
        1.0,
        folder.provenance(recipe()),
    )
    scores = [-np.arange(len(i), dtype=np.float32) for i in lists]
    return Predictions.of(info, test.user_ids, lists, scores, np.broadcast_to(nll, len(test)))


def made(root, test=None):
    """A run with five systems; markov is the best baseline, tuned is between it and untuned."""
    folder, test = RunFolder(root), examples() if test is None else test
    write_data(folder, test)
    wobble = np.random.default_rng(0).normal(0, 0.2, len(test))
    for system, rank, nll in [
        ("popularity", 9, 4.0 + wobble),
        ("markov", 0, 2.5 + wobble[::-1]),
        ("tgh", 4, np.full(len(test), np.nan)),
        ("untuned", 10, 6.0 + wobble),
        ("tuned", 1, 3.0 - wobble),
    ]:
        answers(folder, test, system, rank, nll).write(folder.predictions(system))
    return folder


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = made(tmp_path_factory.mktemp("run"))
    return folder, evaluate.run(recipe(), folder)


def test_per_user_is_one_row_for_each_system_and_example(evaluated):
    table = pq.read_table(evaluated[0].per_user)
    assert table.num_rows == len(SYSTEMS) * USERS
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["system"], first["user_id"], first["target"]) == ("popularity", "0", 10)
    assert (first["target_item_id"], first["tied"], first["cold"]) == ("10", True, False)
    assert (first["HR@10"], first["HR@5"], first["NDCG@10"]) == (1, 0, 1 / np.log2(11))
    assert (first["MRR@10"], first["Precision@10"], first["MAP@10"]) == (0.1, 0.1, 0.1)
    assert np.isnan(first["HR@20"])
    tgh = table.filter(np.array(table["system"].to_pylist()) == "tgh")
    assert np.isnan(tgh["NLL"].to_numpy()).all()
    assert list(dict.fromkeys(table["system"].to_pylist())) == SYSTEMS


def test_metrics_json(evaluated):
    metrics = json.loads(evaluated[0].metrics.read_text("utf-8"))
    assert (metrics["examples"], metrics["users"], metrics["catalog"]) == (USERS, USERS, ITEMS)
    table = metrics["table"]
    assert table["uniform_nll"] == pytest.approx(np.log(ITEMS))
    assert table["examples"] == {"all": 40, "warm": 30, "cold": 10, "tied": 20, "untied": 20}
    hit = table["systems"]["tuned"]["HR@10"]["all"]
    assert (hit["mean"], hit["low"], hit["high"], hit["n"], hit["excluded"]) == (1, 1, 1, 40, 0)
    assert table["systems"]["untuned"]["HR@10"]["all"]["mean"] == 0
    assert table["systems"]["tgh"]["NLL"]["all"] == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
        "excluded": 40,
    }
    assert metrics["evaluate"]["main_k"] == 10
    assert metrics["best_baseline"] == {"NLL": "markov", "NDCG@10": "markov", "HR@10": "popularity"}
    assert metrics["systems"]["tuned"]["nll"] == {"finite": 40, "ruled_out": 0, "undefined": 0}
    assert metrics["systems"]["tuned"]["beyond"]["invalid_share"] == 0
    assert any("Not measured at 20" in note for note in table["notes"])
    assert metrics["provenance"]["data"]


def test_every_system_is_tested_against_the_best_baseline_and_tuned_against_untuned(evaluated):
    metrics = json.loads(evaluated[0].metrics.read_text("utf-8"))
    found = {
        (c["system"], c["reference"]): c for c in metrics["comparisons"] if c["metric"] == "NLL"
    }
    assert set(found) == {
        ("popularity", "markov"),
        ("untuned", "markov"),
        ("tuned", "markov"),
        ("tuned", "untuned"),
    }
    assert found["tuned", "markov"]["standing"] == "below"
    assert found["tuned", "untuned"]["standing"] == "above"
    assert found["tuned", "markov"]["difference"] == pytest.approx(0.5, abs=0.1)
    raw = [c["p_value"] for c in found.values()]
    assert all(c["p_holm"] >= c["p_value"] for c in found.values())
    assert raw == pytest.approx([1 / 201] * 4)
    assert all(c["p_holm"] == pytest.approx(4 / 201) for c in found.values())


def test_result_is_for_people(evaluated):
    result = evaluated[1]
    json.dumps(result)
    assert result["table"].splitlines()[0].startswith("system")
    assert "tuned stands below markov: NLL" in result["findings"]
    assert "popularity stands" not in result["findings"]


def test_same_input_same_bytes(evaluated, tmp_path):
    folder = evaluated[0]
    before = folder.metrics.read_bytes(), folder.per_user.read_bytes()
    evaluate.run(recipe(), folder)
    assert (folder.metrics.read_bytes(), folder.per_user.read_bytes()) == before


def test_infinite_and_undefined_nll_are_counted_and_said(tmp_path):
    folder, test = made(tmp_path), examples()
    nll = np.full(USERS, 3.0)
    nll[:4], nll[4] = np.inf, np.nan
    answers(folder, test, "tuned", 1, nll).write(folder.predictions("tuned"))
    evaluate.run(recipe(), folder)
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    assert metrics["systems"]["tuned"]["nll"] == {"finite": 35, "ruled_out": 4, "undefined": 1}
    cell = metrics["table"]["systems"]["tuned"]["NLL"]["all"]
    assert (cell["mean"], cell["n"], cell["excluded"]) == (3, 35, 5)
    notes = " ".join(metrics["table"]["notes"])
    assert "for tuned: 4 whose target was ruled out" in notes
    assert "and 1 without a value" in notes
    pair = next(c for c in metrics["comparisons"] if c["system"] == "tuned")
    assert (pair["n"], pair["excluded"]) == (35, 5)


def test_order_is_the_recipes_then_the_others(tmp_path):
    folder = made(tmp_path)
    evaluate.run(recipe(systems=["tuned", "markov", "sasrec"]), folder)
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    assert list(metrics["systems"]) == ["tuned", "markov", "popularity", "tgh", "untuned"]
    notes = metrics["table"]["notes"]
    assert "In the recipe but without predictions: sasrec." in notes
    assert "Not in the recipe, taken as found: popularity, tgh, untuned." in notes


def test_users_with_several_examples_are_resampled_whole(tmp_path):
    test = examples(title_of=lambda u: str(u // 10))
    folder = made(tmp_path / "few", test)
    evaluate.run(recipe(), folder)
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    assert (metrics["examples"], metrics["users"]) == (40, 4)


def test_lists_that_hold_all_there_is_are_complete_at_any_cut_off(tmp_path):
    folder, test = RunFolder(tmp_path), examples()
    write_data(folder, test)
    everything = [
        np.array([t, *(i for i in range(3, ITEMS) if i != t)], np.int32) for t in test.targets
    ]
    short = answers(folder, test, "markov", 0, np.zeros(USERS))
    scores = [np.zeros(len(e), np.float32) for e in everything]
    Predictions.of(short.info, test.user_ids, everything, scores, short.nll).write(
        folder.predictions("markov")
    )
    settings = recipe(systems=["markov"]).model_copy(
        update={"evaluate": Evaluate(k=[10, 100], samples=200)}
    )
    evaluate.run(settings, folder)
    said = json.loads(folder.metrics.read_text("utf-8"))["table"]["systems"]["markov"]
    assert said["HR@100"]["all"]["mean"] == 1


def test_predictions_of_another_split_are_refused(tmp_path):
    folder, test = made(tmp_path), examples()
    path, nll = folder.predictions("tuned"), np.zeros(USERS)
    good = answers(folder, test, "tuned", 1, nll)

    swapped = good.user_ids.copy()
    swapped[[3, 5]] = swapped[[5, 3]]
    replace(good, user_ids=swapped).write(path)
    with pytest.raises(DataError, match=r"tuned\.parquet: row 3 is of user '5'.*2 rows differ"):
        evaluate.run(recipe(), folder)

    answers(folder, examples(USERS - 1), "tuned", 1, nll[1:]).write(path)
    with pytest.raises(DataError, match="39 rows for 40 examples"):
        evaluate.run(recipe(), folder)

    answers(folder, test, "untuned", 1, nll).write(path)
    with pytest.raises(DataError, match="says it is of the system 'untuned'"):
        evaluate.run(recipe(), folder)

    good.write(path)
    evaluate.run(recipe(), folder)
    write_json(folder.data / "manifest.json", {"outputs": {"train.parquet": {"sha256": "others"}}})
    with pytest.raises(DataError, match=r"made from other data .* Run `llmrec recommend` again"):
        evaluate.run(recipe(), folder)


def test_what_is_missing_is_named_with_the_verb_that_makes_it(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(DataError, match="llmrec prepare"):
        evaluate.run(recipe(), folder)
    write_data(folder, examples())
    with pytest.raises(DataError, match="llmrec recommend"):
        evaluate.run(recipe(), folder)
    with pytest.raises(DataError, match="llmrec evaluate"):
        report.run(recipe(), folder)
    write_data(folder, examples(0))
    with pytest.raises(DataError, match="no example"):
        evaluate.run(recipe(), folder)


def test_needs_no_torch(tmp_path):
    made(tmp_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from llmrec.recipe.experiment import Recipe, Data\n"
        "from llmrec.stages import evaluate, compare, report\n"
        "from llmrec.runs.folder import RunFolder\n"
        "recipe = Recipe(name='x', data=Data(source='ml-100k'))\n"
        f"root = {str(tmp_path)!r}\n"
        "evaluate.run(recipe, RunFolder(Path(root)))\n"
        "report.run(recipe, RunFolder(Path(root)))\n"
        "compare.run([root + ':markov', root], 'json')\n"
        "bad = {'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compare_with_one_reference(evaluated):
    root = str(evaluated[0].root)
    said = compare.run([f"{root}:markov", f"{root}:tuned", f"{root}:untuned"], "json")
    name = evaluated[0].root.name
    assert said["examples"] == USERS
    assert list(said["table"]["systems"]) == [f"{name}:markov", f"{name}:tuned", f"{name}:untuned"]
    nll = {c["system"]: c for c in said["comparisons"] if c["metric"] == "NLL"}
    assert nll[f"{name}:tuned"]["reference"] == f"{name}:markov"
    # The same test as in metrics.json, in a family of two instead of four.
    of_run = next(
        c
        for c in json.loads(evaluated[0].metrics.read_text("utf-8"))["comparisons"]
        if (c["system"], c["reference"]) == ("tuned", "markov")
    )
    ours = nll[f"{name}:tuned"]
    for key in ("difference", "low", "high", "p_value"):
        assert ours[key] == pytest.approx(of_run[key], abs=1e-12)
    assert ours["p_holm"] == pytest.approx(2 / 201)


def test_compare_tells_what_a_model_adds_to_baselines_of_several_runs(evaluated, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(evaluated[0].root, alone)
    runs = [str(evaluated[0].root), str(alone)]
    names = [f"{runs[1]}:popularity", f"{runs[0]}:markov", f"{runs[0]}:tuned"]
    (added,) = compare.run(names, "json")["additions"]
    of_run = json.loads(evaluated[0].metrics.read_text("utf-8"))["additions"]
    (same,) = [one for one in of_run if one["system"] == "tuned"]
    name = evaluated[0].root.name
    assert added["system"] == f"{name}:tuned"
    assert added["baselines"] == ["alone:popularity", f"{name}:markov"]
    for key in ("together", "change"):
        assert added[key] == pytest.approx(same[key], abs=1e-6)
    assert "taken together" in compare.run(names)
    assert compare.run(names[:2], "json")["additions"] == []


def test_compare_runs_by_the_names_of_systems_on_shared_users(evaluated, tmp_path):
    test = examples()
    some = test.take(np.arange(USERS)[::-1][:30])  # other order, fewer users
    other = made(tmp_path / "other", some)
    evaluate.run(recipe(), other)
    said = compare.run([str(evaluated[0].root), str(other.root)], "json")
    name = evaluated[0].root.name
    assert said["examples"] == 30
    assert {(c["system"], c["reference"]) for c in said["comparisons"]} == {
        (f"other:{s}", f"{name}:{s}") for s in SYSTEMS
    }
    assert any("10 examples of" in note for note in said["table"]["notes"])
    # Both runs answer alike, up to the noise that goes with the row.
    hits = [c for c in said["comparisons"] if c["metric"] == "HR@10"]
    assert all((c["difference"], c["p_value"]) == (0, 1) for c in hits)


@pytest.mark.parametrize("form", ["text", "markdown", "latex"])
def test_compare_forms(evaluated, form):
    root = str(evaluated[0].root)
    said = compare.run([f"{root}:markov", f"{root}:tuned"], form)
    assert "below" in said
    assert ("tabular" in said) == (form == "latex")
    assert ("| --" in said) == (form == "markdown")


def test_compare_refuses_what_cannot_be_compared(evaluated, tmp_path):
    root = str(evaluated[0].root)
    for names, form, said in [
        ([root], "text", "at least two"),
        ([f"{root}:markov", f"{root}:nobody"], "text", "no system 'nobody'; it has popularity"),
        ([f"{root}:markov", f"{root}:tuned"], "html", "none of text"),
        ([root, root], "text", "nothing to compare"),
    ]:
        with pytest.raises(RecipeError, match=said):
            compare.run(names, form)
    with pytest.raises(DataError, match="llmrec evaluate"):
        compare.run([root, str(tmp_path / "nowhere")])

    shifted = examples()
    shifted.targets[:5] = 8
    other = made(tmp_path / "shifted", shifted)
    evaluate.run(recipe(), other)
    with pytest.raises(DataError, match="5 of 40 shared examples have other targets"):
        compare.run([root, str(other.root)])
    strangers = made(tmp_path / "strangers", examples(title_of=lambda u: f"x{u}"))
    evaluate.run(recipe(), strangers)
    with pytest.raises(DataError, match="share no test user"):
        compare.run([root, str(strangers.root)])


def test_report(evaluated, tmp_path):
    folder = evaluated[0]
    log = [{"step": 1, "loss": 5.0}, {"step": 2, "valid_nll": 3.0, "low": 2.5, "high": 3.5}]
    folder.train_log.write_text("\n".join(map(json.dumps, log)) + "\n{broken\n", "utf-8")
    result = report.run(recipe(), folder)
    page = folder.report.read_text("utf-8")
    assert result["report"] == str(folder.report)
    assert result["headline"] in folder.report.read_text("utf-8")
    assert "By NLL, untuned and tuned stand below the best baseline, markov." in page
    assert page.count("<svg ") == 2
    assert page.count('<div class="visitor">') == 3
    assert page.count('<li class="target">') == 3 * 2  # markov and tuned hold it, untuned does not
    assert report.run(recipe(), folder)
    assert folder.report.read_text("utf-8") == page


def test_report_draws_the_curriculum_of_a_log_that_has_one(evaluated):
    folder = evaluated[0]

    def page(lines):
        folder.train_log.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        report.run(recipe(), folder)
        return folder.report.read_text("utf-8")

    plain = [
        {"step": 2, "loss": 5.0, "grad_norm": 1.0, "targets": 8, "seconds": 0.5},
        {
            "step": 2,
            "valid_nll": 3.0,
            "low": 2.5,
            "high": 3.5,
            "valid_hr@10": 0.1,
            "valid_ndcg@10": 0.05,
            "score": [-0.05, 3.0],
        },
        {"step": 2, "epoch": 0, "losses": {"real": 5.0, "self": None}},
    ]
    assert page(plain).count("<svg ") == 2
    begun = {"step": 0, "epoch": 0, "weights": [0.5, 0.5], "lambda": 0.5}
    fixed = page([begun, *plain])
    assert fixed.count("<svg ") == 3
    assert "distance / untuned" not in fixed
    probed = {"distance": 7.0, "probe_equal_to_truth": 0.0, "distance_untuned": 7.0}
    ended = {"step": 2, "epoch": 0, "losses": {"real": 5.0, "self": 4.0}}
    full = page([{**begun, **probed, "<b>": "<script>"}, *plain[:2], ended])
    assert full.count("<svg ") == 4
    assert "distance / untuned" in full
    assert full.index("curriculum curve") < full.index("branch losses curve")
    assert "<script" not in full
    hidden = page([{**begun, **dict.fromkeys(probed, "<script>")}, *plain])
    assert "<script" not in hidden


def test_report_refuses_metrics_of_other_predictions(tmp_path):
    folder = made(tmp_path)
    evaluate.run(recipe(), folder)
    folder.predictions("tgh").unlink()
    with pytest.raises(DataError, match="run `llmrec evaluate` again"):
        report.run(recipe(), folder)


def test_cold_targets_among_cold_items_have_columns_of_their_own(tmp_path):
    folder, test = made(tmp_path), examples()
    cold = np.flatnonzero(test.cold)
    for system, place in (("popularity", 7.0), ("markov", np.inf)):
        places = np.full(len(test), np.nan)
        places[cold] = place
        places[cold[0]] = 0.0
        asked = Predictions.read(folder.predictions(system))
        replace(asked, cold_places=places).write(folder.predictions(system))
    shown = evaluate.run(recipe(), folder)["table"]
    systems = json.loads(folder.metrics.read_text("utf-8"))["table"]["systems"]
    for system, hits in (("popularity", {5: 1, 10: 10}), ("markov", {5: 1, 10: 1})):
        for k, count in hits.items():
            cell = systems[system][f"HR@{k} among cold items"]["cold"]
            assert (cell["mean"], cell["n"]) == (pytest.approx(count / 10), 10)
    gain = systems["popularity"]["NDCG@10 among cold items"]["cold"]["mean"]
    assert gain == pytest.approx((1 + 9 / np.log2(9)) / 10)
    assert systems["tuned"]["HR@10 among cold items"]["cold"]["n"] == 0
    assert "HR@10 among cold items, cold, n = 10" in shown
    assert "HR@10, warm, n = 30" in shown
    assert "Cold items: 5 that never occur in training; by chance HR@1 0.200" in shown
    assert "Know items by id alone" in shown
    assert "popularity, markov, tgh." in shown
