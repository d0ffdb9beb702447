"""The last block of a decoder does only what is needed.

Behind the last block's keys and values nothing looks at other columns: the output projection of its
attention and its MLP work row by row. Where only some positions predict, they need not run at the
others. Knows neither prompts nor caches.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

# Families whose code has been read: a block is used once a pass, and its `mlp` and
# `self_attn.o_proj` map rows to rows. It is the code that counts, not what a config calls itself.
_READ = {
    f"transformers.models.{family}.modeling_{family}"
    for family in (
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma3",
        "phi3",
        "smollm3",
        "granite",
        "olmo2",
    )
}


@contextmanager
def last_block_at(model: nn.Module, at: Tensor) -> Iterator[None]:
    """While open, only positions `at` (T,) of the B * S have a right output of the last block.

    Its keys and values are right everywhere. Any other family is read in full: this is a matter of
    speed alone. For passes without gradients.
    """
    block = _last_block(model)
    with ExitStack() as opened:
        for part in () if block is None else (block.self_attn.o_proj, block.mlp):
            opened.enter_context(_at_rows(part, at))
        yield


def _last_block(model: nn.Module) -> Any:
    """The last block of the decoder inside whatever wraps it; None where its code is not known."""
    for module in model.modules():
        if type(module).__module__ in _READ and isinstance(
            getattr(module, "layers", None), nn.ModuleList
        ):
            return module.layers[-1]
    return None


@contextmanager
def _at_rows(part: nn.Module, at: Tensor) -> Iterator[None]:
    """While open, `part` (B, S, D) to (B, S, E) runs at rows `at` alone; elsewhere it gives 0."""

    def gather(_: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        (given,) = arguments
        shape[:] = given.shape[:-1]
        return (given.flatten(0, 1)[at][None],)

    def scatter(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        spread = output.new_zeros((shape[0] * shape[1], output.shape[-1]))
        spread[at] = output[0]
        return spread.reshape(*shape, -1)

    shape: list[int] = []
    handles = part.register_forward_pre_hook(gather), part.register_forward_hook(scatter)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
