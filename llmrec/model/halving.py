"""The optimiser step in smaller pieces where memory runs out.

A step is begun again with twice as many pieces of half as many rows: its loss, its gradient and the
number of steps stay what they were. Knows batches and gradients, no loss and no row.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from llmrec.errors import LlmrecError
from llmrec.model.memory import ran_out, release

log = logging.getLogger("llmrec")
Batch = dict[str, Any]


class HalvingTrainer(Trainer):
    """A Trainer whose micro-batches are cut into `pieces` each, more when memory runs out.

    `begin_step` is given what was fetched for a step; `training_step` then learns its micro-batches
    in their order, whatever it is handed. Subclasses say what a piece of one is, what a step needs
    before it is learned, and what else learning adds to. Of several processes none can begin again
    alone: there the error is raised.
    """

    pieces = 1

    @abstractmethod
    def piece_of(self, fetched: Batch) -> Batch:
        """The tensors of some fetched rows."""

    @abstractmethod
    def weigh_step(self, batches: list[Batch]) -> None:
        """Called with all pieces of a step before they are learned, and again where it is cut
        anew."""

    @abstractmethod
    def taking_back(self) -> Callable[[], None]:
        """Called as a step begins; what it gives takes back what the step has added to since."""

    def begin_step(self, fetched: list[Batch]) -> list[list[Batch]]:
        """The step's micro-batches as pieces, in their order."""
        self._fetched, self._at = fetched, 0
        self._random = _random_states()
        self._take_back = self.taking_back()
        while True:
            try:
                self._micro = [self._pieces_of(one) for one in fetched]
                self.weigh_step([piece for pieces in self._micro for piece in pieces])
                return self._micro
            except (RuntimeError, MemoryError) as error:
                self._require_smaller(error)
            self._halve()

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of the step's next micro-batch, learned piece by piece."""
        at, self._at = self._at, self._at + 1
        first = at
        while True:
            try:
                for number in range(first, at + 1):  # more than one only where it begins again
                    losses = [
                        super(HalvingTrainer, self).training_step(model, piece, num_items_in_batch)
                        for piece in self._micro[number]
                    ]
                return torch.stack(losses).sum()
            except (RuntimeError, MemoryError) as error:
                self._require_smaller(error)
            self._halve()
            model.zero_grad()
            self._take_back()
            _set_random_states(self._random)
            first = 0
            self.begin_step(self._fetched)
            self._at = at + 1

    def _pieces_of(self, fetched: Batch) -> list[Batch]:
        rows = len(next(iter(fetched.values())))
        size = -(-rows // self.pieces)
        return [
            self.piece_of({name: value[i : i + size] for name, value in fetched.items()})
            for i in range(0, rows, size)
        ]

    def _rows(self) -> int:
        return max(len(next(iter(one.values()))) for one in self._fetched)

    def _require_smaller(self, error: BaseException) -> None:
        """Raise the error again unless less memory would help and can be had."""
        if not ran_out(error) or self.args.world_size > 1:
            raise error
        if self.pieces >= self._rows():
            raise LlmrecError(
                f"memory ran out at step {self.state.global_step + 1} with one training row at a "
                f"time ({' '.join(str(error).split())[:200]}); lower prompt.max_tokens, or set "
                "train.gradient_checkpointing=true or model.quantization"
            ) from error

    def _halve(self) -> None:
        release()
        self.pieces *= 2
        rows = -(-self._rows() // self.pieces)
        log.warning(
            "train: memory ran out at step %d; going on with %d rows at a time and %d times the "
            "accumulation, so that a step stays what it is",
            self.state.global_step + 1,
            rows,
            self.pieces,
        )


def _random_states() -> tuple[Tensor, list[Tensor]]:
    cuda = torch.cuda.is_available()
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else []


def _set_random_states(states: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
