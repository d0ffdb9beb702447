"""Training passes launched as CUDA graphs: the decoder's body forward and backward, once a shape.

A step of a small model over a few hundred tokens waits for thousands of launches, whatever is in
it. Here its body (all but the head) is captured for each shape of a batch, forward and backward
apart, so that a step is two launches, the head and the loss. Shapes are few because batches are
padded (see `padded`). Off CUDA the same passes run without graphs. Knows neither losses nor titles.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from llmrec.errors import RecipeError
from llmrec.model.forward import decoder_of
from llmrec.model.graphs import Graphs, graphs_on

MULTIPLE = 32  # the width of a batch that graphs read is a multiple of it
SWITCH = "model.cuda_graphs"


def padded(batch: dict[str, Any], rows: int, multiple: int = MULTIPLE) -> dict[str, Any]:
    """A Softmax's batch of at most `rows` rows as one of just so many, a `multiple` wide.

    What is added sees itself alone, is seen by nothing and predicts nothing.
    """
    found, width = batch["input_ids"].shape
    wide = -(-width // multiple) * multiple
    ids, positions = batch["input_ids"].new_zeros((2, rows, wide))
    spans = torch.arange(wide, dtype=batch["spans"].dtype).repeat(rows, 2, 1)
    ids[:found, :width] = batch["input_ids"]
    positions[:found, :width] = batch["position_ids"]
    spans[:found, :, :width] = batch["spans"]
    at = batch["at"] // width * wide + batch["at"] % width
    return {**batch, "input_ids": ids, "position_ids": positions, "spans": spans, "at": at}


def launch_as_graphs(model: nn.Module) -> None:
    """Let the body of `model` be read by captured passes wherever gradients are wanted."""
    body = decoder_of(model)
    body.forward = _Body(body, body.forward)


@dataclass(frozen=True)
class _Pass:
    """One shape: what it reads, what it writes, and how each direction is run again."""

    inputs: tuple[Tensor, ...]  # ids, positions, mask
    hidden: Tensor  # (B, S, D)
    given: Tensor  # (B, S, D) the gradient of what follows, by `hidden`
    gradients: Tensor  # of all trained weights, end to end
    forward: Callable[[], None]
    backward: Callable[[], None]


class _Body:
    """Stands for a decoder's forward: the same outputs, by graphs where gradients are wanted."""

    def __init__(self, body: nn.Module, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._weights = tuple(p for p in body.parameters() if p.requires_grad)
        if len({p.dtype for p in self._weights}) != 1:
            raise RecipeError(f"{SWITCH} needs trained weights of one type; set {SWITCH}=false")
        self._graphs: Graphs | None = None
        self._passes: dict[Any, _Pass] = {}

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        """As the decoder's own forward."""
        trees = input_ids is not None and attention_mask is not None and attention_mask.ndim == 4
        if not torch.is_grad_enabled() or past_key_values is not None or not trees:
            return self._forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **others,
            )
        inputs = (input_ids, position_ids, attention_mask)
        return BaseModelOutputWithPast(last_hidden_state=self._read(inputs))

    def _read(self, inputs: tuple[Tensor, ...]) -> Tensor:
        device = inputs[0].device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = (inputs[0].shape, inputs[2].shape, inputs[2].dtype, autocast)
        known = self._passes.get(key)
        if known is None:
            # Weights that autocast keeps for later would be those of this step for ever.
            fresh = torch.autocast(device, autocast, cache_enabled=False) if autocast else None
            with fresh or nullcontext():
                known = self._passes[key] = self._captured(inputs)
        for mine, tensor in zip(known.inputs, inputs, strict=True):
            mine.copy_(tensor)
        return _Replay.apply(known, *self._weights)

    def _captured(self, inputs: tuple[Tensor, ...]) -> _Pass:
        ids, positions, mask = static = tuple(x.clone() for x in inputs)
        weights = self._weights
        last: list[Tensor] = []  # the states of the newest pass, with what leads back from them

        def read() -> Tensor:
            with torch.enable_grad():
                return self._forward(
                    input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
                ).last_hidden_state

        hidden = torch.empty_like(read().detach())
        given = torch.zeros_like(hidden)
        gradients = weights[0].new_empty(sum(p.numel() for p in weights))

        def forward() -> None:
            last[:] = [read()]
            hidden.copy_(last[0].detach())

        def backward() -> None:
            found = torch.autograd.grad(last.pop(), weights, given, materialize_grads=True)
            torch.cat([g.reshape(-1) for g in found], out=gradients)

        def both() -> None:
            forward()
            backward()

        if self._graphs is None:
            self._graphs = graphs_on(ids.device, SWITCH)
        if self._graphs is None:
            return _Pass(static, hidden, given, gradients, forward, backward)
        # The second capture goes back along what the first one left.
        ahead = self._graphs.captured(forward, warm=both)
        back = self._graphs.captured(backward, warm=lambda: None)
        return _Pass(static, hidden, given, gradients, ahead, back)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, known: _Pass, *weights: Tensor) -> Tensor:
        ctx.known, ctx.shapes = known, [p.shape for p in weights]
        known.forward()
        return known.hidden.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        known = ctx.known
        known.given.copy_(gradient)
        known.backward()
        # A copy: the next pass of this shape writes over its own.
        parts = known.gradients.clone().split([shape.numel() for shape in ctx.shapes])
        return None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))
