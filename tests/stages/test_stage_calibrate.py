"""evaluate --calibration on a small run folder made by hand, and what the report says of it."""

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from llmrec.cli import app
from llmrec.data import sealed
from llmrec.data.catalog import Catalog
from llmrec.data.files import write_json
from llmrec.data.records import Examples, Interactions, concatenated, offsets_of
from llmrec.errors import DataError, RecipeError
from llmrec.evaluation import Predictions, SystemInfo, calibration, conformal
from llmrec.recipe.data import Data
from llmrec.recipe.evaluation import Calibration
from llmrec.recipe.experiment import Decode, Evaluate, Recipe
from llmrec.runs.folder import RunFolder
from llmrec.stages import calibrate, evaluate, report

SYSTEMS = ["popularity", "tgh", "untuned"]
ITEMS, VALID, TEST = 20, 90, 240


def recipe(**settings):
    asked = settings.pop("calibration", Calibration(alpha=[0.1, 0.4], bins=5, listed=8))
    return Recipe(
        name="small",
        data=Data(source="ml-100k"),
        systems=SYSTEMS,
        decode=Decode(beams=10, top_k=10),
        evaluate=Evaluate(k=[1, 5], samples=100, calibration=asked, **settings),
    )


def distributions(examples, seed):
    """What is stated (E, ITEMS), of which the truth is the square root, and targets."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (examples, ITEMS))
    targets = (logits / 2 + rng.gumbel(size=(examples, ITEMS))).argmax(axis=1)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), targets.astype(np.int32)


def examples_of(names, targets):
    histories = [np.arange(1 + u % 7, dtype=np.int32) for u in range(len(names))]
    no = np.zeros(len(names), np.bool_)
    return Examples(
        np.array(names, object),
        offsets_of(histories),
        concatenated(histories),
        targets,
        np.arange(len(names), dtype=np.int64),
        no,
        no,
    )


def write_lists(folder, system, split, stated, names, kept, rows=None, **changes):
    """The lists of all rows, or of `rows`."""
    asked = np.arange(len(names)) if rows is None else np.array(rows)
    order = np.argsort(-stated, axis=1, kind="stable")[asked][:, :kept]
    scores = np.take_along_axis(stated[asked], order, axis=1)
    provenance = {"data": folder.provenance(recipe())["data"]}
    provenance |= {} if rows is None else {"rows": list(rows)}
    info = SystemInfo(
        changes.get("said", system),
        "baseline",
        True,
        {},
        1.0,
        provenance | changes.get("provenance", {}),
    )
    users = np.array(names, object)[asked]
    targets = Examples.read(folder.examples(split)).targets[asked]
    nll = -stated[asked, targets]
    Predictions.of(info, users, list(order.astype(np.int32)), list(scores), nll).write(
        folder.lists(system, split)
    )


def made(root, names=None):
    """popularity has whole lists, untuned the first 8 items and a sample of valid, tgh none."""
    folder = RunFolder(root)
    folder.data.mkdir(parents=True)
    ids = tuple(str(i) for i in range(ITEMS))
    Catalog(ids, tuple(f"Film {i}" for i in ids), ids).write(folder.items)
    position = np.repeat(np.arange(ITEMS, dtype=np.int32), np.arange(ITEMS, 0, -1))
    zeros = np.zeros(len(position), np.int64)
    Interactions(zeros.astype(np.int32), position, zeros, zeros, np.array(["x"], object)).write(
        folder.interactions
    )
    write_json(
        folder.data / "manifest.json", {"outputs": {"train.parquet": {"sha256": str(ITEMS)}}}
    )
    named = {
        "valid": [f"v{u}" for u in range(VALID)],
        "test": names or [f"u{u}" for u in range(TEST)],
    }
    for seed, (split, users) in enumerate(named.items()):
        stated, targets = distributions(len(users), seed)
        examples_of(users, targets).write(folder.examples(split))
        write_lists(folder, "popularity", split, stated, users, None)
        rows = [5, 2, *range(20, 80)] if split == "valid" else None
        write_lists(folder, "untuned", split, stated, users, 8, rows)
    test = Examples.read(folder.examples("test"))
    for system in SYSTEMS:
        info = SystemInfo(
            system,
            "language_model" if system == "untuned" else "baseline",
            True,
            {},
            1.0,
            folder.provenance(recipe()),
        )
        lists = [np.arange(8, dtype=np.int32)] * len(test)
        Predictions.of(
            info, test.user_ids, lists, [np.zeros(8)] * len(test), np.full(len(test), 3.0)
        ).write(folder.predictions(system))
    return folder


def test_the_main_table_has_the_nll_at_the_temperature_beside_the_nll(tmp_path):
    folder = made(tmp_path)
    said = evaluate.run(recipe(), folder)
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    stated, targets = distributions(TEST, 1)  # whole lists of popularity, as `made` draws them
    found = metrics["systems"]["popularity"]["temperature"]
    assert found == pytest.approx(2.0, rel=0.2)  # the truth is the square root
    logs = stated / found
    expected = np.log(np.exp(logs).sum(axis=1)) - logs[np.arange(TEST), targets]
    table = metrics["table"]["systems"]
    cell = table["popularity"]["NLL at a temperature"]["all"]
    assert (cell["mean"], cell["n"]) == (pytest.approx(expected.mean(), abs=1e-6), TEST)
    assert table["tgh"]["NLL at a temperature"]["all"]["n"] == 0  # it has no lists
    assert metrics["systems"]["tgh"]["temperature"] is None
    assert f"popularity {found:.2f}, untuned " in said["table"]
    assert said["table"].index("NLL, nats") < said["table"].index("NLL at a temperature, nats")
    alone = recipe().model_copy(update={"evaluate": Evaluate(k=[1, 5], samples=100)})
    assert "temperature" not in evaluate.run(alone, folder)["table"]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    folder = made(tmp_path_factory.mktemp("run"))
    return folder, calibrate.run(recipe(), folder)


def said_of(folder):
    return json.loads(folder.calibration.read_text("utf-8"))


def halves(users, share=0.5, seed=0):
    """The users that calibrate and the others, from the rule as it is written."""
    names = sorted(set(users))
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = {names[i] for i in order[: round(share * len(names))]}
    return [u in chosen for u in users]


def expected(folder, system, share=0.5):
    """Temperature and the lists of both parts, from the files."""
    lists = {}
    for split in ("valid", "test"):
        predictions = Predictions.read(folder.lists(system, split))
        test = Examples.read(folder.examples(split))
        rows = predictions.info.provenance.get("rows", list(range(len(test))))
        scores = np.split(predictions.scores, predictions.offsets[1:-1])
        lists[split] = calibration.listed(predictions.rankings(), scores, test.targets[rows])
    temperature = calibration.fit_temperature(lists["valid"])
    test = Examples.read(folder.examples("test"))
    inside = np.array(halves(test.user_ids, share))
    return temperature, lists["test"], inside


def test_temperature_is_that_of_validation_and_helps(calibrated):
    for system, fitted in (("popularity", VALID), ("untuned", 62)):
        found, temperature = (
            said_of(calibrated[0])["systems"][system],
            expected(calibrated[0], system)[0],
        )
        assert found["temperature"] == temperature == pytest.approx(2, abs=0.5)
        assert found["n_fitted"] == fitted
        stated, scaled = (found[name]["figures"] for name in ("stated", "scaled"))
        for name in ("ECE", "ECE, first 5", "Brier", "NLL"):
            assert scaled[name]["mean"] < stated[name]["mean"]


@pytest.mark.parametrize("system", ["popularity", "untuned"])
def test_figures_are_of_the_users_that_do_not_calibrate(calibrated, system):
    found = said_of(calibrated[0])["systems"][system]
    temperature, lists, inside = expected(calibrated[0], system)
    assert (found["n_calibrating"], found["n_measured"]) == (120, 120)
    assert (found["users_calibrating"], found["users_measured"], found["rows"]) == (120, 120, 240)
    assert found["list_length"] == (ITEMS if system == "popularity" else 8)
    for name, part in (
        ("stated", lists.take(~inside)),
        ("scaled", calibration.temperature_scaled(lists, temperature).take(~inside)),
    ):
        figures, first = found[name]["figures"], calibration.top_k_mass(part, 1)
        assert figures["NLL"]["mean"] == pytest.approx(calibration.nll(part).mean())
        assert figures["Brier"]["mean"] == pytest.approx(calibration.brier(part).mean())
        assert figures["ECE"]["mean"] == calibration.reliability(*first, 5).ece
        assert figures["ECE, equal mass"]["mean"] == calibration.reliability(*first, 5, "mass").ece
        several = calibration.top_k_mass(part, 5)
        assert figures["ECE, first 5"]["mean"] == calibration.reliability(*several, 5).ece
        assert all(f["low"] < f["high"] for f in figures.values())
        assert sum(found[name]["reliability"]["ECE"]["count"]) == 120


@pytest.mark.parametrize("system", ["popularity", "untuned"])
def test_sets_come_from_the_users_that_calibrate(calibrated, system):
    folder, result = calibrated
    found = said_of(folder)["systems"][system]
    temperature, lists, inside = expected(folder, system)
    lists = calibration.temperature_scaled(lists, temperature)
    kept = pq.read_table(folder.set_scores).to_pylist()
    for rule in conformal.RULES:
        scores = conformal.target_scores(lists.take(inside), rule)
        assert [
            row["score"] for row in kept if (row["system"], row["method"]) == (system, rule.method)
        ] == scores.tolist()
        for c in found["coverages"]:
            if c["group"] != "all" or c["method"] != rule.method:
                continue
            limit = conformal.threshold(scores, c["alpha"])
            held = conformal.covered(lists.take(~inside), rule, limit)
            assert c["threshold"] == (limit if np.isfinite(limit) else None)
            assert c["coverage"]["mean"] == pytest.approx(held.mean())
    groups = {(c["group"], c["own"]) for c in found["coverages"]}
    activity = {conformal.SHORT, conformal.MIDDLE, conformal.LONG}
    assert groups == {(g, False) for g in activity | {"all", "head", "tail"}} | {
        (g, True) for g in activity
    }
    parts = {c["group"]: c["coverage"]["n"] for c in found["coverages"]}
    assert parts["head"] + parts["tail"] == sum(parts[g] for g in activity) == parts["all"] == 120
    assert result["scores"] == str(folder.set_scores)


def test_tables_are_for_people(calibrated):
    result = calibrated[1]
    lines = result["table"].splitlines()
    assert lines[0].split("  ")[0] == "system"
    assert [line.split()[0] for line in lines[2:6]] == ["popularity"] * 2 + ["untuned"] * 2
    assert lines[-1] == "Without lists, so left out: tgh."
    assert "too many targets outside the lists" in result["coverage"]
    assert "the common threshold" not in result["coverage"]
    assert re.search(
        r"popularity +lac +0\.90 +120 +0\.\d+ \[0\.\d+, \d\.\d+\].* yes\n", result["coverage"]
    )
    json.dumps(result)


def test_same_input_same_bytes(calibrated, tmp_path):
    folder = made(tmp_path / "again")
    calibrate.run(recipe(), folder)
    for name in ("calibration", "set_scores"):
        assert getattr(folder, name).read_bytes() == getattr(calibrated[0], name).read_bytes()


def test_all_examples_of_a_user_stand_on_one_side(tmp_path):
    folder = made(tmp_path / "run", [f"u{u // 4}" for u in range(TEST)])
    calibrate.run(recipe(calibration=Calibration(share=0.2)), folder)
    found = said_of(folder)["systems"]["popularity"]
    assert (found["users_calibrating"], found["users_measured"]) == (12, 48)
    assert (found["n_calibrating"], found["n_measured"]) == (48, 192)


def test_what_does_not_belong_together_is_refused(tmp_path):
    folder = made(tmp_path / "run")
    stated, users = distributions(VALID, 0)[0], [f"v{u}" for u in range(VALID)]
    for changes, message in [
        ({"said": "markov"}, "says it is of the system 'markov'"),
        ({"provenance": {"data": "f" * 64}}, "made from other data"),
        ({"provenance": {"rows": [1, 2]}}, "90 rows for 2 examples"),
        ({"provenance": {"rows": list(range(1, VALID + 1))}}, "names row 90 of 90"),
        ({"provenance": {"rows": list(range(VALID))[::-1]}}, "row 0 is of user 'v0'"),
    ]:
        write_lists(folder, "popularity", "valid", stated, users, None, **changes)
        with pytest.raises(DataError, match=message):
            calibrate.run(recipe(), folder)
    assert not folder.calibration.exists()


def test_what_is_missing_is_said(tmp_path):
    folder = made(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"Set evaluate\.calibration"):
        calibrate.run(recipe(calibration=None), folder)
    for system in ("popularity", "untuned"):
        folder.lists(system, "valid").unlink()
    with pytest.raises(DataError, match="run `llmrec recommend`"):
        calibrate.run(recipe(), folder)
    folder.examples("valid").unlink()
    with pytest.raises(DataError, match="run `llmrec prepare`"):
        calibrate.run(recipe(), folder)
    lonely = made(tmp_path / "lonely", ["u0"] * 5)
    with pytest.raises(DataError, match="two test users"):
        calibrate.run(recipe(), lonely)


def test_the_verb_does_both_and_the_report_says_whether_to_trust(tmp_path):
    folder = made(tmp_path / "run")
    folder.keep(recipe())
    asked = CliRunner().invoke(app, ["evaluate", str(folder.root), "--calibration", "--json"])
    assert asked.exit_code == 0, asked.output
    result = json.loads(asked.stdout)
    assert result["metrics"] == str(folder.metrics)
    assert result["calibration"]["calibration"] == str(folder.calibration)
    report.run(recipe(), folder)
    page = folder.report.read_text("utf-8")
    section = page[page.index("Can its confidence be trusted?") :]
    section = section[: section.index("</section>")]
    assert section.count("<svg") == 2
    for text in ("other users of", "untuned", "popularity", "long history", "Without lists"):
        assert text in section
    # Of other data: left out, with a word in the log.
    said = said_of(folder)
    write_json(folder.calibration, said | {"data": "f" * 64})
    with pytest.raises(DataError, match="damaged"):
        report.run(recipe(), folder)
    said.pop("seal")
    sealed.write_facts(folder.calibration, said | {"data": "f" * 64})
    report.run(recipe(), folder)
    assert "Can its confidence be trusted?" not in folder.report.read_text("utf-8")
    folder.calibration.write_text("{}", "utf-8")
    with pytest.raises(DataError, match="lacks data"):
        report.run(recipe(), folder)
    folder.calibration.write_text("[", "utf-8")
    with pytest.raises(DataError, match="not JSON"):
        report.run(recipe(), folder)


def test_without_the_flag_nothing_is_calibrated_and_a_recipe_without_it_is_told_first(tmp_path):
    folder = made(tmp_path / "run")
    folder.keep(recipe(calibration=None))
    asked = CliRunner().invoke(app, ["evaluate", str(folder.root), "--calibration"])
    assert isinstance(asked.exception, RecipeError)
    assert not folder.metrics.exists()
    assert CliRunner().invoke(app, ["evaluate", str(folder.root)]).exit_code == 0
    assert folder.metrics.exists()
    assert not folder.calibration.exists()
    report.run(recipe(calibration=None), folder)
    assert "Can its confidence be trusted?" not in folder.report.read_text("utf-8")


def test_needs_no_torch():
    code = "import sys, llmrec.stages.calibrate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
