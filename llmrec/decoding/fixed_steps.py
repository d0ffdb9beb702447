"""Passes behind prompts at fixed shapes in fixed memory; on a GPU each is one CUDA graph.

A pass over a few hundred columns is bound by launching hundreds of kernels, not by arithmetic. A
graph launches them at once, but on the very tensors that it was captured with. So shapes are
rounded up, what is padding or empty is masked, and batches take turns in one room of keys and
values. Off CUDA the same passes run without graphs. Knows neither titles nor search.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from llmrec.model.forward import StepBatch, forward_logits
from llmrec.model.graphs import graphs_on

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Layers = Sequence[tuple[Tensor, Tensor]]  # keys and values (U, heads, columns, width) of each layer
BEHIND = 256  # columns that a new room has behind the prompts, at least
MULTIPLE = 64  # a room's columns are a multiple of it
LEAST = 8  # columns and logits of a pass
SWITCH = "decode.cuda_graphs"


class FixedSteps:
    """The fixed memory of one model in one state: its weights, its adapters on or off.

    For many batches in turn. There is one room, so a SharedPrompt made with it ends the one before.
    Weights may change in place; a state in which other weights are used needs its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._room: _Room | None = None
        self._turn = 0

    def hold(self, layers: Layers) -> "Held":
        """Copy the prompts' keys and values into the room; whose they were until now is ended."""
        users, _, prompt, _ = layers[0][0].shape
        if self._room is None or not self._room.suits(users, prompt + BEHIND):
            self._room = None  # its memory goes back first
            self._room = _Room(self._model, layers, users, prompt + BEHIND)
        self._room.fill(layers)
        self._turn += 1
        return Held(self, self._turn, users, prompt)

    def room_of(self, turn: int) -> "_Room":
        """The room as the batch of that turn left it. Raises RuntimeError once another holds it."""
        if self._room is None or turn != self._turn:
            raise RuntimeError(
                "these prompts gave their memory to a later batch of the same FixedSteps; finish "
                "with one batch before the next is read, or give each its own FixedSteps"
            )
        return self._room

    def enlarge(self, prompt: int, columns: int) -> "_Room":
        """A room of twice as much behind `prompt` columns, and `columns` at least; what is held
        moves there."""
        old = self.room_of(self._turn)
        wanted = max(columns, prompt + 2 * (old.columns - prompt))
        self._room = _Room(self._model, old.layers, old.users, wanted)
        self._room.fill(old.layers)
        return self._room


@dataclass(frozen=True)
class Held:
    """U prompts of `prompt` columns, padding counted, in the room of a FixedSteps."""

    steps: FixedSteps
    turn: int
    users: int
    prompt: int

    def layers(self) -> Layers:
        """Keys and values of the prompts."""
        room = self.steps.room_of(self.turn)
        return [
            (keys[: self.users, :, : self.prompt], values[: self.users, :, : self.prompt])
            for keys, values in room.layers
        ]

    def read(
        self, ids: Longs, positions: Longs, mask: Bools, at: Longs, head: Tensor | None = None
    ) -> Tensor:
        """(T, V) logits at flat places `at` of new columns (U, W), the caller's to keep.

        mask (U, W, C): the C - W columns before are those that stay; what was read behind them is
        written over. `head`: the ids of the V tokens, by default the vocabulary.
        """
        room = self.steps.room_of(self.turn)
        columns = mask.shape[2] - ids.shape[1] + rounded(ids.shape[1])
        if columns > room.columns:
            room = self.steps.enlarge(self.prompt, columns)
        return room.read(ids, positions, mask, at, head)


def rounded(count: int) -> int:
    """How many columns are read for `count`: a multiple of LEAST, and at most a quarter more where
    that is more than a few."""
    step = max(LEAST, (1 << (count - 1).bit_length()) // 8)
    return -(-count // step) * step


@dataclass(frozen=True)
class _Pass:
    """What one shape reads, what it writes, and how it is run again."""

    inputs: tuple[Tensor, ...]  # ids, positions, mask, at, columns
    out: Tensor  # (T, V)
    again: Callable[[], None]


class _Room:
    """Keys and values of `users` rows and `columns` columns, and the passes that run in it."""

    def __init__(self, model: nn.Module, like: Layers, users: int, columns: int) -> None:
        self._model, self.users = model, users
        self.columns = -(-columns // MULTIPLE) * MULTIPLE
        # Zeros: what is masked weighs 0, but 0 times what was never written may be no number.
        self.layers: Layers = [
            (
                keys.new_zeros((users, keys.shape[1], self.columns, keys.shape[3])),
                values.new_zeros((users, values.shape[1], self.columns, values.shape[3])),
            )
            for keys, values in like
        ]
        self._cache: Any = Cache(layers=[_FixedLayer(*pair) for pair in self.layers])
        self._device = like[0][0].device
        self._graphs = graphs_on(self._device, SWITCH)
        self._passes: dict[tuple[int, int, int], _Pass] = {}
        self._outs: dict[torch.Size, Tensor] = {}  # (T, V) by both; a pass leaves its logits there

    def suits(self, users: int, columns: int) -> bool:
        """Whether so much fits and is at least a quarter of it: more would be computed in vain."""
        fits = users <= self.users and columns <= self.columns
        return fits and 4 * users * columns >= self.users * self.columns

    def fill(self, layers: Layers) -> None:
        """Copy keys and values into the first rows and columns."""
        for mine, given in zip(self.layers, layers, strict=True):
            for room, states in zip(mine, given, strict=True):
                room[: states.shape[0], :, : states.shape[2]] = states

    def read(
        self, ids: Longs, positions: Longs, mask: Bools, at: Longs, head: Tensor | None
    ) -> Tensor:
        """As `Held.read`. Padding goes where the next columns will, and sees itself alone."""
        users, width = ids.shape
        before, wide = mask.shape[2] - width, rounded(width)
        count = max(LEAST, 1 << (len(at) - 1).bit_length())
        tokens, places = np.zeros((2, self.users, wide), np.int64), np.zeros(count, np.int64)
        tokens[:, :users, :width] = ids, positions
        places[: len(at)] = at // width * wide + at % width
        columns = before + np.arange(wide)
        sees = np.zeros((self.users, wide, self.columns), bool)
        sees[:, range(wide), columns] = True
        sees[:users, :width, : before + width] = mask
        given = [torch.from_numpy(x) for x in (*tokens, sees[:, None], places, columns)]
        narrow = 0 if head is None else len(head)
        known = self._passes.get((wide, count, narrow))
        if known is None:
            known = self._first([x.to(self._device) for x in given], head)
            self._passes[wide, count, narrow] = known
        else:
            for mine, array in zip(known.inputs, given, strict=True):
                mine.copy_(array)
            known.again()
        return known.out[: len(at)].clone()

    def _first(self, inputs: Sequence[Tensor], head: Tensor | None) -> _Pass:
        """The pass of a new shape; it has run."""
        *batch, columns = inputs
        run = partial(_logits, self._model, self._cache, StepBatch(*batch), columns, head)
        logits = run()
        # One for all passes of so many logits and outside of the graphs' memory: graphs that leave
        # nothing in that may share it, whatever order they run in.
        out = self._outs.setdefault(logits.shape, torch.empty_like(logits))
        out.copy_(logits)
        again = partial(_write, out, run)  # knows no room: memory goes back with the last name
        return _Pass(tuple(inputs), out, self._graphs.captured(again) if self._graphs else again)


def _logits(
    model: nn.Module, cache: Any, batch: StepBatch, columns: Tensor, head: Tensor | None
) -> Tensor:
    for layer in cache.layers:
        layer.columns = columns
    return forward_logits(model, batch, cache, head)


def _write(out: Tensor, run: Callable[[], Tensor]) -> None:
    out.copy_(run())


class _FixedLayer(DynamicLayer):
    """Keys and values of one layer, (U, heads, C, width); new ones are written at `columns`."""

    columns: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new columns and return all of the room."""
        self.keys.index_copy_(2, self.columns, key_states)
        self.values.index_copy_(2, self.columns, value_states)
        return self.keys, self.values
