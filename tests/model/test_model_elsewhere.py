"""Answering on a device that is none: every tensor is where it is asked for."""

from functools import partial

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, elsewhere

from llmrec.evaluation.predictions import Predictions
from llmrec.model.kept_weights import read_log
from llmrec.stages import pipeline, recommend


def test_the_device_refuses_what_a_gpu_would():
    here = torch.ones(2, 2)
    with elsewhere():
        there = here.to(DEVICE)
        assert isinstance(there, Elsewhere)
        assert there.device == torch.device(DEVICE)
        layer = torch.nn.Linear(2, 2).to(DEVICE)
        layer(there).sum().backward()
        assert layer.weight.grad.device == there.device
        assert (there + torch.tensor(1.0)).cpu().tolist() == [[2, 2], [2, 2]]
        assert there[torch.tensor([0])].shape == (1, 2)
        assert torch.zeros(1, device=there.device).device == there.device
        for mixed in (lambda: there + here, lambda: layer(here), lambda: here[there.long()[0]]):
            with pytest.raises(RuntimeError, match="two devices"):
                mixed()


@pytest.fixture
def here_and_there(recipe_of, tmp_path, monkeypatch):
    """A function that does something on the CPU and on the device, each in a run and with a cache
    of its own; the two folders."""
    return partial(_done_twice, recipe_of, tmp_path, monkeypatch)


def _done_twice(recipe_of, tmp_path, monkeypatch, overrides, do):
    folders = []
    for place in ("here", "there"):
        monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / f"cache-{place}"))
        recipe, folder = recipe_of(f"name={place}", *overrides)
        if place == "here":
            do(recipe, folder)
        else:
            with elsewhere() as done:
                do(recipe, folder)
            assert done[0] > 1000
        folders.append(folder)
    return folders


@pytest.mark.parametrize("search", ["beam", "best_first"])
def test_answers_are_the_same(here_and_there, search):
    systems = ("untuned", "untuned_guided")
    folders = here_and_there(
        [f"systems=[{', '.join(systems)}]", f"decode.search={search}"], recommend.run
    )
    for system in systems:
        ours, theirs = (Predictions.read(folder.predictions(system)) for folder in folders)
        assert ours.items.tolist() == theirs.items.tolist()
        assert ours.nll == pytest.approx(theirs.nll, nan_ok=True)


AMONG_CANDIDATES = [
    "rows.shape=single",
    "data.candidates={from: markov, count: 3, keep_missed: true}",
    "systems=[tuned]",
]
TRAINED = {
    "sft": [],
    "soft": ["soft={schedule: linear, probe: 4}"],
    "conformal": ["conformal={candidates: {beams: 2, sampled: 2}}", "rows.shape=single"],
    "listwise": [*AMONG_CANDIDATES, "objective.listwise={}"],
    "sdpo": [*AMONG_CANDIDATES, "objective.sdpo={negatives: 2}"],
    "grpo": [*AMONG_CANDIDATES, "objective.grpo={group: 3}"],
    "selected": [
        "rows.shape=single",
        "prompt.task=similar_users",
        "demonstrations={count: 1, selection: {pool: 3, reader: score}}",
    ],
}


@pytest.mark.parametrize("what", TRAINED)
def test_training_is_the_same(here_and_there, what):
    steps = ["train.max_steps=3", "train.use_cpu=false", "train.save_strategy=no"]
    folders = here_and_there([*steps, *TRAINED[what]], pipeline.train)
    ours, theirs = (read_log(folder.train_log) for folder in folders)
    assert len(ours) > 3
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for key in {"loss", "valid_nll", "distance"} & set(mine):
            assert mine[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5)


def test_networks_are_the_same(here_and_there):
    """GRU4Rec is left out: its cell is one operation on a GPU and another on a CPU."""
    recipe = [
        "systems=[sasrec, network, network_ce, network_cpft]",
        "baselines.trials=1",
        "network={kind: sasrec, max_epochs: 2, trials: 1}",
        "conformal={beta: 1, gamma: 1}",
    ]
    folders = here_and_there(recipe, pipeline.run)
    for system in ("sasrec", "network", "network_ce", "network_cpft"):
        ours, theirs = (Predictions.read(folder.predictions(system)) for folder in folders)
        assert ours.nll == pytest.approx(theirs.nll, rel=1e-3, nan_ok=True)
