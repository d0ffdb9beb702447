"""Candidates of a retriever through all stages: proposed, missed, reranked and evaluated."""

import json
import random

import numpy as np
import pytest

from llmrec.baselines.markov import Markov, transitions
from llmrec.data.candidates import read_candidates, read_log_q
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.errors import DataError
from llmrec.evaluation.predictions import Predictions
from llmrec.fetch import cache
from llmrec.inference.candidate_retriever import CandidateRetriever
from llmrec.methods.method import Job
from llmrec.methods.windows import as_examples
from llmrec.stages import evaluate, leakage, prepare, recommend, train

FROM = ("data.candidates.from=markov", "data.candidates.count=3", "systems=[tuned]")
TITLES = "The Man,Dark City,A Star,Last Summer,Last Dance,Love,Blue,Red,The World,Dead,Boy,Girl"
QUICK = ("rows.count=8", "train.num_train_epochs=1", "train.eval_steps=20")


@pytest.fixture(autouse=True)
def proposals(monkeypatch, tmp_path):
    """A cache of this test's own."""
    monkeypatch.setattr(cache, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "proposals"


@pytest.fixture
def small_log(tmp_path):
    """A CSV of 30 users who walk along 12 movies, and every third time anywhere."""
    rng, lines = random.Random(3), ["user_id,item_id,timestamp,title"]
    for user in range(30):
        walk = [rng.randrange(12)]
        while len(walk) < 5 + user % 3:
            left = [item for item in range(12) if item not in walk]
            step = (walk[-1] + 1) % 12
            walk.append(step if step in left and rng.random() < 0.66 else rng.choice(left))
        for step, item in enumerate(walk):
            lines.append(f"u{user},i{item},{1000 * user + step},{TITLES.split(',')[item]}")
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path / "log.csv"


def chosen_markov(folder):
    said = json.loads(folder.retriever.read_text("utf-8"))
    assert said["retriever"] == "markov"
    return Markov(**said["chosen"])


def best(p, closed, count):
    """The `count` most probable positions that are not closed, ties by position."""
    return sorted(set(range(len(p))) - set(closed), key=lambda item: (-p[item], item))[:count]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_candidates_are_the_best_of_a_retriever_that_knows_training_alone(recipe_of, split):
    recipe, folder = recipe_of(*FROM, "systems=[markov]")
    told = prepare.run(recipe, folder)
    examples = Examples.read(folder.examples(split))
    fitted = chosen_markov(folder).fit(Interactions.read(folder.interactions), 12)
    found = read_candidates(folder.candidates(split))
    log_q = read_log_q(folder.candidates(split))
    orders = set()
    for row, (example, candidates) in enumerate(zip(examples, found.tolist(), strict=True)):
        p = fitted.probabilities([example.history])[0]
        wanted = best(p, example.history.tolist(), 3)
        assert sorted(candidates) == sorted(wanted)
        np.testing.assert_allclose(log_q[row], np.log(p[candidates]), atol=1e-6)
        orders.add(tuple(wanted.index(item) for item in candidates))
    assert len(orders) > 3, "the order tells nothing"
    hits = [example.target in row for example, row in zip(examples, found.tolist(), strict=True)]
    assert told["retriever"]["recall@3"][split] == pytest.approx(np.mean(hits))


def test_nothing_of_the_test_period_reaches_a_training_candidate(recipe_of, tmp_path, small_log):
    """Other test items, and the same candidates for training and validation."""
    recipe, folder = recipe_of(*FROM, "systems=[markov]")
    prepare.run(recipe, folder)
    before = Job.of(recipe, folder)
    header, *lines = small_log.read_text("utf-8").splitlines()
    last = {line.split(",")[0]: number for number, line in enumerate(lines)}
    titles = {line.split(",")[1]: line.split(",")[3] for line in lines}
    for number in last.values():
        user, item, time, _ = lines[number].split(",")
        other = f"i{(int(item[1:]) + 5) % 12}"
        lines[number] = f"{user},{other},{time},{titles[other]}"
    path = tmp_path / "other.csv"
    path.write_text("\n".join([header, *lines]) + "\n", "utf-8")
    recipe, other = recipe_of(*FROM, "systems=[markov]", f"data.source={path}", "name=other")
    prepare.run(recipe, other)
    after = Job.of(recipe, other)
    tests = [Examples.read(f.examples("test")).targets for f in (folder, other)]
    assert (tests[0] != tests[1]).any()
    assert [w.row for w in before.windows] == [w.row for w in after.windows]
    assert before.prompting.candidates.tolist() == after.prompting.candidates.tolist()
    assert len(before.windows) > 10
    for file in ("candidates-valid.parquet", "retriever.json"):
        assert (folder.data / file).read_bytes() == (other.data / file).read_bytes()


@pytest.mark.parametrize("keep", [False, True])
def test_training_candidates_are_those_of_a_log_that_ends_before_the_target(recipe_of, keep):
    recipe, folder = recipe_of(
        *FROM, "rows.every=item", f"data.candidates.keep_missed={keep}".lower()
    )
    prepare.run(recipe, folder)
    job, log = Job.of(recipe, folder), Interactions.read(folder.interactions)
    everything, _ = recipe_of("rows.every=item", "systems=[tuned]")
    windows = Job.of(everything, folder).windows
    model = chosen_markov(folder)
    popularity = model.fit(log, 12).popularity
    kept = {(w.row): row for w, row in zip(job.windows, job.prompting.candidates, strict=True)}
    log_q = {w.row: row for w, row in zip(job.windows, job.proposed.log_q, strict=True)}
    missed = 0
    for window, example in zip(windows, as_examples(windows, log), strict=True):
        rows = np.arange(len(log))
        mine = log.user == log.user[window.row]
        shorter = log.take(rows[~mine | (rows < window.row)])
        counts = transitions(shorter, 12, model.reach, model.reach_decay)
        p = model.from_counts(counts, popularity).probabilities([example.history])[0]
        proposed = best(p, example.history.tolist(), 3)
        if window.target not in proposed:
            missed += 1
            proposed = [*proposed[:2], window.target]
            if not keep:
                assert window.row not in kept
                continue
        assert sorted(kept[window.row].tolist()) == sorted(proposed)
        np.testing.assert_allclose(log_q[window.row], np.log(p[kept[window.row]]), atol=1e-9)
    assert missed > 3


def test_a_retriever_that_has_seen_the_target_gives_its_place_away_to_chance(recipe_of):
    recipe, folder = recipe_of(*FROM, "data.candidates.from=popularity", "rows.every=item")
    prepare.run(recipe, folder)
    job, log = Job.of(recipe, folder), Interactions.read(folder.interactions)
    counts = np.bincount(log.position, minlength=12).astype(float)
    left_out = []
    whole = as_examples(job.windows, log)
    for example, row in zip(whole, job.prompting.candidates.tolist(), strict=True):
        assert example.target in row
        first = best(counts, example.history.tolist(), 3)
        if example.target not in first:
            [missing] = set(first) - set(row)
            left_out.append(first.index(missing))
    assert {*left_out} == {0, 1, 2}


@pytest.mark.parametrize("name", ["popularity", "sasrec"])
def test_folds_propose_by_what_others_chose(recipe_of, name):
    recipe, folder = recipe_of(
        *FROM,
        f"data.candidates.from={name}",
        "data.candidates.folds=3",
        "data.candidates.keep_missed=true",
        "baselines.trials=1",
        "rows.every=item",
    )
    prepare.run(recipe, folder)
    job, log = Job.of(recipe, folder), Interactions.read(folder.interactions)
    folds = CandidateRetriever.folds_of(recipe, folder)
    assert np.sum([fold.users for fold in folds], axis=0).tolist() == [1] * len(log.user_ids)
    assert np.isfinite(job.proposed.log_q).all()
    if name == "sasrec":
        return
    smoothing = json.loads(folder.retriever.read_text("utf-8"))["chosen"]["smoothing"]
    whole = as_examples(job.windows, log)
    rows = zip(job.windows, whole, job.proposed.candidates, job.proposed.log_q, strict=True)
    for window, example, row, log_q in rows:
        [fold] = [fold for fold in folds if fold.users[log.user[window.row]]]
        counts = np.bincount(log.position[~fold.users[log.user]], minlength=12) + smoothing
        counts[example.history] = 0
        proposed = best(counts, example.history.tolist(), 3)
        if example.target not in proposed:
            proposed = [*proposed[:2], example.target]
        assert sorted(row.tolist()) == sorted(proposed)
        np.testing.assert_allclose(log_q, np.log(counts[row] / counts.sum()))


def test_equal_prompts_with_different_targets_have_rows_of_their_own(recipe_of):
    recipe, folder = recipe_of(
        *FROM, "rows.every=item", "prompt.max_history=1", "data.candidates.keep_missed=true"
    )
    prepare.run(recipe, folder)
    job = Job.of(recipe, folder)
    by_prompt = {}
    for window, prompt, row in zip(
        job.windows, job.prompting.ids(), job.prompting.candidates.tolist(), strict=True
    ):
        assert window.target in row
        by_prompt.setdefault(tuple(prompt.tolist()), set()).add(window.target)
    assert max(map(len, by_prompt.values())) > 1


def test_what_is_proposed_is_found_once_for_all_runs_of_the_same_data(
    recipe_of, proposals, monkeypatch
):
    asked, real = [], CandidateRetriever.for_training
    monkeypatch.setattr(
        CandidateRetriever, "for_training", lambda *given: asked.append(1) or real(*given)
    )
    found = []
    for name, more in (("a", ()), ("b", ("data.candidates.keep_missed=true",)), ("c", ("seed=1",))):
        recipe, folder = recipe_of(*FROM, f"name={name}", "rows.every=item", *more)
        prepare.run(recipe, folder)
        job = Job.of(recipe, folder)
        pairs = zip(job.windows, job.proposed.candidates, strict=True)
        found.append({window.row: sorted(proposed) for window, proposed in pairs})
    assert len(asked) == len(list(proposals.glob("candidates-*.npy"))) == 2
    assert len(found[0]) < len(found[1])
    assert found[0].items() <= found[1].items()


def test_a_missed_target_is_a_miss_and_recall_is_told_as_the_ceiling(recipe_of):
    recipe, folder = recipe_of(
        *FROM, *QUICK, "systems=[markov, popularity, untuned, tuned]", "evaluate.k=[1,3]"
    )
    train.run(recipe, folder)
    recommend.run(recipe, folder)
    result = evaluate.run(recipe, folder)
    test = Examples.read(folder.examples("test"))
    candidates = read_candidates(folder.candidates("test")).tolist()
    held = np.array([e.target in row for e, row in zip(test, candidates, strict=True)])
    assert 0 < held.sum() < len(held)
    alone = chosen_markov(folder).fit(Interactions.read(folder.interactions), 12)
    for system in recipe.systems:
        answers = Predictions.read(folder.predictions(system))
        for i, example in enumerate(test):
            ranking = answers.ranking(i).tolist()
            assert sorted(ranking) == sorted(candidates[i])
            if system == "markov":
                p = alone.probabilities([example.history])[0]
                assert ranking == best(p, example.history.tolist(), 3)
        assert np.isfinite(answers.nll).tolist() == held.tolist()
    cells = json.loads(folder.metrics.read_text("utf-8"))["table"]["systems"]
    for system in recipe.systems:
        assert cells[system]["HR@3"]["all"]["mean"] == pytest.approx(held.mean())
        assert cells[system]["HR@1"]["all"]["mean"] <= held.mean()
        assert cells[system]["NLL"]["all"]["n"] == held.sum()
    assert f"whose recall {held.mean():.3f} [" in result["table"]
    assert leakage.run(recipe, folder)["violations"] == 0


def test_more_candidates_than_items_are_refused(recipe_of):
    with pytest.raises(DataError, match=r"items left that markov can propose.*candidates.count"):
        prepare.run(*recipe_of(*FROM, "data.candidates.count=11"))
    recipe, folder = recipe_of("data.candidates=3", "systems=[tuned]")
    prepare.run(recipe, folder)
    with pytest.raises(DataError, match="no retriever"):
        read_log_q(folder.candidates("test"))
    assert len(Catalog.read(folder.items)) == 12
