"""A last block that works at some positions alone gives the logits there, and the same cache."""

import pytest
import torch
import transformers as tf
from transformers.cache_utils import DynamicCache

from llmrec.model import last_layer
from llmrec.model.attention import with_tree_attention
from llmrec.model.forward import StepBatch, forward_logits
from llmrec.model.last_layer import last_block_at
from llmrec.model.loading import Lora, with_new_lora

FAMILIES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma3_text",
    "phi3",
    "smollm3",
    "granite",
    "olmo2",
]


def tiny(family):
    torch.manual_seed(7)
    config = tf.AutoConfig.for_model(
        family,
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = with_tree_attention(tf.AutoModelForCausalLM.from_config(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


def batch_of(at):
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))
    places = torch.arange(7).expand(2, 7)
    mask = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7)
    return StepBatch(ids, places, mask, torch.tensor(at, dtype=torch.int64))


@torch.inference_mode()
def read(model, at, *, skipping):
    """Logits at `at`, all keys and values, and the rows that the last block's MLP saw."""
    cache, batch, rows = DynamicCache(), batch_of(at), []
    block = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[-1]
    inside = next(m for m in block.mlp.modules() if isinstance(m, torch.nn.Linear))
    handle = inside.register_forward_pre_hook(lambda _, a: rows.append(a[0][..., 0].numel()))
    if skipping:
        with last_block_at(model, batch.at):
            logits = forward_logits(model, batch, cache)
    else:
        logits = forward_logits(model, batch, cache)
    handle.remove()
    return logits, [t for layer in cache.layers for t in (layer.keys, layer.values)], rows


def assert_equal_where_asked(model, at, seen):
    full, kept, rows = read(model, at, skipping=False)
    less, held, fewer = read(model, at, skipping=True)
    assert (rows, fewer) == ([14], [seen])
    torch.testing.assert_close(less, full, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(held, kept, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    torch.testing.assert_close(read(model, at, skipping=False)[0], full, atol=0, rtol=0)  # closed


@pytest.mark.parametrize("at", [[6, 13], [12, 3, 4], []])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_cache_are_those_of_a_full_pass(family, at):
    assert_equal_where_asked(tiny(family), at, len(at))


def test_adapters_of_the_last_block_take_part():
    model = with_new_lora(tiny("llama"), Lora(r=4), seed=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(5))
    assert_equal_where_asked(model, [6, 13], 2)


def test_a_family_whose_code_is_not_known_is_read_in_full(monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(last_layer, "_READ", set())
    assert_equal_where_asked(model, [6, 13], 14)
