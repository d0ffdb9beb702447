"""What `torch.compile` asks of the trainer: a machine that can, and the model underneath.

Knows neither trees nor losses.
"""

from typing import Any

import torch
from accelerate.utils import is_compiled_module
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llmrec.errors import RecipeError


def require_compiler(device: torch.device | str, backend: str | None = None) -> None:
    """Raise RecipeError unless `torch.compile` works on `device`; seconds, once a machine.

    `backend`: torch's name for what compiles; None: inductor.
    """
    try:
        torch.compile(torch.neg, backend=backend or "inductor")(torch.ones(2, device=device))
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise RecipeError(
            "train.torch_compile: torch cannot compile here "
            f"({lines[0] if lines else type(error).__name__}). Install a C++ compiler (g++ or "
            "clang), and triton for a GPU, or leave train.torch_compile out"
        ) from None


def uncompiled(model: nn.Module) -> nn.Module:
    """The model whose forward was compiled, or `model` itself where none was."""
    return model._orig_mod if is_compiled_module(model) else model


def of_any_size(batch: dict[str, Any]) -> None:
    """Say that the next batches are wider or ask for more logits than this one (of a Softmax).

    Otherwise a step is compiled again for almost every number of predicted tokens, and past a limit
    no longer at all.
    """
    # The head's positions reach it through a hook, and what hangs on a module counts as fixed.
    torch._dynamo.config.force_nn_module_property_static_shapes = False
    sizes = {"input_ids": (1,), "position_ids": (1,), "spans": (2,), "at": (0,)}
    for name, dimensions in sizes.items():
        for dimension in dimensions:
            torch._dynamo.maybe_mark_dynamic(batch[name], dimension)


def bare(model: nn.Module) -> nn.Module:
    """The module to search with, out of the wrappers of training."""
    # What searches reads many shapes, and a compiled model is compiled again for each. The forward
    # of DDP is a collective, and processes that search do not do equally many.
    model = uncompiled(model)
    return model.module if isinstance(model, DistributedDataParallel) else model
