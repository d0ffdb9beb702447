"""Losses of prediction sets, of conformal prediction (CPFT, arXiv 2402.08976).

They judge the sets of B examples over N items or candidates, from log-probabilities in nats. Given
a `temperature` they are smooth: membership is a sigmoid, and gradients flow through it and through
the threshold. Without one they are hard as published: gradients flow through the probabilities of
the items outside a set (size) and through the similarities of those inside (distance), nothing
else. The smooth values become the hard ones as the temperature goes to 0.
"""

import math

import torch
from torch import Tensor


def log_threshold(log_truth: Tensor, alpha: float, temperature: float | None = None) -> Tensor:
    """() log of eta, which a share of about `alpha` of the true items' probabilities stay below.

    log_truth (B,): log-probability of the true item of each example. Hard: the quantile of order
    alpha (1 + 1/B), at most 1, the higher of two neighbours, without gradient. Smooth: the mean of
    all values, weighted by how near they are to that quantile.
    """
    count = len(log_truth)
    order = min(1.0, alpha * (1.0 + 1.0 / count))
    place = min(count - 1, math.ceil(order * (count - 1) - 1e-9))
    picked = torch.sort(log_truth).values[place]
    if temperature is None:
        return picked.detach()
    weights = torch.softmax(-(((log_truth - picked) / temperature) ** 2), dim=0)
    return (weights * log_truth).sum()


def membership(log_p: Tensor, log_eta: Tensor, temperature: float | None = None) -> Tensor:
    """(B, N) how far an item is in its example's set, p > eta: 0 or 1; smooth: between them."""
    if temperature is None:
        return (log_p > log_eta).to(log_p.dtype)
    return torch.sigmoid((log_p - log_eta) / temperature)


def set_size(log_p: Tensor, log_eta: Tensor, temperature: float | None = None) -> Tensor:
    """() mean over examples of the sum over items of: 1 inside the set, the probability outside.

    log_p (B, N), -inf for an item that is no candidate; log_eta (): see `log_threshold`.
    """
    inside = membership(log_p, log_eta, temperature)
    return (inside + (1.0 - inside) * log_p.exp()).sum(dim=1).mean()


def set_distance(
    log_p: Tensor,
    log_eta: Tensor,
    similarity: Tensor,
    is_label: Tensor,
    nearest: int,
    temperature: float | None = None,
) -> Tensor:
    """() mean over examples of 1 minus the mean similarity of the set's `nearest` most similar.

    log_p (B, N); similarity (B, N): cosine of each item to the example's true one; is_label (B, N):
    the true item itself, which does not count. An example whose set holds nothing else adds 0.
    Smooth: items count as far as they are members, an example as far as the surest
    of those that count.
    """
    inside = membership(log_p, log_eta, temperature).masked_fill(is_label, 0.0)
    # Similarities are shifted above 0, so that every member comes before what is none.
    order = (inside * (similarity + 2.0)).detach()
    chosen = order.topk(min(nearest, order.shape[1]), dim=1).indices
    weights, values = inside.gather(1, chosen), similarity.gather(1, chosen)
    total = weights.sum(dim=1)
    # The clamp is far below any weight that is told from 0, and keeps 0 / 0 away.
    mean = (weights * values).sum(dim=1) / total.clamp(min=1e-30)
    return (weights.amax(dim=1) * (1.0 - mean)).clamp(min=0.0).mean()
