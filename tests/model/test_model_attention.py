"""Attention over stacked query heads is transformers' own, to the last rounding."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmrec.errors import RecipeError
from llmrec.model.attention import (
    TREE_ATTENTION,
    block_mask,
    reads_blocks,
    stacked_mask,
    tree_attention,
    with_tree_blocks,
)
from llmrec.model.forward import StepBatch, collate, forward_logits, mask_for
from llmrec.text.tree import Segment, TokenTree

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


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
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    batch = StepBatch(tokens, tokens, drawn_mask(1, 4, 4), tokens[0])
    assert mask_for(fresh_llama, batch).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert mask_for(fresh_llama, batch).dtype == torch.bfloat16


def drawn_trees(count):
    """Trees of like shapes with other tokens: a stem, two branches, one of them branching again."""
    rng = np.random.default_rng(5)
    trees = []
    for _ in range(count):
        lengths, parents = rng.integers(2, 40, 5), (-1, 0, 0, 2, 2)
        parts = [rng.integers(3, 50, size).astype(np.int32) for size in lengths]
        trees.append(TokenTree(tuple(map(Segment, parts, parents))).flatten())
    return trees


def test_a_mask_in_blocks_is_the_mask():
    trees = drawn_trees(3)
    batch = collate(trees, [tree.predictors for tree in trees])
    found = block_mask(batch.spans)
    size = batch.mask.shape[-1]
    rows, places = torch.arange(3)[:, None, None], torch.arange(size)
    seen = found.mask_mod(rows, 0, places[:, None], places)
    torch.testing.assert_close(seen, batch.mask[:, 0])
    assert tuple(found.shape) == (3, 1, size, size)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_a_family_reads_trees_in_blocks_as_under_sdpa(tiny_model, device):
    """Gradients too where the device has them: FlexAttention has none on a CPU."""
    trees, model = drawn_trees(3), copy.deepcopy(tiny_model).to(device)
    batch = collate(trees, [tree.predictors for tree in trees]).to(device)
    if model.config.model_type == "gpt2":
        with pytest.raises(RecipeError, match="gpt2 cannot be read by flex_attention"):
            with_tree_blocks(model)
        return
    found = []
    for attend in (lambda model: model, with_tree_blocks):
        model = attend(model)
        assert reads_blocks(model) == (attend is with_tree_blocks)
        with torch.set_grad_enabled(device == "cuda"), torch.compiler.set_stance("force_eager"):
            logits = forward_logits(model, batch)
        gradients = []
        if device == "cuda":
            logits.float().log_softmax(-1)[:, 7].sum().backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            model.zero_grad()
        found.append([logits, *gradients])
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # a search's passes have a mask that is no tree's
        mask = drawn_mask(2, 6, 6) | torch.eye(6, dtype=torch.bool)
        tokens = torch.arange(6).expand(2, 6)
        step = StepBatch(tokens, tokens, mask, torch.arange(12)).to(device)
        ours = forward_logits(model, step)
        model.set_attn_implementation(TREE_ATTENTION)
        torch.testing.assert_close(forward_logits(model, step), ours, rtol=1e-5, atol=1e-5)


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
