"""What the trainer hangs onto Hugging Face's loop."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from llmrec import stopping
from llmrec.errors import LlmrecError
from llmrec.progress import Progress

Losses = list[tuple[Tensor, Tensor]]  # of the step's micro-batches, with the numbers of their rows


def require_finite(
    losses: Losses, gradients: list[tuple[str, Tensor]], step: int, updated: bool = False
) -> None:
    """Raise an `LlmrecError` that names the rows of a loss, or the gradient, that is no number.

    `gradients`: names and sums. One wait for a GPU, however many there are. `updated`: the weights
    already have what is looked at.
    """
    found = [loss.float() for loss, _ in losses] + [one.float() for _, one in gradients]
    if not found:
        return
    values = torch.stack([one.to(found[0].device) for one in found]).tolist()
    for value, (_, rows) in zip(values, losses, strict=False):
        if not math.isfinite(value):
            raise LlmrecError(
                f"the loss is {value} at step {step}, in training rows "
                f"{rows.tolist()}; nothing was updated with it and the last checkpoint is "
                "good. Lower train.learning_rate or look at these rows"
            )
    kept = "the last checkpoint is good" if updated else "the weights were not updated"
    for value, (name, _) in zip(values[len(losses) :], gradients, strict=True):
        if not math.isfinite(value):
            raise LlmrecError(
                f"the gradient of {name} is not finite at step {step}; {kept}. "
                "Lower train.learning_rate or train.max_grad_norm"
            )


class Finite(TrainerCallback):
    """Stops the run before a loss or gradient that is no number reaches the weights.

    `losses` gives those of the step's micro-batches. `norm` gives that of all gradients where an
    engine keeps them and has updated the weights by now, before any checkpoint, and else None.
    """

    def __init__(
        self, losses: Callable[[], Losses], norm: Callable[[], float | None] = lambda: None
    ) -> None:
        self.losses, self.norm = losses, norm

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        step = state.global_step + 1
        if (norm := self.norm()) is not None:
            return require_finite([], [("all weights", torch.tensor(norm))], step, updated=True)
        named = [
            (name, parameter.grad)
            for name, parameter in context["model"].named_parameters()
            if parameter.grad is not None
        ]
        # One sum for each, however many gradients there are.
        sums = torch._foreach_norm([g for _, g in named], 1, torch.float32) if named else []
        # Of a gradient in shards each process looks at its own, which is no exchange for each.
        own = [one.to_local() if hasattr(one, "to_local") else one for one in sums]
        names = [name for name, _ in named]
        return require_finite(self.losses(), [*zip(names, own, strict=True)], step)


class Epochs(TrainerCallback):
    """Calls `begin` and `end` at the two ends of an epoch."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self.begin, self.end = begin, end

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begin()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end()


class Watched(TrainerCallback):
    """Tells how far training is behind every step, once `told` is there, with the last loss."""

    def __init__(self) -> None:
        self.told: Progress | None = None
        self._note = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._note = f"loss {logs['loss']:.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.told is not None:
            self.told.at(state.global_step, state.max_steps, self._note)


class Stopping(TrainerCallback):
    """On a wish to stop, saves a checkpoint at the end of the step and stops there.

    The last step of an epoch is left to what ends the epoch, the last of all to the end. `asked`:
    the exit code of a wish that any of the processes heard, the same in all of them; None without.
    Comes after all other callbacks.
    """

    def __init__(self, asked: Callable[[], int | None]) -> None:
        self.asked = asked
        self._code: int | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        code = self.asked()
        if code is None:
            return
        is_last = state.global_step >= state.max_steps
        ends_epoch = abs(state.epoch - round(state.epoch)) < 1e-6
        if is_last or not ends_epoch:
            control.should_save = True
            self._code = None if is_last else code

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        code = self.asked()
        if code is not None and state.global_step < state.max_steps:
            control.should_save = True
            self._code = code

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._code is not None:
            raise stopping.Stopped(self._code)
