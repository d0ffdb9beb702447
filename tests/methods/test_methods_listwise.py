"""Learning to choose among candidates, as a recipe says it."""

import numpy as np
import pytest
import torch

from llmrec.data.candidates import read_candidates, read_log_q
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import RecipeError
from llmrec.inference.from_recipe import base_of
from llmrec.methods.method import Job
from llmrec.methods.table import method_of
from llmrec.model.kept_weights import read_log
from llmrec.model.loading import load_model
from llmrec.stages import prepare, prompts, train

AMONG = ("data.candidates=4", "systems=[tuned]", "objective.listwise.tau=2")


def read_alone(model, encoder, history, items):
    """(n,) summed log-probabilities of titles, each read alone behind the prompt."""
    prompt, found = encoder.prompt(history).ids.tolist(), []
    for item in items:
        answer = encoder.completions[item].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        found.append(float(logits.log_softmax(1)[range(len(answer)), answer].sum()))
    return np.array(found)


def cost(scores, place):
    return np.log(np.exp(scores - scores[place]).sum())


def test_rows_are_the_drawn_candidates_and_the_loss_is_the_softmax_over_them(recipe_of):
    """The first step's loss against a loop that reads each candidate behind its prompt alone."""
    recipe, folder = recipe_of(
        *AMONG, "train.per_device_train_batch_size=64", "train.num_train_epochs=1"
    )
    prepare.run(recipe, folder)
    job = Job.of(recipe, folder)
    rows = method_of(recipe).rows(job)
    model = load_model(base_of(recipe), "cpu")
    costs = []
    for window, row, drawn in zip(job.windows, rows, job.prompting.candidates, strict=True):
        prompt, *branches = row.segments
        assert prompt.ids.tolist() == job.encoder.prompt(window.history).ids.tolist()
        assert branches[0].target == window.target
        assert sorted(b.target for b in branches) == sorted(drawn.tolist())
        assert not set(window.history.tolist()) & {b.target for b in branches[1:]}
        scores = []
        for branch in branches:
            ids = torch.tensor([[*prompt.ids.tolist(), *branch.ids.tolist()]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt.ids) - 1 : -1].log_softmax(1)
            answer = torch.tensor(branch.ids.tolist())
            scores.append(float(logits[range(len(answer)), answer].sum()) / 2)
        costs.append(np.log(np.exp(np.array(scores) - scores[0]).sum()))
    train.run(recipe, folder)
    first = next(line for line in read_log(folder.train_log) if "loss" in line)
    assert first["loss"] == pytest.approx(np.mean(costs), rel=1e-3)
    assert first["targets"] == len(rows)


def test_beside_a_retriever_the_sum_of_both_is_learned_and_validated(recipe_of):
    """The first step's loss, and the first validation, against each candidate read alone."""
    given = ("data.candidates.from=markov", "data.candidates.count=3", "systems=[tuned]")
    recipe, folder = recipe_of(
        *given,
        "objective.listwise.fusion=0.7",
        "objective.listwise.tau=2",
        "decode.renormalise=false",
        "train.per_device_train_batch_size=64",
        "train.learning_rate=1e-12",
        "train.max_steps=1",
    )
    train.run(recipe, folder)
    job, model = Job.of(recipe, folder), load_model(base_of(recipe), "cpu")
    costs = []
    rows = zip(job.windows, job.proposed.candidates.tolist(), job.proposed.log_q, strict=True)
    for window, items, log_q in rows:
        scores = read_alone(model, job.encoder, window.history, items)
        costs.append(cost(scores / 2 + 0.7 * log_q, items.index(window.target)))
    told = read_log(folder.train_log)
    first = next(line for line in told if "loss" in line)
    assert first["loss"] == pytest.approx(np.mean(costs), rel=1e-3)
    valid, path, costs = Examples.read(folder.examples("valid")), folder.candidates("valid"), []
    for example, items, log_q in zip(
        valid, read_candidates(path).tolist(), read_log_q(path), strict=True
    ):
        if example.target in items:
            scores = read_alone(model, job.encoder, example.history, items)
            costs.append(cost(scores + 0.7 * log_q, items.index(example.target)))
    measured = next(line["valid_nll"] for line in told if "valid_nll" in line)
    assert measured == pytest.approx(np.mean(costs), rel=1e-3)


def test_a_retriever_that_has_seen_the_targets_cannot_stand_beside(recipe_of):
    recipe, folder = recipe_of(
        "data.candidates.from=popularity",
        "data.candidates.count=3",
        "systems=[tuned]",
        "objective.listwise.fusion=1",
    )
    with pytest.raises(RecipeError, match=r"data\.candidates\.from markov"):
        train.run(recipe, folder)


def test_it_learns_to_choose_and_shows_what_is_compared(recipe_of):
    recipe, folder = recipe_of(*AMONG, "objective.name=msl", "train.num_train_epochs=4")
    result = train.run(recipe, folder)
    found = [line["valid_nll"] for line in read_log(folder.train_log) if "valid_nll" in line]
    assert result["valid_nll"] == min(found) < found[0]
    shown = prompts.render(recipe, folder, "u3")
    titles = [piece["title"] for piece in shown["pieces"] if piece["compared"]]
    assert len(titles) == 3
    assert set(titles) < set(Catalog.read(folder.items).titles)
    assert sum(piece["learned"] for piece in shown["pieces"]) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("objective.listwise.tau=1",), "needs data.candidates"),
        ((*AMONG, "rows.shape=inline"), "needs rows.shape single"),
        ((*AMONG, "conformal.alpha=0.2"), "cannot be combined with conformal"),
    ],
)
def test_what_it_needs_is_said(recipe_of, overrides, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of(*overrides)
