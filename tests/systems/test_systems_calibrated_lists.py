"""Lists to calibrate with: for whom they are written, how long they are, and of which rows."""

import numpy as np
import pytest

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.evaluation.predictions import Predictions
from llmrec.recipe.systems import System
from llmrec.runs.folder import RunFolder
from llmrec.stages import pipeline, recommend
from llmrec.systems import calibrated_lists as lists
from llmrec.systems.baselines import scorer_of
from llmrec.systems.calibrated_lists import valid_rows, write_lists
from llmrec.systems.resources import Resources

SIZES = ("network.hidden=8", "network.layers=1", "network.max_epochs=1")
ASKED = "evaluate.calibration.listed=1000"


def read(folder, system, split):
    return Predictions.read(folder.lists(system, split))


def scores_of(found, i):
    return found.scores[found.offsets[i] : found.offsets[i + 1]].astype(float)


def test_lists_of_every_system_that_gives_probabilities(recipe_of):
    recipe, folder = recipe_of("systems=[popularity, markov, tgh, network]", *SIZES, ASKED)
    pipeline.train(recipe, folder)
    said = recommend.run(recipe, folder)
    listed = ["popularity", "markov", "network"]
    assert said["written"] == [*recipe.systems, *(f"lists of {name}" for name in listed)]
    assert {p.name for p in folder.lists("x", "test").parent.glob("*.parquet")} == {
        f"{name}-{split}.parquet" for name in listed for split in ("valid", "test")
    }
    items = len(Catalog.read(folder.items))
    for system in listed:
        scorer, _ = scorer_of(Resources(recipe, folder), System.parse(system))
        for split in ("valid", "test"):
            found, asked = read(folder, system, split), Examples.read(folder.examples(split))
            assert found.info.system == system
            assert found.info.distribution
            assert found.user_ids.tolist() == asked.user_ids.tolist()
            p = scorer.probabilities(asked.histories())
            for i, example in enumerate(asked):
                unseen = set(range(items)) - set(example.history.tolist())
                assert sorted(found.ranking(i).tolist()) == sorted(unseen)
                scores = scores_of(found, i)
                assert np.exp(scores).sum() == pytest.approx(1, abs=1e-5)
                assert (np.diff(scores) <= 0).all()
                np.testing.assert_allclose(np.exp(scores), p[i, found.ranking(i)], rtol=1e-4)
            provenance = found.info.provenance
            assert provenance["settings"]["listed"] == items
            assert provenance["data"] == folder.provenance(recipe)["data"]
            rows = list(range(len(asked))) if split == "valid" else None
            assert provenance.get("rows") == rows
    # What was recommended is as long as ever.
    for ranking in Predictions.read(folder.predictions("network")).rankings():
        assert len(ranking) <= recipe.decode.top_k


def test_standing_lists_are_not_written_again(recipe_of):
    recipe, folder = recipe_of("systems=[popularity, markov]", ASKED)
    recommend.run(recipe, folder)
    before = {
        p: (p.stat().st_mtime_ns, p.read_bytes())
        for p in folder.lists("x", "test").parent.glob("*.parquet")
    }
    said = recommend.run(recipe, folder)
    assert (said["written"], said["standing"]) == ([], ["popularity", "markov"])
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before

    folder.lists("markov", "valid").unlink()
    assert recommend.run(recipe, folder)["written"] == ["lists of markov"]
    untouched = [p for p in before if p.name != "markov-valid.parquet"]
    assert {p: p.stat().st_mtime_ns for p in untouched} == {p: before[p][0] for p in untouched}


def test_another_length_is_written_anew_and_is_kept_to(recipe_of):
    recipe, folder = recipe_of("systems=[popularity]", ASKED)
    recommend.run(recipe, folder)
    whole = read(folder, "popularity", "test")
    shorter, _ = recipe_of("systems=[popularity]", "evaluate.calibration.listed=3")
    assert recommend.run(shorter, folder)["written"] == ["lists of popularity"]
    cut = read(folder, "popularity", "test")
    assert cut.info.provenance["settings"]["listed"] == 3
    for long, short in zip(whole.rankings(), cut.rankings(), strict=True):
        assert short.tolist() == long[:3].tolist()
    assert np.exp(scores_of(cut, 0)).sum() < 0.99
    np.testing.assert_array_equal(cut.nll, whole.nll)


def test_a_recipe_without_calibration_writes_none(recipe_of):
    recipe, folder = recipe_of("systems=[popularity]")
    recommend.run(recipe, folder)
    assert not folder.lists("popularity", "test").parent.exists()


@pytest.mark.parametrize("system", ["tgh", "untuned_grounded", "tuned_free"])
def test_no_lists_of_a_system_without_probabilities(recipe_of, tmp_path, system):
    recipe, _ = recipe_of("systems=[popularity]", ASKED)
    assert not write_lists(Resources(recipe, RunFolder(tmp_path)), System.parse(system))


def test_many_validation_examples_are_sampled_by_seed(recipe_of, monkeypatch):
    monkeypatch.setattr(lists, "MAX_EXAMPLES", 5)
    recipe, folder = recipe_of("systems=[popularity]", ASKED)
    recommend.run(recipe, folder)
    found, valid = read(folder, "popularity", "valid"), Examples.read(folder.examples("valid"))
    rows = found.info.provenance["rows"]
    assert len(rows) == len(set(rows)) == 5 < len(valid)
    assert rows == sorted(rows)
    assert rows == valid_rows(Resources(recipe, folder)).tolist()
    assert found.user_ids.tolist() == [valid.user_ids[row] for row in rows]
    for i, row in enumerate(rows):
        assert not set(found.ranking(i).tolist()) & set(valid.history(row).tolist())
    assert len(read(folder, "popularity", "test")) == len(Examples.read(folder.examples("test")))
    others = {
        tuple(valid_rows(Resources(recipe.model_copy(update={"seed": s}), folder)))
        for s in range(6)
    }
    assert len(others) > 3


def test_lists_of_a_language_model_are_its_rankings(recipe_of):
    recipe, folder = recipe_of("systems=[untuned]", ASKED)
    assert recommend.run(recipe, folder)["written"] == ["untuned", "lists of untuned"]
    answers = Predictions.read(folder.predictions("untuned"))
    test, valid = (read(folder, "untuned", split) for split in ("test", "valid"))
    assert test.items.tolist() == answers.items.tolist()
    assert test.scores.tolist() == answers.scores.tolist()
    asked = Examples.read(folder.examples("valid"))
    assert valid.user_ids.tolist() == asked.user_ids.tolist()
    for example, ranking in zip(asked, valid.rankings(), strict=True):
        assert 0 < len(ranking) <= recipe.decode.top_k
        assert not set(ranking.tolist()) & set(example.history.tolist())
    assert "rows" not in valid.info.provenance
    assert valid.info.provenance["settings"]["listed"] == recipe.decode.top_k
    assert recommend.run(recipe, folder)["written"] == []
