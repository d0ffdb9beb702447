"""Attention over stacked query heads is transformers' own, to the last rounding."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmrec.model.attention import TREE_ATTENTION, stacked_mask, tree_attention
from llmrec.model.forward import StepBatch, collate, forward_logits, mask_for
from llmrec.text.tree import Segment, TokenTree


class Layer(torch.nn.Module):
    """What attention asks of a layer."""

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


def drawn_mask(users, length, columns):
    mask = torch.rand(users, 1, length, columns, generator=torch.Generator().manual_seed(3)) < 0.4
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_formula(groups, dtype):
    torch.manual_seed(0)
    query = torch.randn(3, 4, 5, 8).to(dtype)
    key, value = torch.randn(2, 3, 4 // groups, 9, 8).to(dtype).unbind()
    mask = drawn_mask(3, 5, 9)
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=4 // groups)
    found, _ = tree_attention(
        Layer(groups), query, key, value, stacked_mask(config, mask, torch.float32), scaling=0.3
    )
    expected = torch.zeros(3, 5, 4, 8)
    for user in range(3):
        for head in range(4):
            keys, values = (x[user, head // groups].float() for x in (key, value))
            for at in range(5):
                seen = mask[user, 0, at]
                weights = torch.softmax(0.3 * keys[seen] @ query[user, head, at].float(), 0)
                expected[user, at, head] = weights @ values[seen]
    assert found.dtype == dtype
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(found.float(), expected, **close)


def test_a_layer_with_other_groups_reads_the_plain_mask():
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 4, 9, 8).unbind()
    mask = drawn_mask(2, 5, 9)
    stacked = stacked_mask(
        LlamaConfig(num_attention_heads=4, num_key_value_heads=2), mask, torch.float32
    )
    found, _ = tree_attention(Layer(1), query, key, value, stacked)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_scores_with_a_bias_of_their_own_keep_it():
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 2, 9, 8).unbind()
    mask, bias = drawn_mask(2, 5, 9), torch.randn(1, 4, 5, 9)
    stacked = stacked_mask(
        LlamaConfig(num_attention_heads=4, num_key_value_heads=2), mask, torch.float32
    )
    found, _ = tree_attention(Layer(2), query, key, value, stacked, position_bias=bias)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(2, 1),
        value.repeat_interleave(2, 1),
        attn_mask=bias.masked_fill(~mask, float("-inf")),
    )
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_a_family_reads_a_tree_as_under_sdpa(tiny_model):
    batch = StepBatch(
        torch.randint(3, 50, (2, 6)),
        torch.arange(6).expand(2, 6),
        drawn_mask(2, 6, 6) | torch.eye(6, dtype=torch.bool),
        torch.arange(12),
    )
    assert tiny_model.config._attn_implementation == TREE_ATTENTION
    with torch.no_grad():
        ours = forward_logits(tiny_model, batch)
        tiny_model.set_attn_implementation("sdpa")
        try:
            theirs = forward_logits(tiny_model, batch)
        finally:
            tiny_model.set_attn_implementation(TREE_ATTENTION)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_mask_has_the_type_that_queries_will_have(fresh_llama):
    mask = drawn_mask(1, 4, 4)
    assert mask_for(fresh_llama, mask).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert mask_for(fresh_llama, mask).dtype == torch.bfloat16


def test_padding_sees_itself_alone_and_nothing_sees_it():
    long = TokenTree((Segment(np.arange(3)), Segment(np.arange(2), 0), Segment(np.arange(2), 0)))
    short = TokenTree((Segment(np.arange(2)), Segment(np.arange(1), 0), Segment(np.arange(1), 0)))
    flats = [long.flatten(), short.flatten()]
    mask = collate(flats, [flat.predictors for flat in flats]).mask[:, 0].numpy()
    assert np.array_equal(mask[0], flats[0].mask)
    assert np.array_equal(mask[1, :4, :4], flats[1].mask)
    assert np.array_equal(mask[1, 4:], np.eye(7, dtype=bool)[4:])
    assert not mask[1, :4, 4:].any()


def test_a_saved_model_names_no_attention_of_ours(fresh_llama, tmp_path):
    fresh_llama.save_pretrained(tmp_path)
    assert TREE_ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert LlamaForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
