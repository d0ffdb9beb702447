"""Preference losses as a recipe says them: rows, the reference read once, and weighed targets."""

import numpy as np
import pytest
import torch

from llmrec.data.records import Interactions
from llmrec.errors import RecipeError
from llmrec.fetch import cache
from llmrec.inference.from_recipe import base_of
from llmrec.methods import preferences
from llmrec.methods.method import Job
from llmrec.methods.table import method_of
from llmrec.model.kept_weights import read_log
from llmrec.model.loading import load_model, load_tuned
from llmrec.stages import prepare, train

AMONG = (
    "data.candidates.from=markov",
    "data.candidates.count=3",
    "systems=[tuned]",
    "train.num_train_epochs=1",
    "train.per_device_train_batch_size=64",
)


@pytest.fixture(autouse=True)
def references(monkeypatch, tmp_path):
    """A cache of this test's own for what references give, with the fetched models in place."""
    root = tmp_path / "cache"
    monkeypatch.setattr(cache, "cache_root", lambda: root)
    return root / "references"


def scores(model, row):
    """(n,) summed log-probabilities of a row's branches, each read alone behind its prompt."""
    prompt, *branches = row.segments
    found = []
    for branch in branches:
        ids = torch.tensor([[*prompt.ids.tolist(), *branch.ids.tolist()]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt.ids) - 1 : -1].log_softmax(1)
        found.append(float(logits[range(len(branch.ids)), branch.ids.tolist()].sum()))
    return np.array(found)


@pytest.mark.parametrize("kind", ["dpo", "sdpo"])
def test_the_reference_is_the_model_that_training_starts_from(recipe_of, references, kind):
    """The first loss of training that goes on from an adapter, against each branch read alone."""
    first, begun = recipe_of(*AMONG, "name=first")
    train.run(first, begun)
    recipe, folder = recipe_of(
        *AMONG,
        f"objective.{kind}.negatives=2",
        f"objective.{kind}.beta=0.5",
        f"model.start_from={begun.adapter}",
        "train.max_steps=3",
        "train.logging_steps=1",
    )
    train.run(recipe, folder)
    losses = [line["loss"] for line in read_log(folder.train_log) if "loss" in line]
    # Where nothing is gained yet: log 2 for a pair, log(1 + 2) for two at once.
    assert losses[0] == pytest.approx(np.log(2 if kind == "dpo" else 3), abs=1e-4)
    assert losses[-1] < losses[0]
    job = Job.of(recipe, folder)
    rows = method_of(recipe).rows(job)
    [file] = references.glob("values-*.npy")
    kept = np.load(file)
    model = load_tuned(base_of(recipe), begun.adapter)
    expected = np.stack([scores(model, row) for row in rows])
    np.testing.assert_allclose(kept, expected, atol=2e-4)


def test_the_reference_is_read_once_and_kept_by_content(recipe_of, references, monkeypatch):
    reads = []
    real = preferences.read_values
    monkeypatch.setattr(preferences, "read_values", lambda *given: reads.append(1) or real(*given))
    given = (*AMONG, "objective.sdpo.negatives=2", "train.max_steps=1")
    train.run(*recipe_of(*given))
    train.run(*recipe_of(*given, "name=again", "train.learning_rate=0.002"))
    assert len(reads) == 1
    train.run(*recipe_of(*given, "name=other", "seed=1"))
    assert len(reads) == 2
    assert len(list(references.glob("values-*.npy"))) == 2


def test_an_interrupted_training_goes_on_with_the_reference_it_had(recipe_of, killed_at):
    given = (*AMONG, "objective.sdpo.negatives=2", "train.max_steps=6", "train.save_steps=2")
    given = (*given, "train.per_device_train_batch_size=8")
    whole, folder = recipe_of(*given)
    train.run(whole, folder)
    recipe, broken = recipe_of(*given, "name=broken")
    with killed_at(4):
        train.run(recipe, broken)
    train.run(recipe, broken)
    adapters = [f.adapter / "adapter_model.safetensors" for f in (folder, broken)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_negatives_are_drawn_among_the_candidates(recipe_of):
    recipe, folder = recipe_of(*AMONG[2:], "data.candidates=4", "objective.sdpo.negatives=2")
    prepare.run(recipe, folder)
    job = Job.of(recipe, folder)
    rows = method_of(recipe).rows(job)
    places = set()
    for window, row, among in zip(job.windows, rows, job.prompting.candidates, strict=True):
        first, *others = [segment.target for segment in row.segments[1:]]
        assert first == window.target
        assert len({*others}) == 2
        assert {*others} < {*among.tolist()} - {window.target}
        places |= {among.tolist().index(item) for item in others}
    assert len(places) == 4
    again = method_of(recipe).rows(Job.of(recipe, folder))
    assert [[s.target for s in row.segments] for row in again] == [
        [s.target for s in row.segments] for row in rows
    ]


@pytest.mark.parametrize("shape", ["single", "all_targets"])
def test_targets_weigh_by_propensity_over_the_whole_step(recipe_of, shape):
    """The first logged loss against a weighted mean of targets read alone."""
    recipe, folder = recipe_of(
        "systems=[tuned]",
        f"rows.shape={shape}",
        "objective.propensity.floor=0.5",
        "train.per_device_train_batch_size=64",
        "train.max_steps=1",
    )
    train.run(recipe, folder)
    first = next(line for line in read_log(folder.train_log) if "loss" in line)
    job = Job.of(recipe, folder)
    counts = np.bincount(Interactions.read(folder.interactions).position, minlength=12)
    weight = 1 / np.maximum((counts / counts.max()) ** 0.5, 0.5)
    assert len(np.unique(weight)) > 1
    model, costs, weights = load_model(base_of(recipe), "cpu"), [], []
    for row in method_of(recipe).rows(job):
        for path in row.paths():
            *before, last = [row.segments[i] for i in path]
            prompt = np.concatenate([segment.ids for segment in before]).tolist()
            ids = torch.tensor([[*prompt, *last.ids.tolist()]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(1)
            costs.append(-float(logits[range(len(last.ids)), last.ids.tolist()].sum()))
            weights.append(weight[last.target])
    assert first["loss"] == pytest.approx(np.average(costs, weights=weights), rel=1e-3)
    assert abs(np.mean(costs) / np.average(costs, weights=weights) - 1) > 2e-3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("objective.sdpo.beta=1",), "needs data.candidates"),
        (("data.candidates=4", "objective.dpo.negatives=4"), "data.candidates.count must be"),
        (("data.candidates=4", "objective.sdpo.beta=1", "objective.listwise.tau=1"), "two losses"),
        (("objective.propensity.floor=0.5", "soft.alpha=1"), "drop it, or soft"),
    ],
)
def test_what_they_need_is_said(recipe_of, overrides, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of("systems=[tuned]", *overrides)
