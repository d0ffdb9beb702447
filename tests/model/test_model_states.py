"""A text's state is the base model's own, whatever batch, adapter or wrapper it is read in."""

import numpy as np
import pytest
import torch

from llmrec.model.loading import Lora, adapter_off, with_new_lora
from llmrec.model.states import text_states


class Wrapper(torch.nn.Module):
    """Wraps as DistributedDataParallel does: the model is `module` and forward passes through."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *arguments, **named):
        return self.module(*arguments, **named)


def texts(count=23, vocabulary=300):
    rng = np.random.default_rng(5)
    return [rng.integers(3, vocabulary, rng.integers(1, 17)).astype(np.int32) for _ in range(count)]


def one_by_one(model, rows):
    with torch.no_grad():
        return np.stack(
            [
                model(
                    input_ids=torch.from_numpy(row.astype(np.int64))[None],
                    output_hidden_states=True,
                )
                .hidden_states[-1][0, -1]
                .numpy()
                for row in rows
            ]
        )


def tuned(model, **lora):
    """The model with an adapter that changes what it says."""
    model = with_new_lora(model, Lora(r=4, **lora), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_equals_the_last_hidden_state_read_one_by_one(tiny_model, budget):
    states = text_states(tiny_model, texts(), budget)
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, one_by_one(tiny_model, texts()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda m: m, Wrapper, lambda m: Wrapper(Wrapper(m))])
def test_an_adapter_does_not_change_the_states(fresh_llama, wrap):
    plain = text_states(fresh_llama, texts())
    model = wrap(tuned(fresh_llama, dropout=0.5).train())
    np.testing.assert_allclose(text_states(model, texts()), plain, rtol=1e-5, atol=1e-5)
    ids = torch.arange(3, 9)[None]
    model.eval()
    with torch.no_grad():
        on = model(input_ids=ids).logits
        with adapter_off(model):
            off = model(input_ids=ids).logits
        assert not torch.allclose(on, off, atol=1e-2)
        assert torch.equal(model(input_ids=ids).logits, on)


def test_modes_flags_and_random_numbers_stay_as_they_were(fresh_llama):
    model = tuned(fresh_llama, dropout=0.5).train()
    parameters = dict(model.named_parameters())
    frozen = next(p for name, p in parameters.items() if "lora_A" in name)
    frozen.requires_grad_(False)
    model.base_model.model.model.norm.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: p.requires_grad for name, p in parameters.items()}
    torch.manual_seed(11)
    before = torch.get_rng_state()
    text_states(model, texts())
    assert torch.equal(torch.get_rng_state(), before)
    for _ in range(2):
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        with pytest.raises(RuntimeError, match="inside"), adapter_off(model):
            raise RuntimeError("inside")
    assert set(modes.values()) == set(flags.values()) == {True, False}


def test_an_adapter_loaded_to_answer_does_not_become_trainable(fresh_llama):
    model = tuned(fresh_llama).eval()
    model.requires_grad_(False)
    with adapter_off(model), adapter_off(model):
        pass
    assert not any(p.requires_grad for p in model.parameters())
    ids = torch.arange(3, 9)[None]
    with adapter_off(model):
        with adapter_off(model):
            pass
        inner = model(input_ids=ids).logits  # the outer one still holds
    assert not torch.allclose(inner, model(input_ids=ids).logits, atol=1e-2)


def test_a_model_without_adapter_is_left_alone(tiny_llama):
    ids = torch.arange(3, 9)[None]
    with torch.no_grad(), adapter_off(tiny_llama):
        inside = tiny_llama(input_ids=ids).logits
    assert torch.equal(tiny_llama(input_ids=ids).logits, inside)
    assert all(p.requires_grad for p in tiny_llama.parameters())


def test_the_head_is_computed_once_a_batch_and_no_hook_stays(tiny_llama):
    head, rows = tiny_llama.get_output_embeddings(), []
    handle = head.register_forward_hook(lambda _, __, logits: rows.append(logits.shape[:2]))
    text_states(tiny_llama, texts(), 10_000)
    handle.remove()
    assert rows == [(1, 1)]
    assert not head._forward_pre_hooks


def test_dropout_of_the_base_model_is_off(fresh_llama):
    plain = text_states(fresh_llama, texts())
    for layer in fresh_llama.model.layers:
        layer.self_attn.attention_dropout = 0.5
    before = torch.get_rng_state()
    assert np.array_equal(text_states(fresh_llama.train(), texts()), plain)
    assert torch.equal(torch.get_rng_state(), before)
    assert fresh_llama.training


def test_no_texts_and_empty_texts(tiny_llama):
    assert text_states(tiny_llama, []).shape == (0, 32)
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        text_states(tiny_llama, [np.array([5], np.int32), np.zeros(0, np.int32)])
