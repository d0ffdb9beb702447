"""Prompts read once, with room for whatever is to be read behind them.

One row a user. Tokens read later are further columns of the same row under a tree mask: each sees
its user's prompt and the columns that it is told to, so a prompt's keys and values exist once,
however many beams or titles hang on it. Knows neither titles nor search.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import DynamicCache

from llmrec.model.forward import TreeBatch, forward_logits

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class SharedPrompt:
    """U prompts in a model's cache. `logits` (U, V) are those after each prompt.

    Reading is in rounds: `restart` forgets all that was read behind the prompts.
    """

    @torch.inference_mode()
    def __init__(self, model: nn.Module, prompts: Sequence[npt.NDArray[np.int32]]) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._lengths = np.array([len(p) for p in prompts], np.int64)
        self._width = int(self._lengths.max())
        self._cache: Any = DynamicCache()
        ids = np.zeros((len(prompts), self._width), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, self._width - len(prompt) :] = prompt  # left padded
        column, begins = np.arange(self._width), self._width - self._lengths
        self._real = column >= begins[:, None]
        mask = np.tri(self._width, dtype=bool) & self._real[:, None, :]
        mask[:, column, column] = True
        last = np.arange(len(ids)) * self._width + self._width - 1
        self.logits = self._forward(ids, np.maximum(column - begins[:, None], 0), mask, last)

    def __len__(self) -> int:
        return len(self._lengths)

    def restart(self) -> None:
        """Forget everything read behind the prompts."""
        behind = self._cache.get_seq_length() - self._width
        if behind:
            self._cache.crop(-behind)

    @torch.inference_mode()
    def read(self, tokens: Longs, depth: Longs | int, sees: Bools, at: Longs) -> torch.Tensor:
        """(T, V) logits after the tokens at flat places `at` (T,) of `tokens` (U, W).

        `depth`: how many tokens stand between the prompt and each of them on its path. sees
        (U, W, G + W): which of the G columns read so far, and of the new ones, each looks at.
        """
        positions = np.broadcast_to(self._lengths[:, None] + depth, tokens.shape)
        prompt = np.broadcast_to(self._real[:, None, :], (*tokens.shape, self._width))
        return self._forward(tokens, positions, np.concatenate([prompt, sees], axis=2), at)

    def _forward(self, ids: Longs, positions: Longs, mask: Bools, at: Longs) -> torch.Tensor:
        arrays = (ids, np.array(positions), mask[:, None], at)
        batch = TreeBatch(*(torch.from_numpy(a) for a in arrays)).to(self._device)
        return forward_logits(self._model, batch, self._cache)
