"""Attention under a mask that copies no keys and no values.

transformers' sdpa copies a layer's keys and values to all query heads once it is given a mask, and
makes numbers of a boolean mask in every layer. Here the query heads that share keys and values
stand below each other as further queries of these, under a mask that is made once a pass for all
layers. Without a mask attention is transformers' own. For training there is FlexAttention besides,
which is told in blocks of 128 tokens what to leave out, and makes no numbers of what is seen.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llmrec.errors import RecipeError

TREE_ATTENTION, TREE_BLOCKS = "llmrec_tree", "llmrec_tree_blocks"
WIDTH = 64  # rows that are read in blocks are a multiple of it wide, so that shapes are few


def with_tree_attention(model: Any) -> Any:
    """The model, its attention set to this if its code lets that be chosen; else left at sdpa."""
    if model._supports_attention_backend:
        model.set_attn_implementation(TREE_ATTENTION)
    return model


def stacked_mask(config: Any, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, G * S, C) what is added to the scores, of a boolean mask (B, 1, S, C).

    G query heads share each head of keys and values; 0 where a query sees, else minus infinity.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    groups = heads // (getattr(text, "num_key_value_heads", None) or heads)
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    stacked = added.masked_fill_(~mask, float("-inf")).repeat(1, 1, groups, 1)
    torch._dynamo.maybe_mark_dynamic(stacked, [2, 3])  # a compiled model takes masks of any size
    return stacked


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: query (B, H, S, D), key and value (B, H / G, C, D).

    A mask that is not stacked for this layer's G, or scores that are more than products under a
    mask, are left to transformers.
    """
    users, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None or attention_mask.shape[2] == length:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    more = settings.get("softcap") is not None or settings.get("position_bias") is not None
    if more or attention_mask.shape[2] != groups * length:
        plain = attention_mask[:, :, :length]
        return sdpa_attention_forward(module, query, key, value, plain, **settings)
    # Autocast makes queries what the mask is; a copy for each layer would be kept for the way back.
    cast = torch.is_autocast_enabled(query.device.type)
    found = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(users, -1, groups * length, width),
        key,
        value,
        attn_mask=attention_mask if cast else attention_mask.to(query.dtype),
        dropout_p=settings.get("dropout", 0.0),
        scale=settings.get("scaling"),
    )
    return found.reshape(users, heads, length, -1).transpose(1, 2).contiguous(), None


def with_tree_blocks(model: nn.Module) -> nn.Module:
    """The model, whole trees read under a mask in blocks. Raises RecipeError where it cannot be."""
    decoder = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    if not (decoder._supports_attention_backend and decoder._supports_flex_attn):
        raise RecipeError(
            f"model.attn_implementation: {decoder.config.model_type} cannot be read by "
            "flex_attention; leave it at sdpa"
        )
    decoder.set_attn_implementation(TREE_BLOCKS)
    return model


def reads_blocks(model: nn.Module) -> bool:
    """Whether it was made to by `with_tree_blocks`."""
    decoders = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    return any(decoder.config._attn_implementation == TREE_BLOCKS for decoder in decoders)


def block_mask(spans: Tensor) -> BlockMask:
    """The mask of trees, of their spans (B, 2, S): a token sees those whose span it lies in."""
    place, end = spans[:, 0], spans[:, 1]

    def sees(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at = place[row, query]
        return (place[row, key] <= at) & (at <= end[row, key])

    rows, length = place.shape
    return create_block_mask(
        sees, rows, None, length, length, device=str(spans.device), _compile=spans.is_cuda
    )


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """`tree_attention` where the mask is one of blocks; what searches brings another."""
    if isinstance(attention_mask, BlockMask):
        found: tuple[Tensor, Tensor | None] = flex_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return found
    return tree_attention(module, query, key, value, attention_mask, **settings)


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
AttentionInterface.register(TREE_BLOCKS, block_attention)
AttentionMaskInterface.register(TREE_BLOCKS, sdpa_mask)
