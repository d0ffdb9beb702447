"""What all prompts of a run begin with, read once.

An instruction is the same in every prompt, so its keys and values are too. They are read as one row
and taken over by each batch of prompts. Knows neither titles nor batches nor search.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from llmrec.model.forward import StepBatch, forward_logits
from llmrec.model.last_layer import last_block_at

WORTH = 64  # tokens that must be saved to read the common beginning in a pass of its own


@dataclass(frozen=True)
class Beginning:
    """P tokens, `tokens` (P,), with the keys and values (1, heads, P, width) of each layer.

    They are those of the model as it was when it read them: use them neither after a training step
    nor with an adapter switched on or off since.
    """

    tokens: npt.NDArray[np.int32]
    layers: tuple[tuple[Tensor, Tensor], ...]

    def require(self, prompts: Sequence[npt.NDArray[np.int32]]) -> None:
        """Raise ValueError unless each prompt begins with these tokens and goes on behind them."""
        size = len(self.tokens)
        for number, prompt in enumerate(prompts):
            if len(prompt) <= size or not np.array_equal(prompt[:size], self.tokens):
                raise ValueError(
                    f"prompt {number} of {len(prompts)} does not go on behind the {size} tokens of "
                    "the beginning that was read; make the beginning from all prompts of the run"
                )


# Not one common token: where this is given, batches read no beginning of their own either.
NOTHING = Beginning(np.zeros(0, np.int32), ())


@torch.inference_mode()
def beginning_of(model: nn.Module, prompts: Iterable[npt.NDArray[np.int32]]) -> Beginning | None:
    """What all `prompts` begin with, read; None where that saves too few tokens."""
    count, tokens = _common(prompts)
    size = len(tokens)
    if size * (count - 1) < WORTH:
        return None
    ids, sees = torch.from_numpy(tokens.astype(np.int64))[None], torch.ones(size, size).bool()
    batch = StepBatch(ids, torch.arange(size)[None], sees.tril()[None, None], ids.new_zeros(0))
    batch, cache = batch.to(next(model.parameters()).device), DynamicCache()
    with last_block_at(model, batch.at):
        forward_logits(model, batch, cache)
    return Beginning(tokens, tuple((layer.keys, layer.values) for layer in cache.layers))


def _common(prompts: Iterable[npt.NDArray[np.int32]]) -> tuple[int, npt.NDArray[np.int32]]:
    """How many prompts there are, and what all begin with alike, a last token left to each."""
    count, shared = 0, np.zeros(0, np.int32)
    for count, prompt in enumerate(prompts, 1):
        shared = prompt[:-1] if count == 1 else shared[: len(prompt) - 1]
        same = prompt[: len(shared)] == shared
        shared = shared if same.all() else shared[: same.argmin()]
    return count, shared
