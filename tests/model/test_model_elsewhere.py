"""Answering on a device that is none: every tensor is where it is asked for."""

from functools import partial

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, elsewhere

from llmrec.evaluation.predictions import Predictions
from llmrec.stages import recommend


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
