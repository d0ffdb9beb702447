"""States of texts: where a title, or what was written for one, lies in the untuned base model.

A text's state is the last layer's output (after the final norm, what the head reads) at its last
token, or its mean over all tokens. The model is called through its own forward, so wrappers do what
they do, and the head is computed at one position a batch. Knows neither titles nor distances.
Source: BIGRec (arXiv 2308.08434), SOFT (arXiv 2505.20771).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llmrec.data.batching import batches
from llmrec.model.forward import TreeBatch, collate, forward_logits
from llmrec.model.loading import adapter_off
from llmrec.text.tree import Ids, Segment, TokenTree


@torch.inference_mode()
def text_states(
    model: nn.Module, texts: Sequence[Ids], batch_tokens: int = 4096, mean: bool = False
) -> npt.NDArray[np.float32]:
    """(N, d) states of N texts, each a row of token ids, in the untuned base model.

    `mean`: over all tokens of a text, else at its last one.

    A batch holds at most `batch_tokens` tokens with padding, or one longer text. Adapters are off
    and the model in evaluation mode only while this runs. Raises ValueError for an empty text.
    """
    for index, text in enumerate(texts):
        if len(text) == 0:
            raise ValueError(f"text {index} has no tokens; a state needs a last token")
    head = _head(model)
    states = np.zeros((len(texts), head.in_features), np.float32)
    device = next(model.parameters()).device
    with adapter_off(model):  # which also puts back each module's mode
        model.eval()
        for rows in batches(list(map(len, texts)), tokens=batch_tokens, shortest_first=True):
            trees = [TokenTree((Segment(texts[row]),)).flatten() for row in rows]
            lengths = np.array([len(texts[row]) for row in rows])
            at = [np.arange(n) if mean else np.array([n - 1]) for n in lengths]
            found = _states_at(model, head, collate(trees, at).to(device))
            if mean:
                begins = np.cumsum(lengths) - lengths
                found = np.add.reduceat(found, begins) / lengths[:, None]
            states[rows] = found
    return states


def _states_at(model: nn.Module, head: nn.Module, batch: TreeBatch) -> npt.NDArray[np.float32]:
    """(T, d) what the head would read at the batch's chosen positions."""
    seen: list[torch.Tensor] = []

    def look(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0].reshape(-1, arguments[0].shape[-1])[batch.at])

    handle = head.register_forward_pre_hook(look)
    try:  # hooks run in the order they came: this one sees all positions, the head only the first
        forward_logits(model, replace(batch, at=batch.at[:1]))
    finally:
        handle.remove()
    return seen[0].float().cpu().numpy()


def _head(model: nn.Module) -> Any:
    """The output layer of the model, which may lie inside distributed wrappers."""
    inside = next(m for m in model.modules() if hasattr(m, "get_output_embeddings"))
    return inside.get_output_embeddings()
