"""Cross-entropy over a whole catalog whose logits never stand in memory at once.

Places go through the output piece by piece, small enough for the processor's cache; the gradients
are made on the way, so nothing is kept for a second pass. Importing this module imports torch.
"""

from typing import Any

import torch
from torch import Tensor

# Logits held at once: what a core's cache holds, and what keeps a GPU busy.
CELLS, CELLS_ON_GPU = 2**20, 2**26


class CatalogLoss(torch.autograd.Function):
    """Sum over T places of -log softmax(hidden @ weight.T + bias)[label], in nats.

    hidden (T, D), weight (N, D), bias (N,), labels (T,) int64. As exact as the plain formula.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        """() the loss; its gradients are kept for `backward`."""
        cells = CELLS_ON_GPU if hidden.is_cuda else CELLS
        size = max(1, cells // len(weight))
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        of_bias, total = torch.zeros_like(bias), hidden.new_zeros(())
        for start in range(0, len(hidden), size):
            part, own = hidden[start : start + size], labels[start : start + size, None]
            values = torch.addmm(bias, part, weight.T)
            peak = values.amax(dim=1, keepdim=True)
            total += (peak - values.gather(1, own)).sum()
            mass = values.sub_(peak).exp_().sum(dim=1, keepdim=True)
            total += mass.log().sum()
            values.div_(mass).scatter_add_(1, own, values.new_full(own.shape, -1.0))
            torch.mm(values, weight, out=of_hidden[start : start + size])
            of_weight.addmm_(values.T, part)
            of_bias += values.sum(dim=0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for hidden, weight and bias; labels have none."""
        return (*(gradient * upstream[0] for gradient in ctx.saved_tensors), None)
