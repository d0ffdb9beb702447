"""Candidates through all stages: drawn once, shown, ranked, written freely, and evaluated."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from llmrec.data.candidates import read_candidates, write_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.errors import DataError, LlmrecError
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.inference.grounded import TextGrounding
from llmrec.inference.prompting import prompting_of
from llmrec.methods.validation import validation_of
from llmrec.model.kept_weights import read_log
from llmrec.model.loading import load_model
from llmrec.model.trainer import TreeTrainer
from llmrec.stages import evaluate, prepare, recommend, train
from llmrec.systems.free import named_candidate
from llmrec.text.encoding import Context

AMONG = ("data.candidates=4", "prompt.task=similar_users")
QUICK = ("rows.count=8", "train.num_train_epochs=1", "train.eval_steps=20")
TITLES = ["Blue", "Red!", "Love: the End", "Red", "Amélie", "8½"]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_prepare_draws_the_target_and_unseen_items_and_a_subset_keeps_them(recipe_of, split):
    whole, folder = recipe_of(*AMONG, "systems=[popularity]")
    prepare.run(whole, folder)
    part, other = recipe_of(*AMONG, "systems=[popularity]", "name=part", f"data.subset.{split}=7")
    prepare.run(part, other)
    known = {}
    examples, drawn = (
        Examples.read(folder.examples(split)),
        read_candidates(folder.candidates(split)),
    )
    assert drawn.shape == (len(examples), 4)
    places = Counter()
    for example, row in zip(examples, drawn.tolist(), strict=True):
        assert len(set(row)) == 4
        assert row.count(example.target) == 1
        assert not set(row) & set(example.history.tolist()) - {example.target}
        places[row.index(example.target)] += 1
        known[example.user_id] = row
    assert len(places) == 4, "the place in the list tells nothing"
    fewer = Examples.read(other.examples(split))
    again = read_candidates(other.candidates(split))
    assert len(fewer) == 7
    assert [known[user] for user in fewer.user_ids] == again.tolist()
    assert not folder.candidates("train").exists()


def test_without_candidates_none_are_written_and_with_others_the_data_is_made_again(recipe_of):
    recipe, folder = recipe_of("systems=[popularity]")
    prepare.run(recipe, folder)
    assert not list(folder.data.glob("candidates*"))
    more, _ = recipe_of("systems=[popularity]", "data.candidates=3")
    assert not prepare.run(more, folder)["skipped"]
    assert read_candidates(folder.candidates("test")).shape[1] == 3
    with pytest.raises(DataError, match="unseen items"):
        prepare.run(*recipe_of("systems=[popularity]", "data.candidates=9"))


@pytest.fixture
def spoken(monkeypatch):
    """The model says, by the sum of its candidates: one that its prompt shows to the letter, one in
    capitals, a title that is no candidate, or something else."""

    def saying(self, engine, prompts):
        said = []
        for ids in prompts:
            lines = self.encoder.tokenizer.decode(ids.tolist()).split("\n")
            begin = next(i for i, line in enumerate(lines) if "one of these" in line) + 1
            shown = lines[begin : lines.index("", begin)]
            others = [title for title in self.encoder.titles if title not in shown]
            kind = sum(self.encoder.position_of[title] for title in shown) % 4
            said.append([shown[0], f" {shown[-1].upper()}!", others[0], "nonsense"][kind])
        return said

    monkeypatch.setattr(TextGrounding, "written", saying)


def test_every_system_answers_with_the_candidates_and_the_table_counts_them(recipe_of, spoken):
    systems = ["popularity", "tgh", "untuned", "tuned", "untuned_free", "tuned_free"]
    recipe, folder = recipe_of(*AMONG, *QUICK, f"systems=[{', '.join(systems)}]")
    train.run(recipe, folder)
    recommend.run(recipe, folder)
    test = Examples.read(folder.examples("test"))
    candidates = read_candidates(folder.candidates("test")).tolist()
    answers = {system: Predictions.read(folder.predictions(system)) for system in systems}

    for system in ("popularity", "tgh", "untuned", "tuned"):
        for i in range(len(test)):
            assert sorted(answers[system].ranking(i).tolist()) == sorted(candidates[i])
    assert answers["untuned"].items.tolist() != answers["tuned"].items.tolist()

    counts = Counter(Interactions.read(folder.interactions).position.tolist())
    smoothing = answers["popularity"].info.hyperparameters["chosen"]["smoothing"]
    for i, example in enumerate(test):
        shares = {c: counts[c] + smoothing for c in candidates[i]}
        nll = -math.log(shares[example.target] / sum(shares.values()))
        assert answers["popularity"].nll[i] == pytest.approx(nll)
    assert np.isnan(answers["tgh"].nll).all()
    for system in ("untuned", "tuned"):
        for i, example in enumerate(test):
            said = answers[system]
            scores = said.scores[said.offsets[i] : said.offsets[i + 1]].astype(float)
            assert np.exp(scores).sum() == pytest.approx(1, abs=1e-5)
            place = said.ranking(i).tolist().index(example.target)
            assert said.nll[i] == pytest.approx(-scores[place], abs=1e-5)

    kinds = Counter()
    for i in range(len(test)):
        kind = sum(candidates[i]) % 4
        expected = [candidates[i][:1], candidates[i][-1:], [], []][kind]
        for system in ("untuned_free", "tuned_free"):
            assert answers[system].ranking(i).tolist() == expected
        kinds[kind] += 1
    assert len(kinds) == 4, f"every kind of answer is given: {kinds}"
    valid = (kinds[0] + kinds[1]) / len(test)
    for system in ("untuned_free", "tuned_free"):
        assert answers[system].info.hyperparameters["valid_answers"] == pytest.approx(valid)
        assert not answers[system].info.distribution
        assert np.isnan(answers[system].nll).all()

    evaluate.run(recipe, folder)
    table = json.loads(folder.metrics.read_text("utf-8"))["table"]
    assert table["uniform_nll"] == pytest.approx(math.log(4))
    assert any("among 4 candidates" in note for note in table["notes"])
    for system, said in answers.items():
        hits, answered = 0, 0
        for i, example in enumerate(test):
            ranking = said.ranking(i).tolist()
            answered += bool(ranking)
            hits += bool(ranking) and ranking[0] == example.target
        cells = table["systems"][system]
        assert cells["HR@1"]["all"]["mean"] == pytest.approx(hits / len(test))
        assert cells["HR@1"]["all"]["n"] == len(test)
        assert cells["valid answers"]["all"]["mean"] == pytest.approx(answered / len(test))
        of_valid = cells["HR@1 of valid answers"]["all"]
        assert of_valid["mean"] == pytest.approx(hits / answered)
        assert of_valid["n"] == answered


def test_a_model_that_names_no_candidate_at_all_hits_nobody(recipe_of, monkeypatch):
    monkeypatch.setattr(TextGrounding, "written", lambda _, engine, prompts: ["?"] * len(prompts))
    recipe, folder = recipe_of(*AMONG, "systems=[popularity, untuned_free]")
    recommend.run(recipe, folder)
    evaluate.run(recipe, folder)
    cells = json.loads(folder.metrics.read_text("utf-8"))["table"]["systems"]["untuned_free"]
    assert cells["HR@1"]["all"]["mean"] == 0
    assert cells["valid answers"]["all"]["mean"] == 0
    assert cells["HR@1 of valid answers"]["all"]["n"] == 0


@pytest.mark.parametrize(
    ("text", "candidates", "named"),
    [
        ("Blue", [0, 2], [0]),
        (" blue. ", [0, 2], [0]),
        ("love the end", [2, 0], [2]),
        ("Amelie", [4, 5], [4]),
        ("Blue", [1, 2], []),
        ("Blue Love: the End", [0, 2], []),
        ("Blu", [0, 2], []),
        ("", [0, 2], []),
        ("Red", [1, 0], [1]),
        ("RED", [1, 3], []),
    ],
)
def test_an_answer_names_one_candidate_or_none(text, candidates, named):
    found = named_candidate(text, np.array(candidates, np.int32), TITLES)
    assert found.tolist() == named
    assert found.dtype == np.int32


@pytest.mark.parametrize("task", ["similar_users", "next_item"])
def test_validation_is_among_the_candidates(recipe_of, task):
    recipe, folder = recipe_of(
        "data.candidates=4",
        f"prompt.task={task}",
        "data.subset.valid=6",
        "decode.renormalise=false",
        "validation.k=2",
        "validation.metric=hr",
        "systems=[tuned]",
    )
    prepare.run(recipe, folder)
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    model = load_model(base_of(recipe), "cpu")
    valid = Examples.read(folder.examples("valid"))
    candidates = read_candidates(folder.candidates("valid")).tolist()
    nll, hits = [], []
    for example, row in zip(valid, candidates, strict=True):
        shown = Context((), tuple(row)) if task == "similar_users" else Context()
        prompt = encoder.prompt(example.history, shown).ids.tolist()
        scores = {}
        for candidate in row:
            completion = encoder.completions[candidate].tolist()
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0].double()
            scores[candidate] = sum(
                float(logits[len(prompt) + place - 1].log_softmax(-1)[token])
                for place, token in enumerate(completion)
            )
        total = sum(math.exp(score - max(scores.values())) for score in scores.values())
        nll.append(math.log(total) + max(scores.values()) - scores[example.target])
        hits.append(example.target in sorted(scores, key=scores.get)[-2:])
    measured = validation_of(recipe, folder, encoder)(model)
    assert measured.figures["valid_nll"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert measured.figures["valid_hr@2"] == pytest.approx(np.mean(hits))
    by_nll = recipe.model_copy(
        update={"validation": recipe.validation.model_copy(update={"metric": "nll"})}
    )
    assert validation_of(by_nll, folder, encoder)(model).score == measured.score[1:]


def test_what_the_retriever_missed_counts_as_a_miss_in_validation(recipe_of):
    proposed = ("data.candidates.from=popularity", "data.candidates.count=3")
    recipe, folder = recipe_of(*proposed, "validation={metric: hr, k: 3}", "systems=[tuned]")
    prepare.run(recipe, folder)
    model = load_model(base_of(recipe), "cpu")
    valid = Examples.read(folder.examples("valid"))
    held = (read_candidates(folder.candidates("valid")) == valid.targets[:, None]).any(axis=1)
    assert 0 < held.sum() < len(valid)
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    measured = validation_of(recipe, folder, encoder)(model)
    assert measured.figures["valid_hr@3"] == pytest.approx(held.mean())


def test_training_shows_candidates_that_its_user_had_not_chosen_by_then(recipe_of, monkeypatch):
    recipe, folder = recipe_of(*AMONG, *QUICK, "rows.count=null", "systems=[tuned]")
    made = []
    monkeypatch.setattr(TreeTrainer, "go", lambda self, _: made.extend(self.train_dataset.rows))
    with pytest.raises(LlmrecError, match="no weights"):
        train.run(recipe, folder)
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    for row in made:
        lines = encoder.tokenizer.decode(row.segments[0].ids.tolist()).split("\n")
        begin = lines.index("The movie they watch next is one of these:") + 1
        shown = lines[begin : lines.index("", begin)]
        seen = lines[lines.index("Someone watched these movies, oldest first:") + 1 : begin - 1]
        assert len(set(shown)) == 4
        assert encoder.titles[row.segments[1].target] in shown
        assert not set(shown) & set(seen)
    assert len(made) > 20
    assert read_log(folder.train_log) == []


def test_candidates_of_other_examples_are_refused(recipe_of):
    recipe, folder = recipe_of(*AMONG, "systems=[tuned]")
    prepare.run(recipe, folder)
    drawn = read_candidates(folder.candidates("test"))
    write_candidates(folder.candidates("test"), drawn[:-1])
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    test = Examples.read(folder.examples("test"))
    with pytest.raises(DataError, match="llmrec prepare"):
        prompting_of(recipe, folder, encoder, "test", test)
    prepare.run(recipe, folder)  # the manifest knows that the file is another
    assert prompting_of(recipe, folder, encoder, "test", test).candidates.tolist() == drawn.tolist()
