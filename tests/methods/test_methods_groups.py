"""Rewards for the live model's own answers, as a recipe says them."""

import numpy as np
import pytest
import torch

from llmrec.data.records import Interactions
from llmrec.errors import DataError, RecipeError
from llmrec.inference.from_recipe import base_of
from llmrec.methods.groups import BegunWeights, GroupRows
from llmrec.methods.method import Job
from llmrec.methods.windows import as_examples
from llmrec.model.kept_weights import read_log
from llmrec.model.loading import load_model
from llmrec.model.softmax import FullSoftmax
from llmrec.stages import prepare, train

CATALOG = ("systems=[tuned]", "objective.grpo.group=3", "decode.renormalise=false")
AMONG = (*CATALOG, "data.candidates=4")
ONCE = ("train.per_device_train_batch_size=64", "train.max_steps=1", "train.learning_rate=1e-12")


def alone(model, prompt, ids):
    """A title's summed log-probability behind its prompt."""
    whole = torch.tensor([[*prompt.tolist(), *ids.tolist()]])
    with torch.no_grad():
        logits = model(whole).logits[0, len(prompt) - 1 : -1].log_softmax(1)
    return float(logits[range(len(ids)), ids.tolist()].sum())


def test_a_group_is_the_best_of_the_candidates_and_its_hits_are_rewarded(recipe_of):
    """The first step's reward against each candidate read alone."""
    recipe, folder = recipe_of(*AMONG, *ONCE)
    train.run(recipe, folder)
    told = next(line for line in read_log(folder.train_log) if "reward" in line)
    job, model = Job.of(recipe, folder), load_model(base_of(recipe), "cpu")
    hits = []
    for window, among in zip(job.windows, job.prompting.candidates.tolist(), strict=True):
        prompt = job.encoder.prompt(window.history).ids
        scores = {item: alone(model, prompt, job.encoder.completions[item]) for item in among}
        hits.append(window.target in sorted(scores, key=scores.get)[-3:])
    assert 0 < np.mean(hits) < 1
    assert told["reward"] == pytest.approx(np.mean(hits))
    assert told["divergence"] == pytest.approx(0, abs=1e-6)


def test_a_group_of_the_catalog_holds_items_that_its_user_has_not_chosen(recipe_of, monkeypatch):
    recipe, folder = recipe_of(*CATALOG, *ONCE, "decode.renormalise=true")
    seen = {}
    drawn = GroupRows.__getitem__

    def noted(self, number):
        row = drawn(self, number)
        if number in self.answers:
            seen[number] = [segment.target for segment in row.segments[1:]]
        return row

    monkeypatch.setattr(GroupRows, "__getitem__", noted)
    train.run(recipe, folder)
    job = Job.of(recipe, folder)
    whole = as_examples(job.windows, Interactions.read(folder.interactions))
    assert len(seen) == len(job.windows)
    for number, (target, *group) in seen.items():
        assert target == job.windows[number].target
        assert len({*group}) == 3
        assert not {*group} & {*whole.history(number).tolist()}
    assert len({tuple(row) for row in seen.values()}) > 5


def test_training_learns_from_rewards_and_an_interrupted_one_goes_on_the_same(recipe_of, killed_at):
    given = (*AMONG, "objective.grpo.group=4", "train.save_steps=3", "train.num_train_epochs=3")
    whole, folder = recipe_of(*given)
    train.run(whole, folder)
    found = [line["valid_nll"] for line in read_log(folder.train_log) if "valid_nll" in line]
    assert min(found) < found[0] - 0.5
    recipe, broken = recipe_of(*given, "name=broken")
    with killed_at(7):
        train.run(recipe, broken)
    train.run(recipe, broken)
    adapters = [f.adapter / "adapter_model.safetensors" for f in (folder, broken)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_what_comes_next_is_of_one_user_and_the_target_stands_in_for_what_does_not(recipe_of):
    recipe, folder = recipe_of(*CATALOG, "objective.grpo.horizon=4", "rows.every=item")
    prepare.run(recipe, folder)
    job, log = Job.of(recipe, folder), Interactions.read(folder.interactions)
    rows, short = GroupRows(job), 0
    for window, row in zip(job.windows, rows, strict=True):
        come = [segment.target for segment in row.segments[1:5]]
        mine = log.position[log.user == log.user[window.row]].tolist()
        further = mine[window.end : window.end + 4]
        short += len(further) < 4
        assert come == further + [window.target] * (4 - len(further))
        assert len(row.segments) == 1 + 4 + 3
    assert 0 < short < len(rows)


def test_the_reference_is_the_model_as_it_began_whatever_it_has_become(fresh_llama):
    batch = {"input_ids": torch.arange(5)[None]}

    class Sum(FullSoftmax):
        def branch_log_probabilities(self, model, batch):
            return model(batch["input_ids"]).logits.sum()[None]

    fresh_llama.lm_head.weight.requires_grad_(False)
    reference = BegunWeights(fresh_llama, Sum())
    begun = reference(fresh_llama, batch)
    with torch.no_grad():
        for parameter in fresh_llama.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    changed = Sum().branch_log_probabilities(fresh_llama, batch)
    assert not torch.equal(changed, begun)
    assert torch.equal(reference(fresh_llama, batch), begun)
    assert torch.equal(Sum().branch_log_probabilities(fresh_llama, batch), changed)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((*AMONG, "objective.grpo.group=6"), "data.candidates.count must be as large"),
        ((*CATALOG, "rows.shape=inline"), "needs rows.shape single"),
        ((*AMONG, "objective.sdpo.beta=1"), "two losses"),
        ((*CATALOG, "objective.propensity.power=1"), "drop it, or soft"),
    ],
)
def test_what_it_needs_is_said(recipe_of, overrides, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of(*overrides)


def test_a_group_larger_than_what_is_left_is_refused(recipe_of):
    recipe, folder = recipe_of(*CATALOG, "objective.grpo.group=12")
    prepare.run(recipe, folder)
    with pytest.raises(DataError, match=r"items left to be answered with.*Lower it"):
        GroupRows(Job.of(recipe, folder))
