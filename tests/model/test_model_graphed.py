"""model.cuda_graphs: the same training through captured passes and padded batches."""

import copy

import numpy as np
import pytest
import torch

from llmrec.model import graphed
from llmrec.model.graphed import launch_as_graphs, padded
from llmrec.model.loading import Lora, with_new_lora
from tests.model.test_model_compiling import pairs, trained

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def gradients(model, softmax, batch):
    model.zero_grad(set_to_none=True)
    values = softmax.branch_log_probabilities(model, batch)
    (-values.sum()).backward()
    return values.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
    }


def moved(batch, device):
    return {name: value.to(device) for name, value in batch.items()}


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_give_the_values_and_gradients_of_plain_passes(fresh_llama, device):
    rows, loss = pairs(8)
    model = with_new_lora(fresh_llama, Lora(r=4), seed=0).to(device).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    plain = copy.deepcopy(model)
    launch_as_graphs(model)
    for at in (slice(0, 4), slice(4, 7), slice(2, 6)):  # a shape again, other rows, fewer rows
        batch = loss.prepare([row.flatten() for row in rows[at]])
        expected, wanted = gradients(plain, loss.softmax, moved(batch, device))
        values, found = gradients(model, loss.softmax, moved(padded(batch, 4), device))
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_gradients_of_two_passes_add_up(fresh_llama):
    rows, loss = pairs(4)
    model = with_new_lora(fresh_llama, Lora(r=4), seed=0).train()
    launch_as_graphs(model)
    batch = padded(loss.prepare([row.flatten() for row in rows]), 4)
    _, once = gradients(model, loss.softmax, batch)
    (-loss.softmax.branch_log_probabilities(model, batch).sum()).backward()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, 2 * once[name])


def test_a_shape_is_captured_once(fresh_llama, monkeypatch):
    log = []

    class Graphs:
        def captured(self, run, warm=None):
            run()  # as a capture leaves what the next one goes back along
            log.append("captured")
            return lambda: log.append("replayed")

    monkeypatch.setattr(graphed, "graphs_on", lambda *_: Graphs())
    rows, loss = pairs(4)
    model = with_new_lora(fresh_llama, Lora(r=4), seed=0).train()
    launch_as_graphs(model)
    batch = padded(loss.prepare([row.flatten() for row in rows]), 4)
    for _ in range(2):
        gradients(model, loss.softmax, batch)
    with torch.no_grad():
        loss.softmax.branch_log_probabilities(model, batch)  # what asks is not captured
    assert log == ["captured", "captured", *["replayed"] * 4]


def test_training_through_graphs_is_the_same_training(fresh_llama, tmp_path, monkeypatch):
    seen = []
    plain, weights = trained(copy.deepcopy(fresh_llama), tmp_path / "plain", seen)
    with_graphs, others = trained(fresh_llama, tmp_path / "graphs", seen, graphs=True)
    np.testing.assert_allclose(with_graphs, plain, rtol=1e-5)
    for name, value in others.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-5)
