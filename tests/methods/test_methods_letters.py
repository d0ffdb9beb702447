"""Candidates with letters: shown, learned and answered by one letter."""

import numpy as np
import pytest
import torch

from llmrec.data.candidates import read_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import RecipeError
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.methods.method import Job
from llmrec.methods.table import method_of
from llmrec.model.kept_weights import read_log
from llmrec.model.loading import load_model
from llmrec.stages import prepare, recommend, train
from llmrec.text.encoding import Context
from llmrec.text.templates import PromptTemplate

AMONG = ("data.candidates=4", "prompt.task=similar_users", "prompt.letters=true")
LEARNED = (*AMONG, "systems=[untuned, tuned]", "objective.listwise.tau=1")


def letter_scores(model, tokenizer, prompt, count):
    """(count,) log-probabilities of the first letters behind a prompt, among these alone."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt.tolist()])).logits[0, -1]
    ids = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ABCD"[:count]]
    return logits[ids].double().log_softmax(0).numpy()


def test_the_prompt_shows_each_candidate_behind_its_letter(recipe_of):
    recipe, folder = recipe_of(*LEARNED)
    prepare.run(recipe, folder)
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    ids = encoder.prompt([0, 1], Context((), (7, 3, 5, 2))).ids
    lines = encoder.tokenizer.decode(ids.tolist()).split("\n")
    begin = next(i for i, line in enumerate(lines) if "one of these" in line) + 1
    titles = [encoder.titles[p] for p in (7, 3, 5, 2)]
    shown = [f"({letter}) {title}" for letter, title in zip("ABCD", titles, strict=True)]
    assert lines[begin : begin + 4] == shown
    assert lines[-2] == "The movie they watched next, by its letter:"


def test_rows_learn_the_letter_of_the_target_among_the_letters(recipe_of):
    """The first loss against cross-entropy over the four letters, read alone."""
    recipe, folder = recipe_of(
        *LEARNED, "train.per_device_train_batch_size=64", "train.num_train_epochs=1"
    )
    prepare.run(recipe, folder)
    job, model = Job.of(recipe, folder), load_model(base_of(recipe), "cpu")
    costs, places = [], set()
    rows = method_of(recipe).rows(job)
    for window, row, among in zip(job.windows, rows, job.prompting.candidates, strict=True):
        place = among.tolist().index(window.target)
        prompt, answer = row.segments[:2]
        assert job.encoder.tokenizer.decode(answer.ids.tolist()) == "ABCD"[place]
        assert answer.target == window.target
        costs.append(-letter_scores(model, job.encoder.tokenizer, prompt.ids, 4)[place])
        places.add(place)
    assert places == {0, 1, 2, 3}
    train.run(recipe, folder)
    first = next(line for line in read_log(folder.train_log) if "loss" in line)
    assert first["loss"] == pytest.approx(np.mean(costs), rel=1e-3)


def test_answers_are_ranked_by_their_letters(recipe_of):
    recipe, folder = recipe_of(*AMONG, "systems=[untuned]")
    prepare.run(recipe, folder)
    recommend.run(recipe, folder)
    test = Examples.read(folder.examples("test"))
    said = Predictions.read(folder.predictions("untuned"))
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    model = load_model(base_of(recipe), "cpu")
    candidates = read_candidates(folder.candidates("test")).tolist()
    for i, (example, among) in enumerate(zip(test, candidates, strict=True)):
        prompt = encoder.prompt(example.history, Context((), tuple(among))).ids
        scores = letter_scores(model, encoder.tokenizer, prompt, 4)
        assert said.ranking(i).tolist() == [among[n] for n in np.argsort(-scores)]
        assert said.nll[i] == pytest.approx(-scores[among.index(example.target)], abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("prompt.letters=true", "prompt.task=similar_users"), "needs data.candidates"),
        ((*AMONG, "data.candidates=27"), "at most 26"),
        ((*AMONG, "prompt.task=next_item"), "shown by prompt.task"),
        (AMONG, "one of objective.listwise"),
        ((*LEARNED, "objective.name=msl"), "objective.name sft"),
    ],
)
def test_what_letters_need_is_said(recipe_of, overrides, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of("systems=[tuned]", *overrides)


def test_a_template_without_letters_is_refused():
    shown = "{% block prompt %}{% for t in history %}{{ t }}\n{% endfor %}"
    shown += "{% for t in candidates %}<> {{ t }}\n{% endfor %}{% endblock %}"
    end = "{% block completion %}{{ target }}{% endblock %}"
    asked = {"demonstrations": False, "candidates": True, "selection": False, "letters": True}
    PromptTemplate(shown.replace("<>", "{{ letters[loop.index0] }}.") + end).check_context(**asked)
    for wrong in ("-", "{{ letters[0] }}"):
        with pytest.raises(RecipeError, match="does not show each of `letters`"):
            PromptTemplate(shown.replace("<>", wrong) + end).check_context(**asked)
