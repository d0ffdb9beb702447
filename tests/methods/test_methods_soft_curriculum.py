"""SOFT's curriculum by steps and by likelihood, its alpha from validation, and what it keeps."""

import json
import shutil

import numpy as np
import pytest
import torch

from llmrec.data import sealed
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import RecipeError
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.from_recipe import encoder_of
from llmrec.methods.method import Job
from llmrec.methods.soft.choosing import teacher
from llmrec.methods.soft.distances import constant_distance, next_title_auc, shuffled_distance
from llmrec.methods.soft.pairs import questions_of
from llmrec.methods.windows import training_windows
from llmrec.model.kept_weights import read_log
from llmrec.model.trainer import TreeTrainer
from llmrec.stages import pipeline, recommend, train

ALL = ("rows.shape=all_targets", "objective.name=msl", "soft.probe=8")
WEIGHTS = "adapter_model.safetensors"
rng = np.random.default_rng(0)


def test_auc_is_counted_pair_by_pair():
    states = rng.normal(size=(9, 3))
    positions = [0, 4, 4, 7, 8]
    histories = [states[[1, 2]], states[[3]], states[[5, 6, 1]], states[[2]], states[:0]]
    shares = []
    for user, history in enumerate(histories[:4]):
        own = np.mean([np.linalg.norm(states[positions[user]] - h) for h in history])
        wins = []
        for other in positions:
            if other != positions[user]:
                far = np.mean([np.linalg.norm(states[other] - h) for h in history])
                wins.append(1.0 if far > own else 0.5 if far == own else 0.0)
        shares.append(np.mean(wins))
    found = next_title_auc(histories, states[positions], positions)
    assert found == pytest.approx(np.mean(shares))
    near = [states[[p]] for p in positions]  # the next title is the very one of the history
    assert next_title_auc(near, states[positions], positions) == 1.0
    alike = np.ones((5, 3))
    assert next_title_auc([alike[:2]] * 5, alike, positions) == 0.5
    assert np.isnan(next_title_auc([alike[:2]] * 2, alike[:2], [3, 3]))


def test_constant_and_shuffled_answers_against_loops():
    titles, truths, answers = (rng.normal(size=(n, 4)) for n in (7, 5, 5))
    best = min(np.mean([np.linalg.norm(c - y) for y in truths]) for c in titles)
    assert constant_distance(titles, truths) == pytest.approx(best)
    apart = [
        np.linalg.norm(a - y) for i, a in enumerate(answers) for j, y in enumerate(truths) if i != j
    ]
    assert shuffled_distance(answers, truths) == pytest.approx(np.mean(apart))
    assert np.isnan(shuffled_distance(answers[:1], truths[:1]))


@pytest.fixture
def distilled(recipe_of):
    """A recipe whose fine-tuned adapter and answers stand."""
    recipe, folder = recipe_of(*ALL)
    for step in ("sft", "distill"):
        pipeline.train(recipe, folder, step)
    return recipe, folder


def soft_of(recipe, **changes):
    return recipe.model_copy(update={"soft": recipe.soft.model_copy(update=changes)})


def weighed(lines):
    return [line for line in lines if "weights" in line]


def untimed(path):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(path)]


def test_a_period_of_steps_weighs_just_those_steps(distilled, monkeypatch):
    recipe, folder = distilled
    seen = {}
    learn = TreeTrainer.compute_loss

    def learning(self, model, inputs, *rest, **named):
        for kind, weight in zip(inputs["kinds"].tolist(), inputs["weights"].tolist(), strict=True):
            seen.setdefault(self.state.global_step, {})[kind] = weight
        return learn(self, model, inputs, *rest, **named)

    monkeypatch.setattr(TreeTrainer, "compute_loss", learning)
    own = soft_of(recipe, schedule="linear", period=3, keep_teacher=False)
    train.run(own, folder)
    lines = weighed(read_log(folder.train_log))
    steps = max(seen) + 1
    count = -(-steps // 3)
    assert steps % 3, "the last period is cut short"
    assert [line["step"] for line in lines] == [3 * n for n in range(count)]
    assert [line["period"] for line in lines] == list(range(count))
    for step, weights in seen.items():
        share = 1 - (step // 3) / (count - 1)
        wanted = {kind: w for kind, w in enumerate((1 - share, share)) if w}  # others are not read
        assert weights == pytest.approx(wanted)


def test_a_period_that_was_interrupted_goes_on_to_the_same_bytes(distilled, killed_at):
    recipe, folder = distilled
    own = soft_of(recipe, period=3, keep_teacher=False, answers=str(folder.answers))
    straight, other = (type(folder)(folder.root.with_name(n)) for n in ("straight", "other"))
    train.run(own, straight)
    with killed_at(5):  # inside a period; checkpoints stand at even steps
        train.run(own, other)
    train.run(own, other)
    assert untimed(other.train_log) == untimed(straight.train_log)
    assert (other.adapter / WEIGHTS).read_bytes() == (straight.adapter / WEIGHTS).read_bytes()


def nll_by_hand(model, encoder, history, truth):
    """Minus log p(title) token by token, over the tokens that continue some title."""
    prompt, answer = encoder.prompt(history).ids.tolist(), encoder.completions[truth].tolist()
    logits = model(torch.tensor([prompt + answer])).logits[0].double()
    total = 0.0
    for place, token in enumerate(answer):
        going = {c[place] for c in map(list, encoder.completions) if c[:place] == answer[:place]}
        row = logits[len(prompt) + place - 1]
        total += float(torch.logsumexp(row[sorted(going)], 0) - row[token])
    return total


def test_likelihood_can_steer_instead_of_distances(distilled, tiny_llama):
    recipe, folder = distilled
    own = soft_of(recipe, measure="nll", keep_teacher=False)
    train.run(own, folder)
    lines = weighed(read_log(folder.train_log))
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    questions = questions_of(recipe, encoder, windows)
    drawn = np.random.default_rng([recipe.seed, 1]).permutation(len(questions))[:8]
    with torch.no_grad():
        by_hand = np.mean(
            [
                nll_by_hand(tiny_llama, encoder, questions[i].history, questions[i].truth)
                for i in drawn
            ]
        )
    assert lines[0]["distance"] == lines[0]["distance_untuned"] == pytest.approx(by_hand, rel=1e-4)
    for line in lines:
        ratio = line["distance"] / line["distance_untuned"]
        assert line["lambda"] == pytest.approx(min(np.exp(ratio - 1), 1.0))
        assert not {"distance_constant", "distance_shuffled", "auc"} & set(line)
    assert lines[1]["distance"] < lines[0]["distance"]


def test_what_distances_can_tell_is_measured_first_and_said(distilled, caplog):
    recipe, folder = distilled
    caplog.set_level("INFO", "llmrec")
    train.run(soft_of(recipe, keep_teacher=False), folder)
    told = [r.getMessage() for r in caplog.records]
    lines = weighed(read_log(folder.train_log))
    assert {line["auc"] for line in lines} == {lines[0]["auc"]}
    assert {line["distance_constant"] for line in lines} == {lines[0]["distance_constant"]}
    assert all("distance_shuffled" in line for line in lines)
    assert any("AUC" in text and f"{lines[0]['auc']:.3f}" in text for text in told)
    warned = any("soft.measure=nll" in text for text in told)
    assert warned == (lines[0]["auc"] < 0.55)


def test_losses_are_told_per_title_and_per_token(distilled):
    recipe, folder = distilled
    train.run(soft_of(recipe, schedule="fixed", probe=0, keep_teacher=False), folder)
    [first, *_] = [line for line in read_log(folder.train_log) if "losses" in line]
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    truths = [q.truth for q in questions_of(recipe, encoder, windows)]
    tokens = np.mean([len(encoder.completions[truth]) for truth in truths])
    assert first["losses"]["real"] / first["losses_per_token"]["real"] == pytest.approx(tokens)
    assert first["losses_per_token"]["self"] < first["losses"]["self"]


def test_alpha_is_the_best_of_its_grid_in_validation(distilled, recipe_of, monkeypatch):
    recipe, folder = distilled
    own = soft_of(recipe, alpha="auto", grid=[1.0, 30.0], keep_teacher=False)
    result = pipeline.train(own, folder, "soft")
    scores = {a: sealed.facts(folder.alpha(a).adapter)["score"] for a in (1.0, 30.0)}
    best = min(scores, key=scores.get)
    assert scores[1.0] != scores[30.0]
    facts = sealed.facts(folder.adapter)
    assert (facts["alpha"], facts["score"]) == (best, scores[best])
    assert result["alphas"] == {"1": scores[1.0], "30": scores[30.0]}
    assert sealed.problem(folder.adapter) is None
    weights = (folder.adapter / WEIGHTS).read_bytes()
    assert weights == (folder.alpha(best).adapter / WEIGHTS).read_bytes()
    alone = type(folder)(folder.root.with_name("alone"))
    one = soft_of(own, alpha=best, answers=str(folder.answers))
    train.run(one, alone)  # as if that alpha had been given
    assert (alone.adapter / WEIGHTS).read_bytes() == weights
    assert untimed(alone.train_log) == untimed(folder.train_log)
    recommend.run(own.model_copy(update={"systems": ["tuned"]}), folder)
    assert Predictions.read(folder.predictions("tuned")).info.hyperparameters["alpha"] == best
    monkeypatch.setattr(TreeTrainer, "train", None)
    assert pipeline.train(own, folder, "soft")["skipped"]
    with pytest.raises(RecipeError, match="schedule adaptive alone"):
        recipe_of("soft.alpha=auto", "soft.schedule=none")
    with pytest.raises(RecipeError, match="auto, or a number above 0"):
        recipe_of("soft.alpha=often")


def test_a_teacher_that_is_better_in_validation_is_kept_and_said(distilled, caplog):
    recipe, folder = distilled
    hurried = {**recipe.train, "learning_rate": 1e-6}  # learns next to nothing
    slow = recipe.model_copy(update={"train": hurried})
    own = soft_of(slow, schedule="none", probe=0, answers=str(folder.answers))
    told = {}
    for keep in (True, False):
        other = type(folder)(folder.root.with_name(f"keep-{keep}"))
        result = train.run(
            soft_of(own, keep_teacher=keep, sft_adapter=str(folder.sft.adapter)), other
        )
        told[keep] = (sealed.facts(other.adapter), other, result)
    first, kept = sealed.facts(folder.sft.adapter), told[True][0]
    assert (told[True][2]["kept"], kept["kept"]) == ("teacher", "teacher")
    assert kept["score"] == first["score"] < told[False][0]["score"] == kept["trained"]["score"]
    assert (told[True][1].adapter / WEIGHTS).read_bytes() == (
        folder.sft.adapter / WEIGHTS
    ).read_bytes()
    assert "kept" not in told[False][0]
    assert "worse than the teacher's" in caplog.text
    assert sealed.problem(told[True][1].adapter) is None


def test_a_teacher_without_a_score_of_this_validation_is_measured(distilled, tmp_path):
    recipe, folder = distilled
    first = teacher(Job.of(recipe, folder))
    assert (first.name, list(first.score)) == ("teacher", sealed.facts(folder.sft.adapter)["score"])
    foreign = tmp_path / "foreign"
    shutil.copytree(folder.sft.adapter, foreign)
    (foreign / sealed.MANIFEST).unlink()
    measured = teacher(Job.of(soft_of(recipe, sft_adapter=str(foreign)), folder))
    assert measured.score == pytest.approx(first.score, rel=1e-5)
    facts = json.loads((folder.sft.adapter / sealed.MANIFEST).read_text("utf-8"))
    assert facts["settings"]["validation.metric"] == "nll"
    ranked = recipe.validation.model_copy(update={"metric": "hr", "k": 2})
    other = teacher(Job.of(recipe.model_copy(update={"validation": ranked}), folder))
    assert "valid_hr@2" in other.figures
    assert other.score[0] == -other.figures["valid_hr@2"]
