"""Reading TokenTrees with a Hugging Face decoder: batches, and logits where they are needed.

A batch is B flattened trees padded to S tokens; their mask is made where the model is. The head is
computed at chosen positions only, through the model's own forward, so that PEFT, DDP, FSDP and
DeepSpeed wrappers do what they do. Knows neither prompts nor losses nor search.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from llmrec.errors import RecipeError
from llmrec.model.attention import TREE_ATTENTION, TREE_BLOCKS, block_mask, stacked_mask
from llmrec.model.compiling import uncompiled
from llmrec.text.tree import FlatTree


@dataclass(frozen=True)
class TreeBatch:
    """B trees of at most S tokens, and the T positions whose next token matters.

    input_ids, position_ids (B, S) int64; spans (B, 2, S) int32, see FlatTree; at (T,) int64 indexes
    the B * S row positions that predict.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: Tensor
    at: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, 1, S, S) bool: row i may see column j. Made where the spans are."""
        place, end = self.spans[:, 0], self.spans[:, 1]
        query = place[:, :, None]
        return ((place[:, None] <= query) & (query <= end[:, None]))[:, None]

    def to(self, device: torch.device | str) -> "TreeBatch":
        """The same batch on another device."""
        return TreeBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.spans.to(device),
            self.at.to(device),
        )


@dataclass(frozen=True)
class StepBatch:
    """S tokens for each of B users behind what a cache holds, under a mask of their own.

    input_ids, position_ids (B, S) int64; mask (B, 1, S, C) bool over the C columns of the cache and
    of these tokens; at as in TreeBatch.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    at: Tensor

    def to(self, device: torch.device | str) -> "StepBatch":
        """The same batch on another device."""
        return StepBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.mask.to(device),
            self.at.to(device),
        )


def collate(trees: Sequence[FlatTree], predictors: Sequence[np.ndarray]) -> TreeBatch:
    """Pad B flat trees to one length; `predictors` (B arrays) index each tree's own tokens.

    Padding is marked by position, never by a token id: a pad sees itself alone and nothing sees it.
    """
    width = max(len(tree.input_ids) for tree in trees)
    ids = np.zeros((len(trees), width), np.int64)
    positions = np.zeros((len(trees), width), np.int64)
    spans = np.tile(np.arange(width, dtype=np.int32), (len(trees), 2, 1))
    at = []
    for row, tree in enumerate(trees):
        size = len(tree.input_ids)
        ids[row, :size] = tree.input_ids
        positions[row, :size] = tree.position_ids
        spans[row, :, :size] = tree.spans
        at.append(row * width + predictors[row].astype(np.int64))
    return TreeBatch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(spans),
        torch.from_numpy(np.concatenate(at)),
    )


def forward_logits(
    model: nn.Module, batch: TreeBatch | StepBatch, cache: Any = None, tokens: Tensor | None = None
) -> Tensor:
    """(T, V) logits at the batch's chosen positions, in the model's dtype.

    `cache`: a Hugging Face cache whose keys the mask's first columns stand for; it grows by S.
    `tokens` (C,): the ids whose logits are wanted, which gives (T, C).
    """
    with head_at(model, batch.at, tokens) as narrowed:
        output = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=mask_for(model, batch),
            past_key_values=cache,
            use_cache=cache is not None,
        )
    logits = output.logits
    logits = logits.reshape(-1, logits.shape[-1])
    return logits if tokens is None or narrowed else logits[:, tokens]


@contextmanager
def head_at(model: nn.Module, at: Tensor, tokens: Tensor | None = None) -> Iterator[bool]:
    """While open, the model's head sees only the hidden states at flat positions `at` (T,).

    `logits_to_keep` of transformers takes one set of columns for all rows; trees need their own.
    With `tokens` (C,) the head computes these ids' logits alone, where it is a plain linear layer
    that is not compiled; whether it does is what the context gives.
    """

    def select(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        return (hidden.reshape(-1, hidden.shape[-1])[at][None],)

    head = _inside(model).get_output_embeddings()
    narrowed = tokens is not None and type(head) is nn.Linear and uncompiled(model) is model
    before = head.__dict__.get("forward")

    def narrow(hidden: Tensor) -> Tensor:
        bias = None if head.bias is None else head.bias[tokens]
        return nn.functional.linear(hidden, head.weight[tokens], bias)

    handle = head.register_forward_pre_hook(select)
    if narrowed:
        head.forward = narrow
    try:
        yield narrowed
    finally:
        handle.remove()
        if narrowed and before is None:
            del head.forward
        elif narrowed:
            head.forward = before


def mask_for(model: nn.Module, batch: TreeBatch | StepBatch) -> Tensor | BlockMask:
    """The batch's mask (B, 1, S, C) in the form that the model's attention takes."""
    inner = _inside(model)
    kind = inner.config._attn_implementation
    if kind == TREE_BLOCKS and isinstance(batch, TreeBatch):
        return block_mask(batch.spans)
    mask = batch.mask
    if kind in (TREE_ATTENTION, TREE_BLOCKS):
        # In the type that queries will have, so that no layer makes a copy of its own.
        kind_of_device = mask.device.type
        autocast = torch.is_autocast_enabled(kind_of_device)
        dtype = torch.get_autocast_dtype(kind_of_device) if autocast else inner.dtype
        return stacked_mask(inner.config, mask, dtype)
    if kind == "sdpa":
        return mask
    if kind == "eager":
        lowest = torch.finfo(inner.dtype).min
        return torch.zeros(mask.shape, dtype=inner.dtype, device=mask.device).masked_fill_(
            ~mask, lowest
        )
    raise RecipeError(
        f"attention implementation {kind!r} takes no tree mask; load the model with "
        "attn_implementation='sdpa'"
    )


def require_tree_support(model: nn.Module, longest: int) -> None:
    """Raise RecipeError unless this model reads a tree of paths up to `longest` tokens exactly."""
    config = _inside(model).config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in kinds or (
        window is not None
        and getattr(config, "use_sliding_window", True)
        and not getattr(config, "layer_types", None)
    )
    if windowed and window is not None and longest > window:
        raise RecipeError(
            f"{config.model_type}: layers with a sliding window of {window} tokens cannot read "
            f"paths of {longest} under a tree mask; set prompt.max_tokens to {window} or less"
        )
    other = kinds - {"full_attention", "sliding_attention"}
    if other or "position_ids" not in inspect.signature(_base(model).forward).parameters:
        raise RecipeError(
            f"{config.model_type}: a model with {', '.join(sorted(other)) or 'no position_ids'} "
            "cannot read a token tree; choose a decoder with full attention in every layer"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise RecipeError(
            f"{config.model_type} reads at most {limit} tokens; prompt.max_tokens is {longest}"
        )


def _inside(model: nn.Module) -> Any:
    """The model inside a distributed wrapper."""
    return _inside(model.module) if isinstance(getattr(model, "module", None), nn.Module) else model


def _base(model: nn.Module) -> Any:
    inner = _inside(model)
    return inner.get_base_model() if hasattr(inner, "peft_config") else inner


def decoder_of(model: nn.Module) -> nn.Module:
    """All of the model but its head."""
    decoder: nn.Module = _base(model).get_decoder()
    return decoder
