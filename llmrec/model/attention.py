"""Attention under a mask that copies no keys and no values.

transformers' sdpa copies a layer's keys and values to all query heads once it is given a mask, and
makes numbers of a boolean mask in every layer. Here the query heads that share keys and values
stand below each other as further queries of these, under a mask that is made once a pass for all
layers. Without a mask attention is transformers' own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TREE_ATTENTION = "llmrec_tree"


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


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
