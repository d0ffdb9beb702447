"""Prompts read once, with room for whatever is to be read behind them.

One row a user. Tokens read later are further columns of the same row under a tree mask: each sees
its user's prompt and the columns that it is told to, so a prompt's keys and values exist once,
however many beams or titles hang on it. What all prompts begin with is read as one row for all.
Knows neither titles nor search.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from llmrec.decoding.beginning import Beginning, beginning_of
from llmrec.decoding.fixed_steps import FixedSteps, Held, Layers
from llmrec.model.forward import StepBatch, forward_logits
from llmrec.model.last_layer import last_block_at

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
ROWS = 32  # rows whose normaliser is taken at a time; in float32 they fit a processor's cache


@dataclass(frozen=True)
class Head:
    """The C tokens whose logits are wanted: their ids, ascending, and the column of each id (V,).

    Of other ids the column is meaningless.
    """

    ids: Tensor
    columns: Longs

    @staticmethod
    def of(tokens: npt.NDArray[np.integer], device: torch.device) -> "Head":
        """For these tokens, each of them once."""
        ids = np.unique(tokens).astype(np.int64)
        columns = np.zeros(int(ids[-1]) + 1, np.int64)
        columns[ids] = np.arange(len(ids))
        return Head(torch.from_numpy(ids).to(device), columns)


class SharedPrompt:
    """U prompts in a model's cache. `logits` (U, V) are those after each prompt.

    `beginning`: what the prompts of all batches begin with, as this very model read it; without one
    the batch's own is read. Raises ValueError where a prompt does not go on behind it.
    `steps`: what runs the passes behind the prompts, of this very model; it serves one SharedPrompt
    at a time, and the one before raises RuntimeError when it is read again.
    `head`: the tokens that V logits are of, by default the vocabulary; `columns` says where.
    Reading is in rounds: `restart` forgets all that was read behind the prompts.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[npt.NDArray[np.int32]],
        beginning: Beginning | None = None,
        steps: FixedSteps | None = None,
        head: Head | None = None,
    ) -> None:
        self._model, self._head = model, head
        self._held: Held | None = None
        self._device = next(model.parameters()).device
        self._lengths = np.array([len(p) for p in prompts], np.int64)
        self._cache: Any = Cache(layer_class_to_replicate=_RoomyLayer)
        begun = self._begin(prompts, beginning)
        rests = self._lengths - begun
        width = int(rests.max())
        ids = np.zeros((len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - rests[row] :] = prompt[begun:]  # left padded
        column, pads = np.arange(width), (width - rests)[:, None]
        self._real = np.ones((len(prompts), begun + width), bool)
        self._real[:, begun:] = column >= pads
        mask = np.tri(width, begun + width, begun, dtype=bool) & self._real[:, None, :]
        mask[:, column, begun + column] = True
        last = np.arange(len(ids)) * width + width - 1
        with last_block_at(model, torch.from_numpy(last).to(self._device)):
            self.logits = self._forward(ids, begun + np.maximum(column - pads, 0), mask, last)
        if steps is not None:
            self._held, self._cache = steps.hold(self._layers()), None

    def __len__(self) -> int:
        return len(self._lengths)

    @torch.inference_mode()
    def of(self, rows: Longs) -> "SharedPrompt":
        """The prompts of some rows (R,), as they were read; a copy that knows nothing behind."""
        part, at = copy(self), torch.from_numpy(rows).to(self._device)
        width = self._real.shape[1]
        part._cache = _filled(
            (keys[at, :, :width], values[at, :, :width]) for keys, values in self._layers()
        )
        part._held = None
        part._lengths, part._real = self._lengths[rows], self._real[rows]
        part.logits = self.logits[at]
        return part

    def columns(self, tokens: Longs) -> Tensor:
        """The columns of tokens (C,) in all logits, on their device."""
        at = tokens if self._head is None else self._head.columns[tokens]
        return torch.from_numpy(at).to(self._device)

    def restart(self) -> None:
        """Forget everything read behind the prompts."""
        if self._held is not None:  # what is read next is written over it
            return
        behind = self._cache.get_seq_length() - self._real.shape[1]
        if behind:
            self._cache.crop(-behind)

    @torch.inference_mode()
    def read(self, tokens: Longs, depth: Longs | int, sees: Bools, at: Longs) -> Tensor:
        """(T, V) logits after the tokens at flat places `at` (T,) of `tokens` (U, W).

        `depth`: how many tokens stand between the prompt and each of them on its path. sees
        (U, W, G + W): which of the G columns read so far, and of the new ones, each looks at.
        """
        positions = np.broadcast_to(self._lengths[:, None] + depth, tokens.shape)
        prompt = np.broadcast_to(self._real[:, None, :], (*tokens.shape, self._real.shape[1]))
        return self._forward(tokens, positions, np.concatenate([prompt, sees], axis=2), at)

    def read_nothing(self) -> None:
        """A pass that changes nothing, where other processes do one: sharded models demand it."""
        self.restart()
        users = len(self)
        none = np.zeros(0, np.int64)
        self.read(np.zeros((users, 1), np.int64), 0, np.ones((users, 1, 1), bool), none)
        self.restart()

    def _begin(self, prompts: Sequence[npt.NDArray[np.int32]], given: Beginning | None) -> int:
        """Take over what is read already of each prompt; returns how many tokens that are."""
        beginning = beginning_of(self._model, prompts) if given is None else given
        if beginning is None:
            return 0
        beginning.require(prompts)
        self._cache = _filled(
            (keys.expand(len(prompts), -1, -1, -1), values.expand(len(prompts), -1, -1, -1))
            for keys, values in beginning.layers
        )
        return len(beginning.tokens)

    def _layers(self) -> Layers:
        if self._held is not None:
            return self._held.layers()
        return [(layer.keys, layer.values) for layer in self._cache.layers]

    def _forward(self, ids: Longs, positions: Longs, mask: Bools, at: Longs) -> Tensor:
        if self._held is not None:
            return self._held.read(ids, positions, mask, at, self._ids)
        arrays = (ids, np.array(positions), mask[:, None], at)
        batch = StepBatch(*(torch.from_numpy(a) for a in arrays)).to(self._device)
        return forward_logits(self._model, batch, self._cache, self._ids)

    @property
    def _ids(self) -> Tensor | None:
        return None if self._head is None else self._head.ids


class _RoomyLayer(DynamicLayer):
    """Keys and values of one layer, (U, heads, columns, width), with room behind them.

    New columns are written into the room; transformers' own layer copies all columns in each pass.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Add columns and return all."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = [key_states[:, :, :0], value_states[:, :, :0]]
        if end > self._rooms[0].shape[2]:
            self._rooms = [
                _roomier(self.keys, key_states, end),
                _roomier(self.values, value_states, end),
            ]
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, begin:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)
        return self.keys, self.values


def _roomier(held: Tensor, like: Tensor, end: int) -> Tensor:
    """Room for `end` columns and half as many more, with what is `held` in front."""
    users, heads, _, width = like.shape
    room = like.new_empty((users, heads, end + end // 2, width))
    if held.numel():
        room[:, :, : held.shape[2]] = held
    return room


def _filled(layers: Iterable[tuple[Tensor, Tensor]]) -> Cache:
    """A cache that holds copies of the keys and values of each layer."""
    cache = Cache(layer_class_to_replicate=_RoomyLayer)
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def normalisers(logits: Tensor) -> Tensor:
    """(T,) float32 log-sum-exp of each row of `logits` (T, V)."""
    return torch.cat([torch.logsumexp(rows.float(), dim=-1) for rows in logits.split(ROWS)])
