"""Raw histories answered by a run's networks, and by sets that are to hold the next item."""

import json
import random
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from llmrec import Recommender
from llmrec.cli import app
from llmrec.data import sealed
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import LlmrecError, RecipeError
from llmrec.evaluation import calibration, conformal
from llmrec.evaluation.predictions import Predictions
from llmrec.recipe.loading import load
from llmrec.recipe.systems import System
from llmrec.runs.folder import RunFolder
from llmrec.stages import calibrate, pipeline, recommend

ALPHA = 0.3
RECIPE = """name: small
output_dir: {place}
data: {{source: {place}/log.csv}}
network: {{hidden: 8, layers: 1, heads: 1, max_length: 6, max_epochs: 1}}
conformal: {{max_epochs: 1}}
decode: {{beams: 5, top_k: 5}}
evaluate: {{k: [1, 5], samples: 100, calibration: {{alpha: [{alpha}]}}}}
systems: [popularity, network, network_ce, network_cpft]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a calibrated run: 60 users who walk along 15 movies and jump at times."""
    place = tmp_path_factory.mktemp("coverage")
    rng, lines = random.Random(0), ["user_id,item_id,timestamp,title"]
    for user in range(60):
        at, chosen = rng.randrange(15), []
        while len(chosen) < 5 + user % 5:
            at = (at + (1 if rng.random() < 0.8 else rng.randrange(15))) % 15
            if at not in chosen:
                lines.append(f"u{user},i{at},{1000 * user + len(chosen)},Film {at}")
                chosen.append(at)
    (place / "log.csv").write_text("\n".join(lines) + "\n", "utf-8")
    (place / "small.yaml").write_text(RECIPE.format(place=place, alpha=ALPHA), "utf-8")
    recipe = load(place / "small.yaml", [])
    folder = RunFolder.of(recipe)
    pipeline.train(recipe, folder)
    recommend.run(recipe, folder)
    calibrate.run(recipe, folder)
    folder.keep(recipe)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run, to spoil."""
    return RunFolder(shutil.copytree(finished.root, tmp_path / "copy"))


def asked(folder):
    """The test users, and their histories as item ids."""
    test, ids = Examples.read(folder.examples("test")), Catalog.read(folder.items).item_ids
    return test.user_ids.tolist(), [[ids[p] for p in history] for history in test.histories()]


def found(table):
    """What a table gives each user."""
    sets = {}
    for row in table.to_pylist():
        sets.setdefault(row["user"], []).append(row["item_id"])
        assert row["rank"] == len(sets[row["user"]])
    return sets


def expected(folder, system, alpha):
    """The sets of the test users, from the lists and scores that calibration left; their lists."""
    lists, test = Predictions.read(folder.lists(system, "test")), folder.examples("test")
    scores = np.split(lists.scores, lists.offsets[1:-1])
    whole = calibration.listed(lists.rankings(), scores, Examples.read(test).targets)
    said = json.loads(folder.calibration.read_text("utf-8"))["systems"][system]
    scaled = calibration.temperature_scaled(whole, said["temperature"])
    kept = [
        row["score"]
        for row in pq.read_table(folder.set_scores).to_pylist()
        if (row["system"], row["method"]) == (system, "lac")
    ]
    limit, ids = conformal.threshold(np.array(kept), alpha), Catalog.read(folder.items).item_ids
    assert np.isfinite(limit)
    return {
        user: [ids[p] for p, given in zip(ranking, row, strict=False) if 1 - given <= limit]
        for user, ranking, row in zip(
            lists.user_ids, lists.rankings(), scaled.probabilities, strict=True
        )
    }


@pytest.mark.parametrize("system", ["network", "network_ce", "network_cpft"])
def test_a_network_answers_raw_histories_as_it_answered_the_test_split(finished, system):
    users, histories = asked(finished)
    table = Recommender.from_pretrained(finished.root, system).recommend(histories, 5, users)
    assert table.column_names == ["user", "rank", "item_id", "title", "score"]
    written, ids = Predictions.read(finished.predictions(system)), Catalog.read(finished.items)
    assert found(table) == {
        user: [ids.item_ids[p] for p in ranking]
        for user, ranking in zip(users, written.rankings(), strict=True)
    }
    assert table["score"].to_pylist() == written.scores.tolist()


def test_the_network_trained_furthest_answers_unless_another_is_named(finished):
    assert Recommender.from_pretrained(finished.root).system == System.parse("network_cpft")
    recommender = Recommender.from_pretrained(finished.root)
    named = Recommender.from_pretrained(finished.root, "network_cpft")
    assert recommender.recommend([["i1"]]) == named.recommend([["i1"]])
    with pytest.raises(LlmrecError, match=r"there are .*, network, network_ce, network_cpft$"):
        Recommender.from_pretrained(finished.root, "tuned")


@pytest.mark.parametrize("system", ["network", "network_cpft"])
def test_sets_are_those_that_were_calibrated(finished, system):
    users, histories = asked(finished)
    recommender = Recommender.from_pretrained(finished.root, system)
    table = recommender.recommend(histories, 1, users, coverage=1 - ALPHA)
    assert table.column_names[-1] == "guaranteed"
    assert set(table["guaranteed"].to_pylist()) == {True}
    sets, written = found(table), expected(finished, system, ALPHA)
    assert sets == {user: items for user, items in written.items() if items}
    assert max(map(len, sets.values())) > 1
    # The users that measured were covered as the calibration says.
    test, ids = Examples.read(finished.examples("test")), Catalog.read(finished.items).item_ids
    names = np.unique(test.user_ids)
    calibrating = set(names[np.random.default_rng(0).permutation(len(names))[: len(names) // 2]])
    measured = [i for i, user in enumerate(users) if user not in calibrating]
    said = json.loads(finished.calibration.read_text("utf-8"))["systems"][system]["coverages"]
    [told] = [c for c in said if (c["method"], c["group"]) == ("lac", "all")]
    held = [ids[test.targets[i]] in sets.get(users[i], []) for i in measured]
    assert told["coverage"]["mean"] == pytest.approx(np.mean(held))
    sizes = [len(sets.get(users[i], [])) for i in measured]
    assert told["size"]["mean"] == pytest.approx(np.mean(sizes))
    # Who asks alone gets the same.
    for i in measured[:5]:
        alone = recommender.recommend([histories[i]], 1, [users[i]], coverage=1 - ALPHA)
        assert found(alone).get(users[i], []) == sets.get(users[i], [])


def test_who_has_no_item_likely_enough_has_no_rows(finished):
    users, histories = asked(finished)
    written = expected(finished, "network", 0.95)
    empty = {user for user, items in written.items() if not items}
    assert empty
    table = Recommender.from_pretrained(finished.root, "network").recommend(
        histories, users=users, coverage=0.05
    )
    assert set(table["user"].to_pylist()) == set(users) - empty
    nobody = Recommender.from_pretrained(finished.root).recommend([], coverage=0.7)
    assert nobody.num_rows == 0
    assert nobody.column_names[-1] == "guaranteed"


def test_without_enough_users_nothing_is_promised(finished, caplog):
    users, histories = asked(finished)
    recommender = Recommender.from_pretrained(finished.root)
    table = recommender.recommend(histories, 4, users, coverage=0.99)
    assert set(table["guaranteed"].to_pylist()) == {False}
    assert table.drop_columns("guaranteed") == recommender.recommend(histories, 4, users)
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "too few examples to calibrate: 30, and it needs 99" in warning


def test_lists_too_short_for_the_targets_promise_nothing(copied, caplog):
    recipe = load(copied.recipe, ["evaluate.calibration.listed=2"])
    recommend.run(recipe, copied)
    calibrate.run(recipe, copied)
    copied.keep(recipe)
    users, histories = asked(copied)
    recommender = Recommender.from_pretrained(copied.root, "network")
    caplog.clear()
    table = recommender.recommend(histories, 10, users, coverage=0.95)
    assert set(table["guaranteed"].to_pylist()) == {False}
    assert set(map(len, found(table).values())) == {2}
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    rows = pq.read_table(copied.set_scores).to_pylist()
    outside = sum(
        row["score"] == np.inf
        for row in rows
        if (row["system"], row["method"]) == ("network", "lac")
    )
    assert f"too many targets outside the lists: {outside} of 30" in warning


def test_what_was_not_calibrated_is_refused(copied):
    recommender, how = Recommender.from_pretrained(copied.root), "llmrec evaluate --calibration"
    for coverage in (0, 1, 90, float("nan")):
        with pytest.raises(LlmrecError, match="above 0 and below 1"):
            recommender.recommend([["i1"]], coverage=coverage)
    said = sealed.read_facts(copied.calibration, "")
    for changes, what in [
        ({"data": "f" * 64}, "of other data"),
        ({"systems": {"popularity": said["systems"]["popularity"]}}, "'network_cpft', only of"),
    ]:
        sealed.write_facts(copied.calibration, {**said, **changes})
        with pytest.raises(LlmrecError, match=f"{what}.*{how}"):
            recommender.recommend([["i1"]], coverage=0.7)
    copied.calibration.unlink()
    with pytest.raises(LlmrecError, match=f"not there.*{how}"):
        recommender.recommend([["i1"]], coverage=0.7)


def test_the_command_passes_coverage_on(finished, tmp_path):
    users, histories = asked(finished)
    lines = [json.dumps({"user": u, "history": h}) for u, h in zip(users, histories, strict=True)]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines), "utf-8")
    command = ["recommend", str(finished.root), "--coverage", "0.7"]
    done = CliRunner().invoke(app, [*command, "--histories", str(tmp_path / "asked.jsonl")])
    assert done.exit_code == 0, done.output
    table = Recommender.from_pretrained(finished.root).recommend(
        histories, users=users, coverage=0.7
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    # In other batches, so to a rounding of float32.
    wanted = table.column("score").to_pylist()
    assert [row.pop("score") for row in rows] == pytest.approx(wanted, abs=1e-5)
    assert rows == table.drop_columns(["score"]).to_pylist()
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, RecipeError)


def test_a_language_model_gives_the_sets_it_was_calibrated_with(recipe_of):
    recipe, folder = recipe_of(
        "systems=[untuned]",
        "evaluate.calibration.alpha=[0.3]",
        "decode.beams=12",
        "decode.top_k=12",
    )
    recommend.run(recipe, folder)
    calibrate.run(recipe, folder)
    folder.keep(recipe)
    users, histories = asked(folder)
    recommender = Recommender.from_pretrained(folder.root, "untuned")
    table = recommender.recommend(histories, 1, users, coverage=0.7)
    written = expected(folder, "untuned", 0.3)
    assert found(table) == {user: items for user, items in written.items() if items}
    with pytest.raises(LlmrecError, match=r"run `llmrec train` first; there are .*, untuned"):
        Recommender.from_pretrained(folder.root, "tuned")
    folder.keep(load(folder.recipe, ["decode.renormalise=false"]))
    changed = Recommender.from_pretrained(folder.root, "untuned")
    with pytest.raises(
        LlmrecError, match=r"differs: decode.renormalise\).*llmrec evaluate --calibration"
    ):
        changed.recommend(histories, 1, users, coverage=0.7)
    with pytest.raises(LlmrecError, match=r"has no network; there are .*, untuned, untuned_guided"):
        Recommender.from_pretrained(folder.root, "network")
