"""Learning among candidates: what the loss runs over, and candidates drawn anew in each epoch."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from llmrec.data.files import sha256_of
from llmrec.errors import RecipeError
from llmrec.inference.engine import Engine
from llmrec.methods import plain
from llmrec.methods.method import Job
from llmrec.model.trainer import TreeTrainer
from llmrec.recipe.decoding import Decode
from llmrec.stages import prepare, train

TABLE = ("systems=[untuned, tuned]", "data.candidates=3")
AMONG = (*TABLE, "objective.name=msl", "objective.among=candidates")
SELECTED = (
    *TABLE,
    "prompt.task=similar_users",
    "demonstrations.count=1",
    "demonstrations.selection.pool=2",
)
WEIGHTS = "adapter_model.safetensors"


def nll_by_hand(model, prompt, among, target, completions):
    """Minus log p(target), token by token over those that continue one of the candidates."""
    answer = completions[target].tolist()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double()
    total = 0.0
    for place, token in enumerate(answer):
        going = {
            int(completions[item][place])
            for item in among
            if completions[item][:place].tolist() == answer[:place]
        }
        row = logits[len(prompt) + place - 1]
        total += float(torch.logsumexp(row[sorted(going)], 0) - row[token])
    return total


def test_the_loss_is_what_the_candidate_protocol_measures(recipe_of, tiny_llama):
    recipe, folder = recipe_of(*AMONG)
    prepare.run(recipe, folder)
    job = Job.of(recipe, folder)
    rows = plain.rows(job)
    softmax = plain.softmax_of(recipe, job.encoder)
    with torch.no_grad():
        batch = softmax.prepare([row.flatten() for row in rows])
        found = -softmax.branch_log_probabilities(tiny_llama, batch).double().numpy()
    by_hand = [
        nll_by_hand(
            tiny_llama,
            row.segments[0].ids.tolist(),
            row.among,
            row.segments[1].target,
            job.encoder.completions,
        )
        for row in rows
    ]
    np.testing.assert_allclose(found, by_hand, atol=1e-4)
    prompts = [row.segments[0].ids for row in rows]
    targets = np.array([row.segments[1].target for row in rows], np.int32)
    among = np.array([row.among for row in rows], np.int32)
    engine = Engine(tiny_llama, job.encoder, Decode())
    np.testing.assert_allclose(found, engine.choose(prompts, among, targets).nll, atol=1e-4)


@pytest.fixture
def read_in_training(monkeypatch):
    """Step -> number of a row -> what it was chosen among, as the trainer read it in that step."""
    seen, real = {}, TreeTrainer.piece_of

    def watched(self, fetched):
        step = seen.setdefault(self.state.global_step, {})
        for number in np.asarray(fetched["row_numbers"]).tolist():
            step[number] = self.train_dataset.rows[number]
        return real(self, fetched)

    monkeypatch.setattr(TreeTrainer, "piece_of", watched)
    return seen


def candidates_of(row):
    """Those of a row of one answer, or of a row whose branches they are."""
    return row.among or tuple(s.target for s in row.segments if s.target >= 0)


LOSSES = {
    "among": AMONG,
    "listwise": (*TABLE, "objective.listwise.tau=1"),
    "selected": (*AMONG, *SELECTED[2:], "demonstrations.selection.refresh=3"),
}


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_candidates_are_drawn_anew_in_each_epoch_of_training_alone(
    recipe_of, read_in_training, loss
):
    recipe, folder = recipe_of(*LOSSES[loss], "rows.redraw=true", "train.num_train_epochs=3")
    prepare.run(recipe, folder)
    stored = {split: sha256_of(folder.candidates(split)) for split in ("valid", "test")}
    train.run(recipe, folder)
    assert {s: sha256_of(folder.candidates(s)) for s in stored} == stored
    steps = max(read_in_training) + 1
    by_epoch = [
        {
            number: candidates_of(row)
            for step in range(epoch * steps // 3, (epoch + 1) * steps // 3)
            for number, row in read_in_training[step].items()
        }
        for epoch in range(3)
    ]
    windows = Job.of(recipe, folder).windows
    numbers = set(range(len(windows)))
    assert [set(epoch) - {-1} for epoch in by_epoch] == [numbers] * 3
    for number in numbers:
        for epoch in by_epoch:
            assert len(set(epoch[number])) == 3
            assert windows[number].target in epoch[number]
            seen = set(windows[number].history.tolist()) - {windows[number].target}
            assert not seen & set(epoch[number])
    different = [np.mean([set(a[n]) != set(b[n]) for n in numbers]) for a, b in pairwise(by_epoch)]
    assert min(different) > 0.6


def test_without_a_redraw_they_stay_and_an_interrupted_one_goes_on(
    recipe_of, read_in_training, killed_at
):
    recipe, folder = recipe_of(*AMONG, "rows.redraw=true")
    train.run(recipe, folder)
    steps = max(read_in_training) + 1
    other = type(folder)(folder.root.with_name("other"))
    with killed_at(steps - 1):
        train.run(recipe, other)
    train.run(recipe, other)
    assert (other.adapter / WEIGHTS).read_bytes() == (folder.adapter / WEIGHTS).read_bytes()
    read_in_training.clear()
    still, third = recipe_of(*AMONG, "name=still")
    train.run(still, third)
    rows = {}
    for step in read_in_training.values():
        for number, row in step.items():
            assert rows.setdefault(number, row.among) == row.among
    assert (third.adapter / WEIGHTS).read_bytes() != (folder.adapter / WEIGHTS).read_bytes()


def test_a_refresh_beyond_all_steps_is_told(recipe_of, caplog):
    few = ("rows.count=8", "train.num_train_epochs=1", "train.eval_strategy=epoch")
    recipe, folder = recipe_of(*SELECTED, *few, "demonstrations.selection.refresh=2")
    train.run(recipe, folder)
    assert "selected once" in caplog.text
    caplog.clear()
    recipe, folder = recipe_of(*SELECTED, *few, "demonstrations.selection.refresh=1", "name=often")
    train.run(recipe, folder)
    assert "selected once" not in caplog.text
    assert sorted(p.stem for p in folder.selected.glob("*.json")) == ["0", "1"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((*TABLE, "objective.among=candidates"), "objective.name: msl"),
        (("systems=[untuned]", *AMONG[2:]), "give data.candidates"),
        ((*AMONG, "objective.listwise.tau=1"), "drop objective.listwise"),
        (("rows.redraw=true",), "give data.candidates"),
        ((*TABLE, "rows.redraw=true", "objective.dpo.negatives=1"), "objective.dpo"),
    ],
)
def test_what_does_not_go_together_is_told(recipe_of, overrides, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of(*overrides)
